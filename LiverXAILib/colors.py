# SPDX-License-Identifier: Apache-2.0
"""The colors of heat maps, the same in reports and in Slicer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

#: Cold (not influential) to warm (influential): blue through violet to red, sRGB 0..255, evenly spaced. Lightness
#: rises monotonically (CIELAB L* 27 to 61), and to people with red-green color blindness the colors run from blue to
#: yellow, so the order of the colors is clear to every reader.
HEAT_COLORS = ((30, 50, 160), (80, 75, 180), (140, 85, 170), (195, 85, 135), (235, 85, 90), (255, 95, 45))
#: Heat below this is not painted, so that the CT stays readable.
VISIBLE_HEAT = 0.1


def heat_color(heat: np.ndarray) -> np.ndarray:
    """Map heat in [0, 1], of any shape, to sRGB 0..255, float32 (…, 3)."""
    import numpy as np

    steps = np.linspace(0, 1, len(HEAT_COLORS))
    table = np.stack([np.interp(np.linspace(0, 1, 256), steps, band) for band in np.transpose(HEAT_COLORS)], axis=1)
    return table.astype(np.float32)[np.clip(np.asarray(heat) * 256, 0, 255).astype(np.uint8)]
