# SPDX-License-Identifier: Apache-2.0
"""What label maps and segments mean: codes, names and values of the liver and its tumors, in one place."""
