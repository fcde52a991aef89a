# SPDX-License-Identifier: Apache-2.0
"""Files and folders: whether they exist and can be written, and writing them atomically.

No incomplete file is ever visible, even if the process is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError, require_type
from .subprocesses import host_name, process_exists

#: Leftovers of a process whose state is unknown (on another machine, or its number was reused) are removed after a day.
_ABANDONED_SECONDS = 86400.0
#: If a folder has more of the user's files than this, they are not linked into a new folder.
_MOST_LINKS = 1000
#: Names of the folders that this process is currently writing.
_in_use: set[str] = set()


def require_path(value: object) -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` unless `value` is a path, as text or as a path object."""
    require_type(value, (str, os.PathLike), "A path", "give the name of a file or folder")


def require_exists(path: str | os.PathLike[str]) -> Path:
    """The path; raises :class:`~LiverXAILib.errors.InputError` unless there is such a file or folder."""
    require_path(path)
    path = Path(path)
    if "\0" in str(path) or not path.exists():
        raise InputError(f"There is no file or folder {path}.")
    return path


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Raise :class:`~LiverXAILib.errors.InputError` unless files can be written into `folder`, which may not exist."""
    folder = Path(folder).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(folder: Path, error: OSError) -> InputError:
    """The error that says that results cannot be written to `folder`, and why."""
    return InputError(f"Cannot write the results to {folder}: {error.strerror or error}.")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path to write to; if the block succeeds, that file replaces `path`, otherwise it is deleted."""
    path = Path(path)
    # The file keeps its name, in a folder of its own, because some writers infer the format from the extension.
    with staging_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        temporary.replace(path)


def require_size(path: Path, size: int) -> None:
    """Raise OSError unless a file that a library wrote has `size` bytes, which some do not check on a full disk.

    :param size: of the content, if the file is compressed by gzip.
    """
    with path.open("rb+") as file:
        os.fsync(file.fileno())  # some file systems notice only now that they are full
        found = file.seek(0, os.SEEK_END)
        if path.suffix == ".gz":
            file.seek(-min(4, found), os.SEEK_END)
            found, size = int.from_bytes(file.read(), "little"), size % 2**32  # how gzip ends
    if found != size:
        raise OSError("it is incomplete, perhaps because the disk is full")


@contextmanager
def staging_folder(target: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a new hidden folder next to `target`, or inside it if `target` is a folder whose parent is not writable.

    The folder is removed at the end of the block unless it was renamed. Folders that killed processes left there for
    the same target are removed first.

    :param private: other users cannot access the folder.
    :raises OSError: the folder cannot be created.
    """
    name = target.name if len(os.fsencode(target.name)) < 150 else hashlib.sha256(os.fsencode(target.name)).hexdigest()
    prefix = f".{name}.part-"
    place = target.parent
    if target.is_dir() and (os.path.ismount(target) or not os.access(place, os.W_OK)):
        place = target
    for leftover in place.glob(glob.escape(prefix) + "*"):
        if leftover.name not in _in_use and _is_abandoned(leftover, prefix):
            remove(leftover)
    folder = place / f"{prefix}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    _in_use.add(folder.name)  # before it exists: another thread may be looking for leftovers
    try:
        folder.mkdir(mode=0o700 if private else 0o777)
        yield folder
    finally:
        remove(folder)
        _in_use.discard(folder.name)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its contents, as far as possible.

    If a signal interrupts the removal, it is completed before the exception propagates.
    """
    try:
        _remove(path)
    except BaseException:
        _remove(path)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def put_folder(new: Path, folder: Path, *, is_ours: Callable[[str], bool], last: str) -> None:
    """Replace our files in `folder` by those in `new`; files of others stay.

    Wherever the file system supports it, this is one atomic step, so that `folder` always holds either all old files
    or all new ones. Otherwise (`folder` contains other folders; Windows; some network drives), the old files are
    removed before the new ones are moved in, so that the two are never mixed, and `last` exists only while all the
    others do.

    :param new: a folder from :func:`staging_folder` that contains only files.
    :param is_ours: whether a file of this name in `folder` belongs to an older result.
    :param last: the name of the file that marks a result as complete.
    :raises OSError: the files cannot be replaced.
    """
    if not folder.exists():
        try:
            new.rename(folder)
            return
        except OSError:
            if not folder.is_dir():  # otherwise another process created it first
                raise
    entries = list(os.scandir(folder))
    others = [entry for entry in entries if entry.name != new.name and (_is_folder(entry) or not is_ours(entry.name))]
    if clashing := {entry.name for entry in others} & {path.name for path in new.iterdir()}:
        raise IsADirectoryError(f"{folder / min(clashing)} is a folder")
    if not _is_working_folder(folder) and _link_all(others, new) and _exchange(new, folder):
        return
    for entry in others:
        (new / entry.name).unlink(missing_ok=True)
    (folder / last).unlink(missing_ok=True)
    for entry in entries:
        if entry not in others and entry.name != new.name:
            Path(entry.path).unlink(missing_ok=True)
    for name in sorted((path.name for path in new.iterdir()), key=lambda name: name == last):
        (new / name).replace(folder / name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_working_folder(folder: Path) -> bool:
    """Whether the working directory is in `folder`: a shell in an exchanged folder would keep showing the old one."""
    return Path.cwd().resolve().is_relative_to(folder.resolve())


def _link_all(entries: list[os.DirEntry[str]], folder: Path) -> bool:
    """Hard-link the user's files into `folder`; return whether all of them could be linked."""
    if len(entries) > _MOST_LINKS or any(not entry.is_file(follow_symlinks=False) for entry in entries):
        return False
    try:
        for entry in entries:
            os.link(entry.path, folder / entry.name)
    except OSError:
        return False
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Atomically swap two folders of the same file system; return False if the system cannot do that."""
    if os.name == "nt":
        return False
    with contextlib.suppress(OSError):
        shutil.copystat(other, one)
        status = other.stat()
        os.chown(one, status.st_uid, status.st_gid)
    library = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    here, swap = -100, 2  # AT_FDCWD; RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS are the same number.
    try:
        if sys.platform == "darwin":
            return bool(library.renamex_np(*paths, ctypes.c_uint(swap)) == 0)
        return bool(library.renameat2(here, paths[0], here, paths[1], ctypes.c_uint(swap)) == 0)
    except AttributeError:  # an older C library
        return False


def _is_abandoned(path: Path, prefix: str) -> bool:
    """Whether the process that created a staging folder is gone."""
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    machine, _, rest = path.name.removeprefix(prefix).partition("-")
    number = rest.partition("-")[0]
    if age > _ABANDONED_SECONDS or not number.isdecimal():
        return age > _ABANDONED_SECONDS
    return machine == _machine() and (int(number) == os.getpid() or not process_exists(int(number)))


def _machine() -> str:
    return hashlib.sha256(host_name().encode()).hexdigest()[:8]


def walk(
    root: Path,
    *,
    without: Iterable[Path] = (),
    passed_over: Callable[[Path, str], None] = lambda path, reason: None,
) -> Iterator[tuple[Path, list[str]]]:
    """Yield `root` and each folder below it, with the names of its entries that are not folders, in sorted order.

    Links to folders are followed, but no folder is visited twice, so circular links do no harm. Hidden files and
    folders are skipped (including the ``._*`` files that macOS creates). A name is listed even if it cannot be opened
    (a broken link, a pipe).

    :param without: folders that are not searched.
    :param passed_over: called with each file or folder that is skipped, and the reason.
    """
    seen = {_identity(path): "" for path in without if path.is_dir()}

    def failed(error: OSError) -> None:
        passed_over(Path(error.filename), f"cannot be searched: {error.strerror}")

    for text, folders, names in os.walk(root, followlinks=True, onerror=failed):
        folder = Path(text)
        identity = _identity(folder)
        if identity in seen:
            if seen[identity]:
                passed_over(folder, f"the same folder as {seen[identity]}")
            folders.clear()
            continue
        seen[identity] = folder.relative_to(root).as_posix()
        for hidden in (name for name in [*folders, *names] if name.startswith(".")):
            passed_over(folder / hidden, "hidden")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield folder, sorted(name for name in names if not name.startswith("."))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
