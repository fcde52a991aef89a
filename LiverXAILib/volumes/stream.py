# SPDX-License-Identifier: Apache-2.0
"""Bytes of image files: from regular files only, decompressed and verified by the stream's checksum and length.

No C++ library opens a file before its size and its compressed data have been found to match the header.
"""

from __future__ import annotations

import bz2
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ..errors import InputError, LiverXAIError
from .memory import require_memory

fast_zlib: Any = zlib
with suppress(ImportError):  # the same results, faster
    from isal import isal_zlib

    fast_zlib = isal_zlib

Compression = Literal["gzip", "zlib", "bzip2"]

_CHUNK = 1 << 20
#: The largest expansion of one compressed byte. Deflate: 1032 (zlib's documentation). bzip2: 900,000, measured on runs
#: of zeros.
_MOST_EXPANSION = {"gzip": 1032, "zlib": 1032, "bzip2": 2_000_000}
GZIP_MAGIC = b"\x1f\x8b"
#: How each member of a stream that may have several begins.
_MAGIC = {"gzip": GZIP_MAGIC, "bzip2": b"BZh"}


class HeaderError(ValueError):
    """What is wrong with a file, as the predicate of a sentence that begins with the file's name."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error while a file is read into an :class:`~LiverXAILib.errors.InputError` that names the file."""
    try:
        yield
    except LiverXAIError:
        raise
    except HeaderError as error:
        raise InputError(f"{path} {error}") from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except MemoryError as error:
        raise InputError(f"{path} needs more memory than is free. Close other programs or crop the image.") from error
    except Exception as error:
        raise InputError(
            f"{path} is damaged or incomplete and cannot be read ({type(error).__name__}). Copy or export it again."
        ) from error


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; not a folder, pipe, socket or device, which could block or never end.

    :raises LiverXAILib.errors.InputError: it is something else.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file (it is a folder, pipe or device).")
    return os.fdopen(descriptor, "rb")


def detached_file(header: Path, name: str) -> Path:
    """The file with the voxels that a header names: a plain name, in the header's own folder.

    :raises HeaderError: it is elsewhere, or is a pattern or list of several files.
    """
    if name.split(None, 1)[:1] == ["LIST"] or "%" in name:
        raise HeaderError("spreads its voxels over several files. Convert it to a single file.")
    if not name or name in (".", "..") or name != Path(name).name or "\\" in name or ":" in name or "\0" in name:
        raise HeaderError(f"names {shown(name)} as the file with its voxels: only a file in the same folder is read.")
    path = header.parent / name
    if path.is_symlink() and path.resolve().parent != header.parent.resolve():
        raise HeaderError(f"names {shown(name)} as the file with its voxels, which is a link to another folder.")
    return path


def shown(text: str) -> str:
    """Text from a file for use in a message: shortened, and without characters that a terminal could interpret."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


class ByteStream:
    """The bytes of an open file from its current position on, decompressed.

    After :meth:`finish`, :attr:`trailing` is the number of bytes that follow the end of the compressed stream.
    """

    def __init__(self, file: BinaryIO, compression: Compression | None, limit: int | None = None) -> None:
        """`limit`: the number of bytes of the file that belong to the stream; None: all of them."""
        self.trailing = 0
        self._file, self._limit = file, limit
        self._blocks = self._chunks() if compression is None else self._decompressed(compression)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end of the stream."""
        buffer = bytearray(size)
        return bytes(buffer[: self.read_into(memoryview(buffer))])

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as there are bytes; returns their number."""
        done = 0
        while done < len(buffer):
            block = self._rest or next(self._blocks, b"")
            if not block:
                break
            part = block[: len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)
            self._rest = block[len(part) :]
        return done

    def finish(self) -> None:
        """Read on to the end of the stream, so that its checksum is verified.

        :raises HeaderError: there is more in it, or its checksum does not match.
        """
        if self._rest or any(self._blocks):
            raise HeaderError("holds more voxels than its header specifies: it is damaged. Copy or export it again.")

    def _chunks(self) -> Iterator[bytes]:
        left = self._limit
        while chunk := self._file.read(_CHUNK if left is None else min(_CHUNK, left)):
            if left is not None:
                left -= len(chunk)
            yield chunk

    def _decompressed(self, compression: Compression) -> Iterator[bytes]:
        chunks = self._chunks()
        data = next(chunks, b"")
        while True:  # a gzip or bzip2 stream may have several members
            decompressor, more = _decompressor(compression), False
            while not decompressor.eof:
                if not data and not more and not (data := next(chunks, b"")):
                    raise HeaderError("is incomplete: its compressed voxels end prematurely. Copy or export it again.")
                try:
                    block = decompressor.decompress(data, _CHUNK)
                except (zlib.error, fast_zlib.error, OSError, EOFError, ValueError) as error:
                    raise HeaderError(
                        "is damaged: its compressed voxels cannot be decompressed. Copy or export it again."
                    ) from error
                data = getattr(decompressor, "unconsumed_tail", b"")
                # Having read all its input, a decompressor may still hold bytes that exceeded the limit.
                more = len(block) == _CHUNK
                if block:
                    yield block
            data = decompressor.unused_data
            magic = _MAGIC.get(compression, b"")
            while len(data) < len(magic) and (rest := next(chunks, b"")):  # it may begin at the end of a chunk
                data += rest
            if not magic or not data.startswith(magic):
                self.trailing = len(data) + sum(map(len, chunks))
                return


def _decompressor(compression: Compression) -> Any:
    if compression == "bzip2":
        return bz2.BZ2Decompressor()
    return fast_zlib.decompressobj(wbits=31 if compression == "gzip" else 15)


def check_claimed_size(size: int, available: int, compression: Compression | None, voxels: str, path: Path) -> None:
    """Refuse a file that cannot hold what its header claims, before memory is allocated for it.

    :param size: bytes of voxels according to the header.
    :param available: bytes of the file that may hold them.
    :param voxels: their number as text, for the message.
    :raises HeaderError: `available` is too small or (uncompressed) too large.
    :raises LiverXAILib.errors.InputError: there is not enough memory.
    """
    if compression is None and size != available:
        problem = "is incomplete" if size > available else "is damaged"
        raise HeaderError(
            f"{problem}: its header specifies {voxels} voxels, {size:,} bytes, but {available:,} are there. Copy or "
            "export it again."
        )
    if compression is not None and size > available * _MOST_EXPANSION[compression]:
        raise HeaderError(
            f"is damaged: its header specifies {voxels} voxels, more than {available:,} compressed bytes can hold. "
            "Copy or export it again."
        )
    require_memory(3 * size, f"{path} ({voxels} voxels)")


def read_array(stream: ByteStream, dtype: np.dtype, count: int) -> np.ndarray:
    """The next `count` numbers, to the end of the stream.

    :raises HeaderError: there are fewer or more.
    """
    buffer = np.empty(count * dtype.itemsize, np.uint8)
    if stream.read_into(buffer.data) < buffer.size:
        raise HeaderError("is incomplete: it ends before its last voxel. Copy or export it again.")
    stream.finish()
    return buffer.view(dtype)


def parse_text(content: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    """Numbers written as text, separated by white space or commas.

    :raises HeaderError: it is other text, or the count differs.
    """
    try:
        numbers = np.array(content.replace(b",", b" ").split(), dtype=np.float64)
    except ValueError as error:
        raise HeaderError("is damaged: it holds text where numbers are expected. Copy or export it again.") from error
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    if numbers.size != count:
        raise HeaderError(f"should hold {count:,} voxels but holds {numbers.size:,}: it is incomplete or damaged.")
    if limits is not None and not ((numbers >= limits.min) & (numbers <= limits.max) & (numbers % 1 == 0)).all():
        raise HeaderError("is damaged: it holds numbers that its voxel type cannot represent.")
    return numbers.astype(dtype)
