# SPDX-License-Identifier: Apache-2.0
"""Training of the network that outlines a lesion from clicks; see :mod:`recipes.outlines.train`."""
