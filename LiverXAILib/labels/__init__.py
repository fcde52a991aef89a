# SPDX-License-Identifier: Apache-2.0
"""The meaning of label maps and segments: codes, names and values of the liver and its tumors, in one place."""
