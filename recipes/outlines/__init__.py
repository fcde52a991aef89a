# SPDX-License-Identifier: Apache-2.0
"""Training of the network that outlines one lesion, at a click or around what a model has marked."""
