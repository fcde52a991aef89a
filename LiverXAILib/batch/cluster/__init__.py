# SPDX-License-Identifier: Apache-2.0
"""Batches on the nodes of a cluster."""
