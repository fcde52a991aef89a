# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark speed`` measures what it claims to, with the right numbers of windows and operations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from batch_toys import SHAPE, phantom, write_model

from LiverXAILib.benchmarks import machine, speed, speed_peers
from LiverXAILib.benchmarks.machine import convolution_rate
from LiverXAILib.cli import main
from LiverXAILib.inference import segment
from LiverXAILib.models import load_model
from LiverXAILib.volumes.box import bounding_box
from LiverXAILib.volumes.io import write_volume
from LiverXAILib.volumes.volume import Grid, Volume


def test_one_run_measures_stages_a_fresh_process_and_says_so_in_a_table(tmp_path, capsys, monkeypatch):
    # The cost of a real limit is measured in the last of these tests.
    monkeypatch.setattr(machine, "_CONVOLUTIONS", ((8, 8),))
    write_volume(phantom(), tmp_path / "ct.nrrd")
    arguments = ["--image", tmp_path / "ct.nrrd", "--model", write_model(tmp_path / "model"), "-o", tmp_path / "out"]
    flags = ["--device", "cpu", "--rounds", "1", "--no-compare", "--no-growth"]
    assert main(["benchmark", "speed", *map(str, arguments), *flags]) == 0
    result = json.loads((tmp_path / "out" / "speed.json").read_text())
    row = result["backends"]["torch float32"]
    (stage,) = row["stages"]
    voxels = np.prod(SHAPE)
    # Convolutions of 27 weights in two levels of two channels, the transposed one and the head.
    expected = 2 * voxels * (27 * (2 + 8) + 4 + 4 + 27 * 4 / 8)
    assert stage["gflop"] == pytest.approx(expected / 1e9, rel=0.01)
    assert row["seconds"] >= row["network_seconds"] > 0
    assert stage["percent_of_limit"] == pytest.approx(stage["gflops"] / result["limit_gflops"] * 100, rel=0.01)
    fresh = result["fresh"]
    assert fresh["first_seconds"] > 0
    # A process with torch is larger than this.
    assert fresh["peak_mib"] > 150
    assert len(result["around"]) == 5
    assert all(seconds > 0 for seconds in result["around"].values())
    text = (tmp_path / "out" / "speed.md").read_text()
    assert text in capsys.readouterr().out
    assert "torch float32" in text
    assert "% of limit" in text


def test_ratios_count_the_same_parts_on_both_sides():
    whole = speed.Peer("whole", lambda: None, 100, around=10.0)
    network = speed.Peer("network", lambda: None, 100)
    rows = [speed._peer_row(peer, [0.3, 0.2, 0.4], ours=2.0, ours_network=1.0) for peer in (whole, network)]
    assert rows[0]["seconds"] == pytest.approx(30.0)
    assert rows[0]["times_ours"] == pytest.approx(15.0)
    assert rows[1]["seconds"] == pytest.approx(20.0)
    assert rows[1]["times_ours"] == pytest.approx(20.0)
    assert rows[0]["extrapolated"]


def test_peers_read_as_many_windows_as_their_libraries_would(tmp_path, monkeypatch):
    monkeypatch.setattr(speed_peers, "_NNUNET_FEATURES", (2, 4, 4))
    monkeypatch.setattr(speed_peers, "_NNUNET_PATCH", (16, 16, 16))
    monkeypatch.setattr(speed_peers, "_NNUNET_SPACING", (6.0, 4.0, 4.0))
    monkeypatch.setattr(speed_peers, "_TOTAL_PATCH", (12, 16, 32))  # one axis is halved less often
    monkeypatch.setattr(speed_peers, "_TOTAL_CLASSES", 5)
    monkeypatch.setattr(speed_peers, "_ZOO_WINDOW", 32)
    monkeypatch.setattr(speed_peers, "_ZOO_SPACING", (4.0, 4.0, 6.0))
    model = load_model(write_model(tmp_path / "model"))
    volume = phantom()
    liver = bounding_box(segment(volume, model, device="cpu").mask("liver"))
    found = {peer.name: peer for peer in speed_peers.peers(volume, model, liver, tmp_path / "networks")}
    assert len(found) == 5
    for peer in found.values():
        peer.window()
    windows = {name.split(",")[0]: peer.windows for name, peer in found.items()}
    # 16 x 32 x 32 voxels: MONAI pads to one window; nnU-Net steps by half of 16.
    assert windows["MONAI sliding window"] == windows["our last network"] == 1
    assert windows["nnU-Net 3d_fullres"] == 1 * 3 * 3
    # 96 x 128 x 128 mm at 3 mm: 32 x 43 x 43 voxels, in steps of 0.8 windows of 12 x 16 x 32.
    assert windows["TotalSegmentator-like 3 mm recipe"] == 4 * 4 * 2
    assert 1 <= windows["the same nnU-Net by LiverXAI"] <= 9
    zoo = found["MONAI sliding window, model-zoo U-Net"]
    assert zoo.around > 0
    table = [speed._peer_row(peer, [1.0], 1.0, 1.0) for peer in found.values()]
    assert all(row["times_ours"] >= 1 for row in table)


def test_a_peer_whose_library_is_missing_is_skipped_with_the_reason(tmp_path, monkeypatch):
    def missing(*_):
        raise ModuleNotFoundError("no", name="monai")

    for name in ("_monai_zoo", "_monai_same_network", "_total", "_nnunet_full", "_nnunet_box"):
        monkeypatch.setattr(speed_peers, name, missing)
    found = list(speed_peers.peers(phantom(), None, (slice(0, 1),) * 3, tmp_path))
    assert len(found) == 5
    assert found[0] == (speed_peers.MONAI_ZOO, "skipped: monai is not installed")


def test_the_synthetic_ct_is_the_phantom_on_other_voxels():
    coarse = phantom()
    grown = speed.synthetic_ct(coarse, (40, 64, 64), (2.0, 2.0, 2.4))
    assert grown.shape == (40, 64, 64)
    assert grown.array.dtype == np.int16
    inner = np.abs(grown.array[8:32, 16:48, 16:48].astype(float).mean() - coarse.array[3:13, 8:24, 8:24].mean())
    assert inner < 30
    # Beyond the phantom its end slices are replicated.
    longer = speed.synthetic_ct(coarse, (80, 64, 64), (2.0, 2.0, 2.4))
    assert abs(longer.array[0].mean() - coarse.array[0].mean()) < 30


def test_growth_is_measured_in_windows_and_lesions_and_drawn(tmp_path):
    model = load_model(write_model(tmp_path / "model"))
    volume = Volume(np.tile(phantom().array, (4, 1, 1)), phantom().ijk_to_lps)
    windows = speed._window_growth(volume, model, torch.device("cpu"))
    counts = [row["windows"] for row in windows]
    assert counts[0] == 1
    assert counts == sorted(set(counts))
    assert windows[0]["voxels_read"] == volume.array.size
    assert windows[-1]["voxels_read"] > windows[0]["voxels_read"]
    lesions = speed._lesion_growth(volume, segment(volume, model, device="cpu"))
    assert [row["lesions"] for row in lesions] == list(speed.LESIONS)
    size = {"image_mib": 1.0, "peak_mib": 200.0, "slices": 8, "windows": [1], "network_seconds": 1, "warm_seconds": 2}
    growth = {"size": [size, {**size, "image_mib": 2.0}], "windows": windows, "lesions": lesions}
    speed.draw_growth(growth, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "| 64 |" in "\n".join(speed._growth_tables(growth))


def test_painted_lesions_are_balls_of_that_size():
    labels = np.zeros((30, 30, 30), np.uint8)
    grid = Grid(labels.shape, np.diag([1.0, 1.5, 2.0, 1.0]))
    speed._paint_ball(labels, np.array([15, 15, 15]), grid, 6.0, 2)
    volume = float((labels == 2).sum()) * grid.voxel_volume_mm3
    assert volume == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.1)


def test_the_limit_is_a_plausible_rate():
    assert convolution_rate(repeats=1) > 1e8
