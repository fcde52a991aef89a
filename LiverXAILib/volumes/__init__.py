# SPDX-License-Identifier: Apache-2.0
"""Images and where they lie: data types, geometry, reading and writing."""
