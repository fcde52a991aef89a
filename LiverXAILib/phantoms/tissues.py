# SPDX-License-Identifier: Apache-2.0
"""The tissues of the phantom and their appearance in CT."""

from __future__ import annotations

#: Names of the voxel values of :attr:`Phantom.tissues`.
TISSUES: dict[str, int] = {
    name: value
    for value, name in enumerate(
        (
            "air",
            "table",
            "skin",
            "subcutaneous_fat",
            "visceral_fat",
            "muscle",
            "cortical_bone",
            "cancellous_bone",
            "cartilage",
            "disc",
            "spinal_canal",
            "lung",
            "lung_vessel",
            "heart_muscle",
            "heart_blood",
            "aorta",
            "vena_cava",
            "portal_vein",
            "hepatic_vein",
            "small_vessel",
            "liver",
            "lesion",
            "lesion_rim",
            "lesion_core",
            "lesion_calcification",
            "cyst",
            "gallbladder",
            "gallstone",
            "spleen",
            "kidney_cortex",
            "kidney_medulla",
            "kidney_pelvis",
            "adrenal",
            "pancreas",
            "gut_wall",
            "gut_fluid",
            "gut_contrast",
            "gut_gas",
            "stool",
            "effusion",
            "ascites",
        )
    )
}

PHASES = ("native", "arterial", "portal")

#: Mean HU and its spread across patients, for all phases or by phase: native, arterial (late), portal venous.
HU: dict[str, tuple[float, float] | dict[str, tuple[float, float]]] = {
    "air": (-1000, 0),
    "table": (150, 70),
    "skin": (30, 15),
    "subcutaneous_fat": (-106, 5),
    "visceral_fat": (-100, 6),
    "muscle": {"native": (50, 6), "arterial": (55, 6), "portal": (60, 6)},
    "cortical_bone": (520, 90),
    "cancellous_bone": (170, 50),
    "cartilage": (95, 15),
    "disc": (75, 10),
    "spinal_canal": (25, 6),
    "lung": (-850, 25),
    "lung_vessel": {"native": (30, 10), "arterial": (150, 40), "portal": (110, 20)},
    "heart_muscle": {"native": (45, 5), "arterial": (100, 15), "portal": (105, 12)},
    "heart_blood": {"native": (40, 5), "arterial": (250, 60), "portal": (150, 15)},
    "aorta": {"native": (40, 5), "arterial": (300, 50), "portal": (155, 18)},
    "vena_cava": {"native": (38, 5), "arterial": (80, 25), "portal": (135, 18)},
    "portal_vein": {"native": (38, 5), "arterial": (105, 30), "portal": (170, 16)},
    "hepatic_vein": {"native": (36, 5), "arterial": (60, 8), "portal": (160, 18)},
    "small_vessel": {"native": (38, 5), "arterial": (180, 40), "portal": (140, 20)},
    "liver": {"native": (57, 6), "arterial": (75, 9), "portal": (108, 10)},
    "gallbladder": (10, 6),
    "gallstone": (250, 200),
    "spleen": {"native": (48, 4), "arterial": (120, 15), "portal": (120, 10)},
    "kidney_cortex": {"native": (33, 4), "arterial": (170, 25), "portal": (185, 20)},
    "kidney_medulla": {"native": (30, 4), "arterial": (75, 15), "portal": (160, 20)},
    "kidney_pelvis": (8, 5),
    "adrenal": {"native": (28, 8), "arterial": (60, 10), "portal": (70, 10)},
    "pancreas": {"native": (38, 7), "arterial": (95, 12), "portal": (90, 12)},
    "gut_wall": {"native": (38, 5), "arterial": (75, 12), "portal": (85, 12)},
    "gut_fluid": (15, 8),
    "gut_contrast": (260, 90),
    "gut_gas": (-950, 20),
    "stool": (20, 20),
    "effusion": (8, 6),
    "ascites": (8, 5),
}

#: Standard deviation in HU of the texture inside a tissue (if it is not zero).
TEXTURE = {
    "subcutaneous_fat": 6,
    "visceral_fat": 12,
    "muscle": 9,
    "cortical_bone": 60,
    "cancellous_bone": 28,
    "lung": 28,
    "heart_blood": 6,
    "liver": 4,
    "lesion": 6,
    "lesion_rim": 6,
    "lesion_core": 4,
    "spleen": 3,
    "kidney_cortex": 8,
    "kidney_medulla": 8,
    "pancreas": 12,
    "gut_fluid": 8,
    "gut_contrast": 30,
    "table": 30,
}

#: Difference from the liver in HU (lowest, highest) by kind and phase; a cyst has its own HU.
LESION_CONTRAST: dict[str, dict[str, tuple[float, float]]] = {
    "hypodense": {"native": (-25, -10), "arterial": (-45, -18), "portal": (-70, -22)},
    "hyperdense": {"native": (10, 20), "arterial": (25, 70), "portal": (18, 45)},
}
#: Lowest and highest HU of a cyst.
CYST_HU = (0.0, 14.0)
