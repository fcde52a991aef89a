# SPDX-License-Identifier: Apache-2.0
"""What explanations are worth: maps against controls, what replaces surroundings, networks of known mechanism."""
