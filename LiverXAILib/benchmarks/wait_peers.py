# SPDX-License-Identifier: Apache-2.0
"""Programs built with other libraries that read a CT file and write a label file, for ``benchmark wait``.

Their weights are random: only time is measured. Each prints, as its last line, the seconds it took to make the random
weights, which a user would have on disk, and its peak memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .timeline import peak_mib

MONAI = "MONAI, model-zoo U-Net at 1.5 x 1.5 x 2 mm"
TOTAL = "nnU-Net's predictor, TotalSegmentator-like 3 mm recipe of 118 classes"


def run_monai(image: str, folder: str) -> None:
    """Read, resample, run the sliding window with half overlap, resample to the CT's voxels, take the argmax, write."""
    import torch
    from monai.data import MetaTensor
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import UNet
    from monai.transforms import LoadImage, SaveImage, ScaleIntensityRange, Spacing, SpatialResample

    network = UNet(3, 1, 3, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch").eval()
    ct = LoadImage(image_only=True, ensure_channel_first=True)(image)
    seen = ScaleIntensityRange(-57, 164, 0, 1, clip=True)(Spacing((1.5, 1.5, 2.0), mode="bilinear")(ct))
    with torch.inference_mode():
        scores = sliding_window_inference(seen[None], (96, 96, 96), 1, network, overlap=0.5, mode="gaussian")[0]
    back = SpatialResample(mode="bilinear")(
        MetaTensor(scores, affine=seen.affine), dst_affine=ct.affine, spatial_size=ct.shape[1:]
    )
    SaveImage(folder, separate_folder=False, print_log=False)(back.argmax(0, keepdim=True))
    _tell(0.0)


def run_nnunet(image: str, folder: str) -> None:
    """Run like TotalSegmentator's fast mode: one network at 3 mm, with nnU-Net's own reader, predictor and writer."""
    started = time.perf_counter()
    from .speed_peers import quiet, random_total

    trained = random_total(Path(folder))
    prepared = time.perf_counter() - started
    with quiet():
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(
            tile_step_size=0.8, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(trained), (0,), "checkpoint_final.pth")
        predictor.predict_from_files_sequential([[image]], [str(Path(folder) / "labels")], overwrite=True)
    _tell(prepared)


#: The programs by name.
PROGRAMS: dict[str, Callable[[str, str], None]] = {MONAI: run_monai, TOTAL: run_nnunet}


def _tell(prepared_seconds: float) -> None:
    sys.stdout.write(json.dumps({"prepared_seconds": prepared_seconds, "peak_mib": peak_mib()}) + "\n")
