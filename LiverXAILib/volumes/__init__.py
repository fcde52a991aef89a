# SPDX-License-Identifier: Apache-2.0
"""Images and where they lie: the nouns, their geometry, reading and writing."""
