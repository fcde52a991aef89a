# SPDX-License-Identifier: Apache-2.0
"""Image files: damaged, truncated, with invalid headers, or not regular files."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from LiverXAILib.volumes.io import read_volume
from LiverXAILib.volumes.volume import Volume

from .kind import BrokenPromiseError, Generator, Kind
from .mutate import damage, flip_bits

_WORDS = (
    *("0", "-1", "1", "nan", "inf", "1e999", "1e-320", "4294967296", "99999999999999999999", "A" * 5000, ""),
    *("-2147483648", "none", "(0,0,0)", "/etc/passwd", "../secret.raw", "LIST", "%05d.raw 0 9 1", "\x1b[2J", "65535"),
)
#: Endings; whether a checksum or the exact length reveals damaged voxels.
_FORMATS = {
    ".nii": False,
    ".nii.gz": True,
    ".nrrd": False,
    "-gzip.nrrd": True,
    ".mha": False,
    "-zlib.mha": True,
    ".mhd": False,
    "-zlib.mhd": True,
}


class Images(Kind):
    """Reads images; a damaged stream must be refused, never read as other voxels."""

    limit_s = 30.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rng = np.random.default_rng(0)
        k, j, i = np.meshgrid(*(np.linspace(-1, 1, n) for n in (12, 16, 18)), indexing="ij")
        body = np.where(k**2 + j**2 + i**2 < 0.8, 60, -1000) + rng.integers(-20, 20, k.shape)
        image = sitk.GetImageFromArray(body.astype(np.int16))
        image.SetSpacing((0.8, 0.9, 2.5))
        image.SetOrigin((-10.0, 20.0, 30.0))
        for ending in _FORMATS:
            sitk.WriteImage(image, str(folder / f"ct{ending}"), useCompression=ending.split(".")[0] != "")
        self.original = read_volume(folder / "ct.nii")

    def run(self, rng: Generator, folder: Path) -> str:
        ending = list(_FORMATS)[int(rng.integers(len(_FORMATS)))]
        for path in self.base.glob("ct*"):
            if path.name.split(".")[0] == f"ct{ending}".split(".")[0]:
                shutil.copyfile(path, folder / path.name)
        path = folder / f"ct{ending}"
        how = int(rng.integers(6))
        if how == 0 and _FORMATS[ending]:
            self._flip_stream(rng, path)
            return self._same_or_refused(path)
        if how == 1:
            return self._cut(rng, path)
        if how == 2:
            self._change_words(rng, path)
        elif how == 3:
            self._damage(rng, path)
        elif how == 4 and rng.random() < 0.3:
            self._replace_by_special(rng, path)
        else:
            path.write_bytes(rng.bytes(int(rng.integers(0, 3000))))
        return self._sane(read_volume(path))

    def _flip_stream(self, rng: Generator, path: Path) -> None:
        data = self._voxels_file(path)
        content = data.read_bytes()
        start = 10
        if data.suffix in (".nrrd", ".mha"):
            # The voxels follow an empty line, or the line "ElementDataFile".
            start = max(content.find(b"\n\n") + 2, content.find(b"LOCAL\n") + 6)
        data.write_bytes(flip_bits(rng, content, start))

    def _cut(self, rng: Generator, path: Path) -> str:
        data = self._voxels_file(path)
        content = data.read_bytes()
        data.write_bytes(content[: int(rng.integers(0, len(content)))])
        return self._same_or_refused(path)

    def _voxels_file(self, path: Path) -> Path:
        others = [other for other in path.parent.iterdir() if other != path]
        return others[0] if path.suffix == ".mhd" and others else path

    def _same_or_refused(self, path: Path) -> str:
        volume = read_volume(path)
        if not np.array_equal(volume.array, self.original.array):
            raise BrokenPromiseError(f"damaged voxels of {path.name} were read")
        return "read unharmed"

    def _change_words(self, rng: Generator, path: Path) -> None:
        content = path.read_bytes()
        if path.name.endswith(".nii.gz"):
            header = bytearray(gzip.decompress(content))
            path.write_bytes(gzip.compress(self._change_numbers(rng, header), 1))
        elif path.suffix == ".nii":
            path.write_bytes(self._change_numbers(rng, bytearray(content)))
        else:
            end = max(content.find(b"\n\n"), content.find(b"ElementDataFile"), 1)
            end = content.find(b"\n", end) if content.find(b"\n", end) >= 0 else len(content)
            header, rest = content[:end].decode("latin-1"), content[end:]
            places = list(re.finditer(r"[^\s:=,()]+", header))
            for place in sorted(rng.choice(len(places), min(2, len(places)), replace=False), reverse=True):
                word = _WORDS[int(rng.integers(len(_WORDS)))]
                header = header[: places[place].start()] + word + header[places[place].end() :]
            path.write_bytes(header.encode("latin-1") + rest)

    @staticmethod
    def _change_numbers(rng: Generator, data: bytearray) -> bytes:
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(0, 87)) * 4
            value = rng.choice([0, -1, 2**31 - 1, 1, 65536, 0x7FC00000, 0x7F800000, int(rng.integers(2**31))])
            data[at : at + 4] = int(value).to_bytes(4, "little", signed=bool(value < 0))
        return bytes(data)

    def _damage(self, rng: Generator, path: Path) -> None:
        files = list(path.parent.iterdir())
        one = files[int(rng.integers(len(files)))]
        one.write_bytes(damage(rng, one.read_bytes()))

    def _replace_by_special(self, rng: Generator, path: Path) -> None:
        path.unlink()
        how = int(rng.integers(4))
        if how == 0:
            os.mkfifo(path)
        elif how == 1:
            path.symlink_to("/dev/zero")
        elif how == 2:
            path.symlink_to(path.name)
        else:
            path.mkdir()

    def _sane(self, volume: Volume) -> str:
        if volume.array.ndim != 3 or volume.array.size == 0 or not np.isfinite(volume.array).all():
            raise BrokenPromiseError(
                f"an image of shape {volume.array.shape} with values that are not numbers was read"
            )
        if not np.isfinite(volume.ijk_to_lps).all() or not all(mm > 0 for mm in volume.spacing):
            raise BrokenPromiseError(f"a place in space that makes no sense was read: {volume.ijk_to_lps.tolist()}")
        return "read"
