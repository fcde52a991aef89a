# SPDX-License-Identifier: Apache-2.0
"""The panel of the Slicer module LiverXAI, in parts that each do one thing and receive each other as arguments.

This is the only package that may import Slicer's ``qt`` and ``ctk``, and only inside functions: importing it needs
Slicer (or the test host), but no Qt and no torch. ``LiverXAI.py`` creates the parts and connects the widgets to them.
"""
