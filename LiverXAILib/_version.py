# SPDX-License-Identifier: Apache-2.0
"""The single place where the version is defined."""

__version__ = "0.1.0"
