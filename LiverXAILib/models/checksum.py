# SPDX-License-Identifier: Apache-2.0
"""Checksums of files."""

from __future__ import annotations

from pathlib import Path

import pooch


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return pooch.file_hash(str(path), alg="sha256")
