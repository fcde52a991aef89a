# SPDX-License-Identifier: Apache-2.0
"""Downloading files over an unreliable network, and unpacking untrusted archives."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..context import UNATTENDED, RunContext
from ..errors import ModelError
from ..files import remove

_CHUNK = 1 << 20
#: Timeouts in seconds: for the connection, and for the next bytes.
_TIMEOUT = (15, 60)
#: Bytes that stay free on the disk.
_RESERVE = 100e6
#: Limits of an archive: number of files; and its expansion ratio, beyond some bytes, because weights hardly compress.
_MOST_MEMBERS, _MOST_RATIO, _SMALL = 5000, 50, 10_000_000
#: Exceptions of :mod:`zipfile` for archives that are damaged, encrypted, or have names that the system does not allow.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def require_space(folder: Path, size: float) -> None:
    """Raise :class:`~LiverXAILib.errors.ModelError` unless `folder`, which must exist, has space for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size + _RESERVE:
        raise ModelError(f"Not enough space in {folder}: {size / 1e6:.0f} MB are needed, {free / 1e6:.0f} are free.")


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str | None,
    size: int | None = None,
    factor: float = 1.0,
    context: RunContext = UNATTENDED,
) -> str:
    """Download `url` to `target`, which appears only when it is complete and has the right checksum.

    Until then, the received bytes are kept in a ``.part`` file next to `target`, and a later call continues from there.
    Proxies and certificate authorities come from the environment (``HTTPS_PROXY``, ``REQUESTS_CA_BUNDLE`` …).

    :param factor: multiple of the file's size that must be free on the disk.
    :return: the file's SHA-256.
    :raises LiverXAILib.errors.ModelError: no connection, no space, an incomplete or unexpected file.
    """
    import requests

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        _receive(url, part, target.name, size, factor, context)
    except requests.RequestException as error:
        raise ModelError(
            f"Could not download {target.name}: {_reason(error)}. Try again to continue where it stopped, or get "
            f"{url} elsewhere and use 'liverxai models import'."
        ) from error
    except OSError as error:
        raise ModelError(f"Could not write {part}: {error.strerror or error}.") from error
    found = checksum(part)
    if (sha256 and found != sha256.lower()) or (size and part.stat().st_size != size):
        part.unlink()
        raise ModelError(
            f"{target.name} from {url} is not the expected file (SHA-256 or size differs); it was deleted."
        )
    part.replace(target)
    return found


def _receive(
    url: str,
    part: Path,
    name: str,
    size: int | None,
    factor: float,
    context: RunContext,
) -> None:
    import requests

    done = part.stat().st_size if part.exists() else 0
    if size and done >= size:
        part.unlink()
        done = 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    # With compressed transfer, byte offsets could not be used to resume.
    headers["Accept-Encoding"] = "identity"
    with requests.get(url, stream=True, timeout=_TIMEOUT, headers=headers) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            # The file is complete, or it changed on the server: the checksum decides.
            return
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            done = 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else size
        require_space(part.parent, (total or 0) * factor - done)
        with part.open("ab" if done else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                context.check()
                file.write(chunk)
                done += len(chunk)
                message = f"Downloading {name}: {done / 1e6:.1f}" + (f" of {total / 1e6:.1f} MB" if total else " MB")
                context.report(message, done / total if total else 0.0)
    if total and done < total:
        raise requests.ConnectionError(f"only {done} of {total} bytes arrived")


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server responded with {error.response.status_code} ({error.response.reason})"
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate is not trusted here (set REQUESTS_CA_BUNDLE to your organization's)"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refused the connection (see HTTPS_PROXY)"
    if isinstance(error, requests.Timeout):
        return "the server does not respond"
    return f"the connection failed ({error})"


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip file into the new folder `folder`.

    :raises LiverXAILib.errors.ModelError: it is not a zip file, is damaged, does not fit on the disk, would write
        outside the folder, or would expand to far more files or bytes than any model has. Nothing is unpacked then.
    """
    if not archive.is_file():
        raise ModelError(f"{archive} is missing, or is not a regular file.")
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            for member in members:
                _check_member(archive, member)
            size = sum(member.file_size for member in members)
            if len(members) > _MOST_MEMBERS or size > _SMALL + _MOST_RATIO * archive.stat().st_size:
                raise ModelError(
                    f"{archive.name} is refused: it expands to {len(members)} files of {size / 1e6:.0f} MB, which no "
                    "model does."
                )
            require_space(folder.parent, size)
            folder.mkdir()
            file.extractall(folder)
    except _ZIP_ERRORS as error:
        remove(folder)
        raise ModelError(f"{archive.name} is not a valid zip file: {error}.") from error


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    # orig_filename is the name in the archive; filename may already have been sanitized.
    name = member.orig_filename.replace("\\", "/")
    outside = ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive
    if outside or stat.S_ISLNK(member.external_attr >> 16):
        raise ModelError(f"{archive.name} is refused: it would write outside its folder ({member.orig_filename!r}).")
