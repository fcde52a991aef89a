# SPDX-License-Identifier: Apache-2.0
"""The phantom's frame: body wall, ribs, spine, diaphragm, chest and great vessels. Numbers are atlas mm."""

from __future__ import annotations

from typing import Any

import numpy as np

from .canvas import Canvas, distance, smooth_noise
from .shapes import ellipse, ellipsoid, grow, ramp, rotation, spline, union, without
from .tissues import TISSUES

# Where ribs and cartilages end, from the twelfth rib up; 0 is the midline of the back, 1 that of the front.
_RIB_ENDS = np.array([0.34, 0.48, 0.63, 0.67, 0.70, 0.74, 0.78, 0.80, 0.82, 0.82])
_CARTILAGE_ENDS = np.array([0.34, 0.49, 0.76, 0.84, 0.90, 0.97, 1.0, 1.0, 1.0, 1.0])
_RIB_MM = 26.0  # distance between neighboring ribs
_T12 = -62.0  # level of the twelfth thoracic vertebra


class Torso:
    """Builds shapes (lattice fields) first, then paints them, from the outside in."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        self.rng = rng = canvas.rng
        self.fat = float(np.clip(rng.gamma(3.0, 4.5), 4, 38))  # subcutaneous, mm
        self.visceral = float(np.clip(rng.normal(0.3, 0.25) + self.fat / 60, 0, 1))  # visceral fat, 0 to 1
        self.muscle = rng.uniform(0.8, 1.25)
        self._spine_slope = rng.uniform(0.02, 0.15)
        self._shape_wall()
        self._shape_diaphragm()
        self._shape_heart()
        self._draw_vessels()

    def spine_y(self, z: Any) -> Any:
        """Return y of the center line of the vertebral bodies (a number or an array, like `z`)."""
        return self._spine_slope * (z + 130) + 44

    def gap(self, least: float, most: float) -> float:
        """Return the thickness in mm of the fat between two organs: thin in lean patients."""
        return least + (most - least) * self.visceral

    def paint(self) -> None:
        canvas, rng = self.canvas, self.rng
        canvas.paint_field(self.skin, "skin")
        canvas.paint_field(self.skin + np.float32(rng.uniform(1.6, 2.4)), "subcutaneous_fat")
        canvas.paint_field(self.trunk, "muscle")
        canvas.paint_field(self.cavity, "visceral_fat")
        self._paint_ribs()
        self._paint_lungs()
        self._paint_heart()
        self._paint_back()
        self._paint_spine()

    # -- shapes -------------------------------------------------------------------------------------------------

    def _shape_wall(self) -> None:
        """Shape the wall: `skin` bounds the body, `trunk` the muscles, `cavity` lungs and viscera."""
        canvas, rng = self.canvas, self.rng
        x, y, z = canvas.atlas
        half_width = (146 + 6 * self.visceral + rng.normal(0, 4)) * (1 - rng.uniform(0.0, 0.1) * ramp(z, -90, -200))
        deep = 103 + 10 * self.visceral + rng.normal(0, 3)
        depth = np.where(y < 0, deep + (20 * self.visceral - 8) * ramp(z, -60, -180), np.float32(deep + 8))
        power = np.float32(rng.uniform(2.05, 2.5))
        self.trunk = distance(np.abs(x / half_width) ** power + np.abs(y / depth) ** power - 1)
        u, v = x / 150, y / 110
        flank = u * u / np.maximum(u * u + v * v, np.float32(0.05))  # 0 in front and behind, 1 at the side
        belly = rng.uniform(0.1, 0.9) * ramp(z, -80, -220) + rng.uniform(0, 0.6) * flank
        fat = self.fat * (0.6 + belly) * (1 + 0.2 * canvas.noise(80))
        groove = (3 + 0.17 * self.fat) * np.exp(-((x / 14) ** 2)) * (y > 0)
        self.skin = (self.trunk - np.clip(fat - groove, 2, 60)).astype(np.float32)
        front = ramp(y, -40, -95) * ramp(z, -30, -100)
        self.inner = self.trunk + (16.5 + (self.muscle - 1) * 8 - 6 * front).astype(np.float32)
        behind = y - self.spine_y(z)
        self.column = ellipse(x, behind, 25, 23)
        back = ellipse(x, behind - 48, 62 + 6 * self.muscle, 36)
        self.cavity = without(self.inner, union(self.column, back, 8), 0, 10)

    def _shape_diaphragm(self) -> None:
        """Shape `below`, the abdominal side of the diaphragm: two domes and the central tendon under the heart."""
        rng = self.rng
        x, y, z = self.canvas.atlas
        left = rng.normal(-14, 7)
        domes = (
            (-66, rng.uniform(69, 76), 86, 0.0),
            (66, rng.uniform(69, 76), 84, left),
            (6, 80, 80, min(left, -12.0) + 2),
        )
        low = ramp(y, 10, -90)
        below = None
        for center, right, medial, top in domes:
            outward = (x - center) * np.float32(np.sign(center))
            u = np.where(outward > 0, outward / np.float32(right), outward / np.float32(medial))
            v = (y + np.float32(4)) / np.float32(rng.uniform(98, 106))
            base = top - np.float32(rng.normal(106, 7)) + 45 * low
            w = np.maximum(z - base, 0) / (top - base)
            dome = distance(u * u + v * v + w * w - 1)
            below = dome if below is None else union(below, dome, 28)
        assert below is not None
        self.below = below + np.float32(rng.uniform(0.5, 1.8)) * self.canvas.noise(38)
        self.abdomen = np.maximum(self.below, self.cavity)

    def _shape_heart(self) -> None:
        canvas, rng = self.canvas, self.rng
        self._heart_axes = rotation((0.2, 0.5, 1), -35)
        size = rng.normal(1, 0.07)
        center = (24, -40, rng.normal(42, 4))
        heart = ellipsoid(canvas.atlas, center, (66 * size, 50 * size, 50 * size), self._heart_axes)
        self.heart = np.maximum(heart + canvas.noise(45), 3 - self.below)

    def _draw_vessels(self) -> None:
        """Draw center lines of aorta, inferior vena cava and esophagus (rows of atlas position and radius)."""
        rng, s = self.rng, self.spine_y
        wide, flat = rng.normal(1, 0.1), rng.uniform(0.8, 1.2)
        self.aorta = spline(
            [
                (24, s(90) - 18, 90, 12 * wide),
                (18, s(20) - 24, 20, 11.5 * wide),
                (12, s(-60) - 30, -60, 11 * wide),
                (13, s(-140) - 29, -140, 9.5 * wide),
                (11, s(-280) - 28, -280, 8.5 * wide),
            ],
            16,
        )
        self.cava = spline(
            [
                (-20, s(-280) - 27, -280, 9.5 * flat),
                (-22, s(-150) - 28, -150, 10 * flat),
                (-24, s(-90) - 31, -90, 11 * flat),
                (-26, s(-45) - 36, -45, 11.5 * flat),
                (-22, s(-10) - 46, -10, 13 * flat),
                (-14, -14, 25, 14),
            ],
            16,
        )
        self.esophagus = spline(
            [(10, s(80) - 38, 80, 8), (12, s(20) - 42, 20, 8), (22, s(-20) - 42, -20, 8), (40, 12, -42, 9)], 9
        )

    # -- paint --------------------------------------------------------------------------------------------------

    def _paint_ribs(self) -> None:
        """Paint ribs and costal cartilages, which run in the wall, obliquely down and forward; below them the flat
        muscles have fat between their layers. All are functions of the depth in the wall and the angle around it."""
        canvas, rng = self.canvas, self.rng
        x, y, z = canvas.atlas
        angle = np.arctan2(np.abs(x) * np.float32(0.8), y - 15) / np.float32(np.pi)
        bend, fall = np.float32(0.63), rng.normal(105, 8)
        before = fall * (np.minimum(angle, bend) / bend) ** np.float32(0.9)
        level = (z + before - 260 * np.maximum(angle - bend, 0) - rng.normal(_T12, 4)) / np.float32(_RIB_MM)
        ends = _RIB_ENDS + rng.normal(0, 0.01, len(_RIB_ENDS))
        hu, tissue = canvas.hu.reshape(-1), canvas.tissue.reshape(-1)
        cavity = canvas.sample(self.cavity, canvas.whole).reshape(-1)
        trunk = canvas.sample(self.trunk, canvas.whole).reshape(-1)
        band = np.flatnonzero((np.abs(cavity - 7) < 9) & (tissue == TISSUES["muscle"]))
        cavity, trunk = cavity[band], trunk[band]
        height = canvas.sample(level.astype(np.float32), canvas.whole).reshape(-1)[band]
        turn = canvas.sample(angle, canvas.whole).reshape(-1)[band]

        def mix(name: str, alpha: np.ndarray) -> None:
            hu[band] += alpha * (np.float32(canvas.values[name]) - hu[band])
            tissue[band[alpha > 0.5]] = TISSUES[name]

        number = np.round(height)
        which = np.clip(number, 0, len(ends) - 1).astype(np.intp)
        across = (height - number) * np.float32(0.75 * _RIB_MM)
        depth = (
            1
            - np.sqrt(
                ((cavity - 5) / (3 + 3 * np.minimum(turn, np.float32(0.3)))) ** 2 + (across / np.float32(4.7)) ** 2
            )
        ) * np.float32(4.5)
        bone = (number >= 0) & (turn > 0.1) & (turn < ends[which])
        cartilage = (number >= 0) & (turn >= ends[which]) & (turn < _CARTILAGE_ENDS[which])
        for name, present, shell in (
            ("cartilage", cartilage, 0),
            ("cortical_bone", bone, 0),
            ("cancellous_bone", bone, 1.3),
        ):
            mix(name, np.clip((depth - np.float32(shell)) / canvas.voxel_mm + np.float32(0.5), 0, 1) * present)
        # fat between the three flat muscles of the flank, and between the ribs and the muscles over them
        chest, third = number >= 0, (cavity - trunk) / 3
        lines = np.minimum(np.abs(cavity - third), np.abs(cavity - 2 * third))
        lines = np.where(chest, np.abs(cavity - np.float32(10.5)), lines)
        where = (turn > 0.2) & (turn < 0.82) & (chest | (turn > 0.36)) & (cavity > 2.5) & (trunk < -2.5)
        patchy = np.clip(1 + canvas.sample(canvas.noise(38), canvas.whole).reshape(-1)[band], 0, 1)
        alpha = np.clip(np.float32(self.gap(0.6, 1.7)) - lines / canvas.voxel_mm, 0, np.float32(0.85)) * where * patchy
        hu[band] += alpha * (np.float32(canvas.values["visceral_fat"]) - hu[band])

    def _paint_lungs(self) -> None:
        canvas, rng = self.canvas, self.rng
        x, y, z = canvas.atlas
        mediastinum = ellipse(x - 4, y - self.spine_y(z) + 20, 30 + 4 * self.visceral, 34)
        sac = np.minimum(self.heart - self.gap(2, 8), ellipsoid(canvas.atlas, (12, -86, 30), (26, 26, 60)))
        lung = np.maximum(np.maximum(self.cavity, -self.below), -np.minimum(mediastinum, sac))
        box, depth = canvas.paint_field(lung, "lung")
        inside = np.zeros(canvas.hu.shape, bool)
        inside[box] = depth > 0.5
        vessels = []
        for side in (-1, 1):
            for _ in range(8):
                root = (side * 40 + rng.normal(0, 5), 5 + rng.normal(0, 14), 75 + rng.normal(0, 14))
                aim = (side * rng.uniform(0.1, 1.0), rng.uniform(-0.7, 1.0), rng.uniform(-1.4, -0.1))
                vessels += grow(rng, root, aim, rng.uniform(28, 48), rng.uniform(2.4, 4.4), 3, 0.66)
        canvas.paint_tubes(vessels, "lung_vessel", inside)
        # a pleural effusion in some patients: it is posterior
        effusion, side, level = rng.random() < 0.12, rng.choice((-1, 1)), rng.uniform(30, 75)
        if effusion:
            fluid = np.maximum(level - y + 0.25 * (z + 40), -side * x)
            canvas.paint_field(np.maximum(lung - 1.5, fluid), "effusion")
        canvas.paint_field(self.abdomen, "muscle")
        canvas.paint_field(self.abdomen + np.float32(rng.uniform(2.0, 3.2)), "visceral_fat")

    def _paint_heart(self) -> None:
        canvas = self.canvas
        canvas.paint_field(self.heart, "heart_muscle")
        for center, radii in (
            ((38, -45, 40), (36, 26, 30)),
            ((-8, -56, 38), (30, 22, 30)),
            ((-12, -18, 46), (28, 24, 28)),
        ):
            chamber = canvas.field(
                np.subtract(center, 60),
                np.add(center, 60),
                lambda p, c=center, r=radii: ellipsoid(p, c, r, self._heart_axes),  # type: ignore[misc]
            )
            canvas.paint_field(np.maximum(chamber, self.heart + 4), "heart_blood")
        # sternum and xiphoid
        box, (x, _, z) = canvas.coordinates((-30, -140, -30), (30, -70, 120))
        bone = np.maximum(np.abs(canvas.sample(self.inner, box) - 6) - 4.5, np.abs(x) - 7 - 10 * ramp(z, -10, 60))
        bone = np.maximum(bone, -15 - z)
        canvas.paint(box, -bone / canvas.voxel_mm, "cortical_bone")
        canvas.paint(box, -(bone + np.float32(1.5)) / canvas.voxel_mm, "cancellous_bone")

    def _paint_back(self) -> None:
        """Paint crura, psoas, quadratus lumborum, and fat between the muscles of the back."""
        canvas, s = self.canvas, self.spine_y
        crura = []
        for side in (-1, 1):
            crura.append(
                spline(
                    [
                        (side * 14 + 8, s(-5) - 30, -5, 4),
                        (side * 17 + 4, s(-60) - 26, -60, 5),
                        (side * 12 + 4, s(-140) - 18, -140, 3.5),
                    ],
                    7,
                )
            )
            psoas = [
                (side * 24, s(-85) + 2, -85, 5),
                (side * 34, s(-140) - 2, -140, 13 * self.muscle),
                (side * 42, s(-200) - 6, -200, 20 * self.muscle),
                (side * 48, s(-290) - 10, -290, 23 * self.muscle),
            ]
            quadratus = [
                (side * 62, s(-100) + 24, -100, 7),
                (side * 72, s(-200) + 18, -200, 12 * self.muscle),
                (side * 78, s(-290) + 14, -290, 12 * self.muscle),
            ]
            canvas.paint_field(canvas.tube_field(spline(psoas, 8), 8), "muscle")
            canvas.paint_field(canvas.tube_field(spline(quadratus, 5), 6), "muscle")
        canvas.paint_tubes(crura, "muscle")
        # fat between the long muscles: sheets along the zeros of a field stretched along the spine
        box, (_, y, z) = canvas.coordinates((-120, 50, -300), (120, 140, 120))
        field = canvas.sample(smooth_noise(self.rng, 26, stretch=6), box)
        sheet = np.float32(self.gap(0.06, 0.22)) - np.abs(field)
        muscle = (canvas.tissue[box] == TISSUES["muscle"]) & (y > self.spine_y(z) + 22)
        inside = np.minimum(canvas.sample(self.cavity, box) - 4, -4 - canvas.sample(self.trunk, box))
        canvas.paint(box, np.minimum(sheet * 12, inside) / canvas.voxel_mm, "visceral_fat", where=muscle)

    def _paint_spine(self) -> None:
        canvas, rng = self.canvas, self.rng
        box, (x, y, z) = canvas.coordinates((-60, -20, -300), (60, 150, 120))
        y = y - self.spine_y(z)
        lumbar = z < _T12
        mm = np.where(lumbar, np.float32(33), np.float32(27))
        level = (z - np.float32(_T12)) / mm + np.float32(rng.uniform(-0.3, 0.3))
        part = level - np.round(level)  # -0.5 to 0.5 through one vertebra and half a disc on each side
        radius = (1 - np.float32(0.1) * np.clip(1 - (part / np.float32(0.4)) ** 2, 0, 1)) * (
            1 - 0.12 * ramp(z, -120, 0)
        )
        side = np.abs(x)
        body = ellipse(x, y, 23 * radius, 17 * radius)
        canal = ellipse(x, y - 25, np.float32(10.5), np.float32(8))
        arch = np.maximum(canal - np.float32(4.5), (np.abs(part + np.float32(0.08)) - np.float32(0.36)) * mm)
        facets = np.sqrt((side - 15) ** 2 + (y - 29) ** 2) - np.float32(6.5)
        spinous = np.maximum(
            np.maximum(side - np.float32(3.2), np.abs(y - 46) - 13),
            (np.abs(part + np.float32(0.15)) - np.float32(0.27)) * mm,
        )
        transverse = np.sqrt((y - 24 - side * np.float32(0.12)) ** 2 + ((part - np.float32(0.05)) * mm) ** 2)
        transverse = np.maximum(transverse - np.float32(4.5), np.maximum(side - 38, 12 - side))
        canvas.paint(box, -(body + 1) / canvas.voxel_mm, "disc")
        bone = np.maximum(body, (np.abs(part) - np.float32(0.40)) * mm)
        for other in (arch, facets, spinous, transverse):
            bone = np.minimum(bone, other)
        bone = np.maximum(np.maximum(bone, -canal), canvas.sample(self.trunk, box) + 2)
        canvas.paint(box, -bone / canvas.voxel_mm, "cortical_bone")
        canvas.paint(box, -(bone + np.float32(1.6)) / canvas.voxel_mm, "cancellous_bone")
        canvas.paint(box, -canal / canvas.voxel_mm, "spinal_canal")
