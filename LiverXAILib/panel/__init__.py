# SPDX-License-Identifier: Apache-2.0
"""The panel of the Slicer module LiverXAI, in parts that each do one thing and know each other by arguments.

The only package that may import Slicer's ``qt`` and ``ctk``, inside functions: importing it needs a Slicer (or the
test host), but no Qt and no torch. ``LiverXAI.py`` makes the parts and connects the widgets with them.
"""
