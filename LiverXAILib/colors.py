# SPDX-License-Identifier: Apache-2.0
"""The colors of heat maps, the same in reports and in Slicer."""

from __future__ import annotations

#: Cold (not influential) to warm (influential): blue over violet to red, sRGB 0..255, evenly spaced. The lightness
#: rises all the way (CIELAB L* 27 to 61), and for red-green-blind eyes the colors run from blue to yellow: so more
#: influence always looks like more.
HEAT_COLORS = ((30, 50, 160), (80, 75, 180), (140, 85, 170), (195, 85, 135), (235, 85, 90), (255, 95, 45))
#: Heat below this is not painted, so that the CT stays readable.
VISIBLE_HEAT = 0.1
