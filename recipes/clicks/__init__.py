# SPDX-License-Identifier: Apache-2.0
"""How the network that outlines a lesion from clicks is trained; see :mod:`recipes.clicks.train`."""
