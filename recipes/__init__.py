# SPDX-License-Identifier: Apache-2.0
"""Recipes of the models that the project trains, from data to exported model; not in the wheel, run from a clone."""
