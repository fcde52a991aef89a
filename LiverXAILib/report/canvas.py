# SPDX-License-Identifier: Apache-2.0
"""A slice of a CT as a picture: gray values, a heat map over them, lines and text with dark halos.

Drawings are kept as data in millimeters and rasterized once. Pillow does not draw antialiased lines, so everything is
drawn :data:`_OVERSAMPLING` times as large and averaged.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..colors import VISIBLE_HEAT, heat_color

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)

_OVERSAMPLING = 4
#: Opacity of halos, and how far they reach around a line and a text, in pixels.
_HALO_OPACITY, _LINE_HALO, _TEXT_HALO = 0.75, 1.0, 2.0
#: Lengths of a dash and of the following gap, in pixels.
_DASH = (8.0, 4.0)


@dataclass(frozen=True, eq=False)
class Line:
    """A line through `points` (n, 2), mm to the right and down; `width` in pixels."""

    points: np.ndarray = field(repr=False)
    color: Color = WHITE
    width: float = 2.5
    dashed: bool = False
    halo: bool = True


@dataclass(frozen=True)
class Text:
    """`text` at a `place` in pixels to the right and down; `anchor` as in Pillow: "mm" is the middle, "lt" a corner."""

    text: str
    place: tuple[float, float]
    anchor: str = "mm"
    size: float = 17.0
    bold: bool = True


@dataclass(frozen=True, eq=False)
class Picture:
    """A slice of a CT and what is drawn on it.

    :param hu: (rows, columns) in HU; `window_hu`: the HU shown as black and as white.
    :param corner_mm: the upper left corner of the picture, mm to the right and down.
    :param pixel_mm: size of a pixel.
    :param heat: (rows, columns) in [0, 1], or None.
    :param painted: (rows, columns, 4), 0 to 255, red, green, blue and opacity of what covers the CT; or None.
    """

    hu: np.ndarray = field(repr=False)
    window_hu: tuple[float, float]
    corner_mm: tuple[float, float]
    pixel_mm: float
    heat: np.ndarray | None = field(default=None, repr=False)
    painted: np.ndarray | None = field(default=None, repr=False)
    lines: list[Line] = field(default_factory=list, repr=False)
    texts: list[Text] = field(default_factory=list, repr=False)

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height."""
        rows, columns = self.hu.shape
        return columns * self.pixel_mm, rows * self.pixel_mm

    def to_pixels(self, points_mm: np.ndarray) -> np.ndarray:
        """Points (..., 2) in mm to the right and down → in pixels from the upper left corner."""
        return (np.asarray(points_mm) - self.corner_mm) / self.pixel_mm

    def pixels(self) -> np.ndarray:
        """The picture: uint8 (rows, columns, 3), RGB."""
        low, high = self.window_hu
        image = np.clip((self.hu - low) * (255 / (high - low)), 0, 255).astype(np.float32)
        if self.heat is not None or self.painted is not None:
            image = np.repeat(image[..., None], 3, axis=2)
        if self.heat is not None:
            # The map fades in above the threshold, so that no false edge appears there.
            opacity = heat_opacity(self.heat)[..., None]
            image += opacity * (heat_color(self.heat) - image)
        if self.painted is not None:
            image += self.painted[..., 3:] / 255 * (self.painted[..., :3] - image)
        picture = Image.fromarray(np.rint(image).astype(np.uint8))
        colors = dict.fromkeys([*(line.color for line in self.lines), *([WHITE] if self.texts else [])])
        if set(colors) != {WHITE}:  # a gray picture is drawn in one channel
            picture = picture.convert("RGB")
        halo = _Mask(picture.size)
        for line in self.lines:
            if line.halo:
                halo.line(self.to_pixels(line.points), line.width + 2 * _LINE_HALO, line.dashed)
        for text in self.texts:
            halo.text(text, _TEXT_HALO)
        halo.paint(picture, BLACK, _HALO_OPACITY)
        for color in colors:
            ink = _Mask(picture.size)
            for line in self.lines:
                if line.color == color:
                    ink.line(self.to_pixels(line.points), line.width, line.dashed)
            if color == WHITE:
                for text in self.texts:
                    ink.text(text, 0.0)
            ink.paint(picture, color, 1.0)
        return np.asarray(picture.convert("RGB"))


def heat_opacity(heat: np.ndarray) -> np.ndarray:
    """The opacity, 0 to 1, with which a heat map in [0, 1] covers the CT."""
    return np.clip((heat - VISIBLE_HEAT) / 0.15, 0, 1) * (0.4 + 0.25 * heat)


def side_by_side(pictures: Sequence[Picture]) -> np.ndarray:
    """Pictures of equal height joined to one: uint8 (rows, columns, 3)."""
    return np.concatenate([picture.pixels() for picture in pictures], axis=1)


def embedded(pixels: np.ndarray) -> str:
    """Pixels (rows, columns, 3) as a data URI, losslessly compressed."""
    buffer = io.BytesIO()
    # More effort would make it a seventh smaller in three times the time.
    Image.fromarray(pixels).save(buffer, format="webp", lossless=True, quality=0, method=0)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class _Mask:
    """The area covered by lines and texts; drawn enlarged, and averaged when it is painted."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._image = Image.new("L", (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING))
        self._draw = ImageDraw.Draw(self._image)

    def line(self, points: np.ndarray, width: float, dashed: bool) -> None:
        # Pillow leaves corners open, or closes them slowly; a second line through the segments' midpoints closes them.
        pieces = _dashes(points) if dashed else [points, (points[1:] + points[:-1]) / 2][: len(points) - 1]
        for piece in pieces:
            # Pillow's pixel 0 begins at 0, hence the shift by half a pixel of the enlarged picture.
            self._draw.line((piece * _OVERSAMPLING - 0.5).ravel().tolist(), 255, round(width * _OVERSAMPLING))

    def text(self, text: Text, halo: float) -> None:
        x, y = text.place
        self._draw.text(
            (x * _OVERSAMPLING, y * _OVERSAMPLING),
            text.text,
            fill=255,
            font=_font(text.size),
            anchor=text.anchor,
            stroke_width=round((halo + 0.5 * text.bold) * _OVERSAMPLING),
        )

    def paint(self, picture: Image.Image, color: Color, opacity: float) -> None:
        mask = self._image.reduce(_OVERSAMPLING)
        ink = color if picture.mode == "RGB" else color[0]
        picture.paste(ink, mask=mask if opacity == 1 else mask.point([round(opacity * n) for n in range(256)]))


def _dashes(points: np.ndarray) -> list[np.ndarray]:
    """The pieces of a straight line (2, 2) in pixels that are drawn."""
    start, end = points
    length = float(np.linalg.norm(end - start))
    step = sum(_DASH)
    ends = [(at, min(at + _DASH[0], length)) for at in np.arange(0, max(length, 1e-6), step)]
    along = (end - start) / max(length, 1e-6)
    return [np.array([start + a * along, start + b * along]) for a, b in ends]


@cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size * _OVERSAMPLING)
    assert isinstance(font, ImageFont.FreeTypeFont)  # except where Pillow was built without FreeType
    return font
