# SPDX-License-Identifier: Apache-2.0
"""The phantom's abdomen: the liver, its neighbors, and what fills the rest. Numbers are atlas mm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..volumes.box import Box
from .canvas import Canvas
from .shapes import ellipsoid, grow, intersection, rotation, spline, union, without
from .tissues import TISSUES
from .torso import Torso


@dataclass
class _Kidney:
    field: np.ndarray
    center: np.ndarray
    axes: np.ndarray  # rows: toward the hilum, across, upward


class Organs:
    """Builds shapes (lattice fields) first, because the neighbors shape the liver; then paints them."""

    def __init__(self, canvas: Canvas, torso: Torso) -> None:
        self.canvas, self.torso, self.rng = canvas, torso, canvas.rng
        self.kidneys = [self._shape_kidney(-1), self._shape_kidney(1)]
        self._shape_stomach()
        self._shape_spleen()
        self._shape_colon()
        self._shape_liver()

    def paint(self) -> None:
        """Paint everything but the liver."""
        canvas, rng, torso = self.canvas, self.rng, self.torso
        self._paint_mesentery()
        ascites, width = rng.random() < 0.1, rng.uniform(4, 14)
        if ascites:
            canvas.paint_field(
                np.maximum(np.minimum(self.liver, self.spleen) - np.float32(width), torso.abdomen + 2), "ascites"
            )
        self._paint_small_bowel()
        self._paint_hollow(self.colon, rng.uniform(1.8, 3), stool=True)
        self._paint_pancreas()
        canvas.paint_tubes([torso.esophagus], "gut_wall")
        self._paint_hollow(self.stomach, rng.uniform(2.5, 5) + canvas.noise(13))
        canvas.paint_field(self.spleen, "spleen")
        for kidney in self.kidneys:
            self._paint_kidney(kidney)
        self._paint_adrenals()
        canvas.paint_tubes([torso.aorta], "aorta")
        self._paint_branches()

    # -- shapes -------------------------------------------------------------------------------------------------

    def _shape_kidney(self, side: int) -> _Kidney:
        canvas, rng = self.canvas, self.rng
        z = rng.normal(-138 if side < 0 else -122, 8)
        center = np.array([side * rng.normal(70, 4), self.torso.spine_y(z) - 4, z])
        axes = rotation((0, 1, 0), -12 * side) @ rotation((1, 0, 0), -10) @ rotation((0, 0, 1), 35 * side)
        axes = axes * np.array([[-side], [-side], [1]])
        radii = np.array([25, 29, rng.normal(54, 4)]) * rng.normal(1, 0.06)
        hilum = center + axes[0] * 30
        body = canvas.field(center - 80, center + 80, lambda p: ellipsoid(p, center, radii, axes))
        dent = canvas.field(center - 80, center + 80, lambda p: ellipsoid(p, hilum, (14, 12, 20), axes))
        field = without(body, dent, 0, 8) + np.where(body < 40, canvas.noise(25), 0)
        return _Kidney(np.maximum(field, self.torso.abdomen + 5), center, axes)

    def _shape_stomach(self) -> None:
        canvas, rng = self.canvas, self.rng
        full, x0 = rng.uniform(0.75, 1.2), rng.normal(0, 4)
        path = [
            (62 + x0, 32, -40, 29 * full),
            (66 + x0, 8, -52, 32 * full),
            (62 + x0, -24, -76, 28 * full),
            (48 + x0, -48, -100, 25 * full),
            (20, -56, -120, 19 * full),
            (-8, -48, -118, 15 * full),
            (-28, -36, -108, 11),
        ]
        tube = canvas.tube_field(spline(path, 14), 10) + np.float32(1.5) * canvas.noise(25)
        self.stomach = np.maximum(tube, self.torso.abdomen + 4)

    def _shape_spleen(self) -> None:
        canvas, rng, torso = self.canvas, self.rng, self.torso
        size = np.clip(rng.lognormal(0, 0.15), 0.75, 1.5)
        center, radii = (100, rng.normal(42, 4), -66), (41 * size, 54 * size, 58 * size)
        tilt = rotation((0, 1, 0.4), rng.normal(20, 6))
        spleen = canvas.field((20, -50, -190), (160, 130, 40), lambda p: ellipsoid(p, center, radii, tilt))
        spleen = spleen + np.where(spleen < 40, np.float32(1.5) * canvas.noise(38), 0)
        spleen = without(spleen, self.kidneys[1].field, torso.gap(1, 7), 8)
        spleen = without(spleen, self.stomach, torso.gap(1, 6), 10)
        self.spleen = intersection(spleen, torso.abdomen + np.float32(2.0 + torso.gap(0, 2)), 6)

    def _shape_colon(self) -> None:
        canvas, rng = self.canvas, self.rng
        sag = rng.uniform(0, 45)
        right, left = rng.normal(-160, 10), rng.normal(-100, 12)
        path = np.array(
            [
                (-92, 10, -300, 25),
                (-96, 8, -215, 24),
                (-94, 2, right - 22, 22),
                (-84, -30, right, 21),
                (-62, -66, right - 20, 21),
                (-25, -84, right - 22 - sag * 0.7, 20),
                (20, -86, right - 15 - sag, 19),
                (60, -76, right + 12 - sag * 0.6, 19),
                (88, -48, left - 30, 19),
                (108, -10, left, 19),
                (114, 20, left - 30, 17),
                (110, 26, left - 90, 16),
                (104, 20, -300, 16),
            ]
        )
        path[:, :3] += rng.normal(0, 4, path[:, :3].shape)
        path[:, 3] *= rng.uniform(0.75, 1.2) * rng.lognormal(0, 0.12, len(path))
        tube = spline(path, 90)
        tube[:, 3] *= 1 + 0.14 * np.sin(np.arange(90) * 2 * np.pi / 5.3)  # haustra
        colon = np.maximum(canvas.tube_field(tube, 4), self.torso.abdomen + 4)
        for other in (self.stomach, self.spleen, self.kidneys[0].field, self.kidneys[1].field):
            colon = without(colon, other, 2, 4)
        self.colon = colon

    def _shape_liver(self) -> None:
        """Shape the liver: right lobe, left lobe and caudate, blended; below them the concave visceral surface, which
        rises from the right tip to the left; cut by the neighboring organs, with more or less fat between."""
        canvas, rng, torso = self.canvas, self.rng, self.torso
        x, y, z = canvas.atlas
        size = rng.normal(1, 0.07)
        right = ellipsoid(canvas.atlas, (-66, 6, -60), (80 * size, 106, 100))
        reach = np.clip(rng.normal(66, 24), 20, 118)  # how far the left lobe extends to the left
        tilt = rotation((0, 1, 0), rng.uniform(-6, 14))
        left = ellipsoid(canvas.atlas, (reach - 74, -50, -42), (74, rng.uniform(44, 58), rng.uniform(28, 48)), tilt)
        caudate = ellipsoid(canvas.atlas, (-14, 4, -62), (17, 17, rng.uniform(22, 34)))
        liver = union(union(right, left, 20), caudate, 8)
        bottom, slope = np.float32(rng.normal(-83, 8)), np.float32(rng.uniform(0.4, 0.85))
        lateral = np.minimum(x + 25, 0)
        surface = bottom + slope * lateral + np.float32(0.30) * np.maximum(x + 25, 0)
        surface += np.float32(0.16) * np.minimum(y + 20, 0) - np.float32(0.10) * np.maximum(y - 20, 0)
        hollow = np.float32(rng.uniform(0, 16)) * np.exp(-((x + 55) ** 2 + (y + 5) ** 2) / np.float32(2 * 38**2))
        liver = intersection(liver, (surface + hollow + 3 * canvas.noise(60) - z) / np.float32(1.25), 24)
        riedel, length = rng.random() < 0.2, rng.uniform(45, 85)
        if riedel:
            liver = union(liver, ellipsoid(canvas.atlas, (-112, 0, -150), (22, 42, length)), 18)
        liver += np.float32(rng.uniform(0.8, 2.2)) * canvas.noise(38)
        cirrhosis = rng.random() < 0.12
        if cirrhosis:
            liver += np.float32(1.8) * canvas.noise(13)
        gap = torso.gap
        for other, fat, blend in (
            (self.kidneys[0].field, gap(1.0, 8), 8),
            (self.stomach, gap(0.5, 5), 8),
            (self.colon, gap(0.5, 5), 6),
            (torso.column, 11, 8),
            (canvas.tube_field(torso.aorta), 5, 6),
            (canvas.tube_field(torso.esophagus), 3, 6),
        ):
            liver = without(liver, other, fat, blend)
        liver = intersection(liver, torso.below + np.float32(2.0), 4)
        self.liver = intersection(liver, torso.cavity + np.float32(gap(-0.8, 2.5)), 5)

    # -- paint --------------------------------------------------------------------------------------------------

    def _paint_mesentery(self) -> None:
        """Paint small vessels in the fat of the abdomen."""
        canvas, rng = self.canvas, self.rng
        box, depth = canvas.depth(self.torso.abdomen + 3)
        inside = np.zeros(canvas.hu.shape, bool)
        inside[box] = depth > 0
        vessels = []
        for n in range(24):  # from the root of the mesentery, and around the stomach
            root = (rng.normal(4, 12), rng.normal(-25, 8), rng.uniform(-240, -115))
            if n >= 16:
                root = (rng.normal(45, 30), rng.normal(-30, 25), rng.uniform(-120, -50))
            aim = (rng.normal(0, 1), rng.uniform(-1, -0.1), rng.normal(-0.5, 0.6))
            vessels += grow(rng, root, aim, 30, rng.uniform(1.4, 2.8), 3, 0.7)
        canvas.paint_tubes(vessels, "small_vessel", inside)

    def _paint_small_bowel(self) -> None:
        """Paint short loops at jittered positions, each flattened against its neighbors where they meet."""
        canvas, rng = self.canvas, self.rng
        loops = [
            np.array(  # duodenum
                [
                    (-28, -36, -108, 11),
                    (-46, -14, -118, 12),
                    (-46, 2, -150, 12),
                    (-30, 8, -172, 11),
                    (10, 2, -172, 10),
                ]
            )
        ]
        for place in np.stack(np.meshgrid((-60, -15, 30, 70), (-70, -30), (-260, -222, -184, -146)), -1).reshape(-1, 3):
            keep, p = rng.random() < 1 - 0.4 * self.torso.visceral, place + rng.normal(0, 9, 3)
            radius, loop = rng.uniform(10, 14.5), []
            aim = rng.normal(0, 1, 3)
            for _ in range(4):
                loop.append((*p, radius * rng.uniform(0.85, 1.1)))
                aim = aim / np.linalg.norm(aim) + rng.normal(0, 0.6, 3)
                p = p + 20 * aim / np.linalg.norm(aim)
            if keep and (place[0] > 0 or place[2] < -160):
                loops.append(np.array(loop))
        first = np.full(canvas.shape, 99, np.float32)
        second = first
        for tube in canvas.tube_fields([spline(loop, 10) for loop in loops]):
            second = np.minimum(second, np.maximum(first, tube))
            first = np.minimum(first, tube)
        field = np.maximum(first, (first - second) / 2 + np.float32(0.6))
        field = np.maximum(field, self.torso.abdomen + 4)
        for other in (self.colon, self.stomach, self.liver, self.kidneys[0].field, self.kidneys[1].field):
            field = without(field, other, 2)
        self._paint_hollow(field, 2.2, gas=0.12)

    def _paint_hollow(self, field: np.ndarray, wall: float | np.ndarray, stool: bool = False, gas: float = 0.5) -> None:
        """Paint a wall filled with fluid, oral contrast or stool, with gas on top: the patient is supine."""
        canvas, rng = self.canvas, self.rng
        name = "gut_contrast" if rng.random() < 0.25 else "gut_fluid"
        gassy = rng.uniform(0, 1)
        lumps, regions = canvas.noise(7.5), canvas.noise(60)
        canvas.paint_field(field, "gut_wall")
        box, depth = canvas.depth(field + np.asarray(wall, np.float32))
        lump, region = canvas.sample(lumps, box), canvas.sample(regions, box)
        y = canvas.axes[1][box[1]][None, :, None]
        if stool:
            canvas.paint(box, depth, "stool", np.float32(canvas.values["stool"]) + 30 * lump)
            bubbles = lump + np.float32(0.9) * region - np.float32(0.012) * (20 + y) - np.float32(0.2 + gassy)
            canvas.paint(box, np.minimum(depth, bubbles * 3), "gut_gas")
            return
        canvas.paint(box, depth, name, np.float32(canvas.values[name]) + 6 * lump)
        inside = depth > 0
        if inside.any():
            level = np.quantile(np.broadcast_to(y, depth.shape)[inside], 0.05 + gas * gassy)
            above = (np.float32(level) - y) / np.float32(canvas.spacing[1])
            canvas.paint(box, np.minimum(depth, above), "gut_gas")

    def _paint_pancreas(self) -> None:
        canvas = self.canvas
        thick = self.rng.uniform(0.75, 1.15)
        path = [
            (-24, -12, -132, 11 * thick),
            (-16, -18, -116, 13 * thick),
            (6, -24, -106, 10 * thick),
            (34, -16, -96, 10.5 * thick),
            (62, 8, -86, 10 * thick),
            (84, 26, -76, 8 * thick),
        ]
        field = canvas.tube_field(spline(path, 12), 8) + np.float32(1.6) * canvas.noise(13)
        for other in (self.stomach, self.spleen, self.kidneys[1].field):
            field = without(field, other, 2)
        canvas.paint_field(field, "pancreas")

    def _paint_kidney(self, kidney: _Kidney) -> None:
        canvas, soft = self.canvas, self.canvas.voxel_mm
        box, _ = canvas.paint_field(kidney.field, "kidney_cortex")
        p = [canvas.sample(a, box) - np.float32(c) for a, c in zip(canvas.atlas, kidney.center, strict=True)]
        u, v, w = (r[0] * p[0] + r[1] * p[1] + r[2] * p[2] for r in kidney.axes.astype(np.float32))
        beneath = -canvas.sample(kidney.field, box) - np.float32(6)
        lobes = np.cos(3 * np.arctan2(v, u - 6)) * np.float32(0.6) + np.cos(w * np.float32(2 * np.pi / 24))
        canvas.paint(box, np.minimum(beneath, (lobes + np.float32(0.35)) * 5) / soft, "kidney_medulla")
        sinus = ellipsoid((u, v, w), (13, 0, 0), (15, 7 + 4 * self.torso.visceral, 22))
        inside = (beneath > -8).astype(np.float32)
        canvas.paint(box, np.maximum(-sinus / soft, -8), "visceral_fat", where=inside)
        pelvis = np.minimum(
            ellipsoid((u, v, w), (15, 0, 0), (12, 4.5, 9)),
            ellipsoid((u, np.abs(v), np.abs(w)), (6, 2, 13), (4, 4, 5)),
        )
        canvas.paint(box, -pelvis / soft, "kidney_pelvis")

    def _paint_adrenals(self) -> None:
        limbs = []
        for kidney, side in zip(self.kidneys, (-1, 1), strict=True):
            top = kidney.center + np.array([-side * 26, -14, 52])
            for limb in ((-side * 10, 10, -16), (side * 8, 14, -20)):
                limbs.append(np.array([[*top, 2.6], [*(top + np.array(limb)), 2.0]]))
        self.canvas.paint_tubes(limbs, "adrenal")

    def _paint_branches(self) -> None:
        """Paint arteries and veins outside the liver."""
        canvas, s = self.canvas, self.torso.spine_y
        celiac = (10, s(-92) - 55, -90, 3.5)
        arteries: list[list[tuple[float, ...]]] = [
            [(12, s(-92) - 38, -92, 4), celiac, (-10, -14, -88, 3), (-28, -20, -80, 2.5)],
            [celiac, (40, -6, -88, 2.8), (70, 18, -78, 2.4), (86, 32, -70, 2)],
            [(12, s(-105) - 38, -105, 4), (10, -18, -125, 3.8), (4, -32, -180, 3.5), (0, -40, -240, 2.6)],
        ]
        renal_veins: list[list[tuple[float, ...]]] = []
        for kidney, x in zip(self.kidneys, (-18, -14), strict=True):
            z = kidney.center[2]
            hilum = kidney.center + kidney.axes[0] * 16
            middle = ((x + hilum[0]) / 2, min(s(z) - 36, hilum[1]), z + 4, 4.5)
            renal_veins.append([(x, s(z) - 34, z + 6, 5), middle, (*hilum, 4)])
            arteries.append([(12, s(z) - 30, z + 10, 3), (*(hilum + np.array([0, 4, 2])), 2.4)])
        portal = [
            [(-6, -32, -240, 4), (-2, -28, -180, 5), (4, -14, -112, 6.5)],
            [(88, 34, -72, 3), (50, 6, -92, 4.2), (6, -12, -106, 6)],
        ]
        canvas.paint_tubes([spline(path, 8) for path in portal], "portal_vein")
        canvas.paint_tubes([spline(path, 8) for path in renal_veins], "vena_cava")
        canvas.paint_tubes([spline(path, 9) for path in arteries], "aorta")

    def paint_liver(self) -> tuple[Box, np.ndarray]:
        """Paint liver, fissures, vessels, gallbladder and vena cava.

        :returns: the box of voxels around the liver, and the liver's mask in this box: it includes the liver's own
            vessels, but not the vena cava, the fissures and the gallbladder.
        """
        canvas, rng, torso = self.canvas, self.rng, self.torso
        box, depth = canvas.paint_field(self.liver, "liver")
        inside, deep = np.zeros((2, *canvas.hu.shape), bool)
        inside[box], deep[box] = depth > 0, depth > 1
        gap = torso.gap
        for center, radii, turn in (
            ((rng.normal(4, 5), -62, -92), (gap(1.5, 4.5), 34, rng.uniform(22, 42)), rng.normal(0, 12)),  # teres
            ((2, -14, -62), (24, gap(1.2, 2.6), 24), rng.normal(-18, 8)),  # ligamentum venosum
            ((-22, -14, -86), (20, gap(6, 10), 11), 0),  # porta hepatis
            ((-48, -48, -112), (gap(1.2, 3), 26, 14), 40),  # gallbladder fossa
        ):
            reach = max(radii) + 3
            part, p = canvas.coordinates(np.subtract(center, reach), np.add(center, reach))
            cleft = -ellipsoid(p, center, radii, rotation((0, 0, 1), turn)) / canvas.voxel_mm
            canvas.paint(part, cleft, "visceral_fat", where=inside[part])
        trunk = spline([(4, -12, -108, 6.8), (-12, -12, -92, 6.8), (-26, -12, -78, 6.5)], 6)
        canvas.paint_tubes([trunk], "portal_vein")
        portal, hepatic = [], []
        for aim, length, radius, generations in (
            ((-0.9, 0.35, 0.15), 36, 5.6, 5),
            ((-0.8, -0.45, -0.15), 34, 4.6, 5),
            ((0.55, -0.8, 0.35), 36, 4.8, 4),
        ):
            portal += grow(rng, trunk[-1, :3], aim, length, radius, generations, 0.72)
        root = (-23, torso.spine_y(-14) - 44, -16)
        for aim in ((-0.9, 0.3, -0.35), (-0.45, -0.7, -0.55), (0.5, -0.75, -0.25), (-0.6, 0.55, -0.7)):
            hepatic += grow(rng, root, aim, 36, rng.uniform(3.6, 5.0), 5, 0.72)
        canvas.paint_tubes(portal, "portal_vein", deep)
        canvas.paint_tubes(hepatic, "hepatic_vein", deep)
        canvas.paint_tubes([torso.cava], "vena_cava")
        self._paint_gallbladder()
        own = [TISSUES[name] for name in ("liver", "portal_vein", "hepatic_vein")]
        return box, inside[box] & np.isin(canvas.tissue[box], own)

    def _paint_gallbladder(self) -> None:
        canvas, rng = self.canvas, self.rng
        full, wall = rng.uniform(0.6, 1.25), rng.uniform(0.8, 1.6)
        removed, stones = rng.random() < 0.12, rng.random() < 0.15
        nodes = np.array([(-40, -26, -98, 4 * full), (-50, -42, -110, 11 * full), (-60, -64, -122, 14 * full)])
        for _ in range(3):  # toward the liver's surface, where its fossa is
            away = canvas.nearest(self.liver, nodes[1:]).mean()
            nodes[:, 0] -= np.clip(away - 6 * full, -15, 15)
        path = spline(nodes, 5)
        places = path[-1, :3] + np.array([0, 6, 0]) + rng.normal(0, 4, (int(rng.integers(1, 5)), 3))
        if removed:
            return
        canvas.paint_tubes([path + np.array([0, 0, 0, wall])], "gut_wall")
        canvas.paint_tubes([path], "gallbladder")
        if stones:
            canvas.paint_tubes([np.array([[*at, 3.5], [*at, 3.5]]) for at in places], "gallstone")
