# SPDX-License-Identifier: Apache-2.0
"""Writing files and folders so that nobody ever reads half of one, also if the process is killed."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .subprocesses import host_name, process_exists

#: Leftovers of a process that cannot be asked (on another machine, or its number was given anew) go after a day.
_ABANDONED_SECONDS = 86400.0
#: More files of the user than this are not linked into a new folder.
_MOST_LINKS = 1000
#: Names of the folders in which this process is writing now.
_in_use: set[str] = set()


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a name to write to; when the block ends well, that file takes the place of `path`, else it vanishes."""
    path = Path(path)
    # A folder of its own, since some writers take the format from the end of the name.
    with staging_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        temporary.replace(path)


@contextmanager
def staging_folder(target: Path, *, private: bool = False) -> Iterator[Path]:
    """A new hidden folder beside `target`, or in it if it is a folder beside which nothing can be written.

    It is removed at the end of the block unless it was renamed. What killed processes left there for the same target
    is removed at the start.

    :param private: nobody else may look into it.
    :raises OSError: it cannot be made.
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
    _in_use.add(folder.name)  # before it is there: another thread may be looking for leftovers
    try:
        folder.mkdir(mode=0o700 if private else 0o777)
        yield folder
    finally:
        remove(folder)
        _in_use.discard(folder.name)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds, as far as it can be removed.

    A removal that a signal interrupts is finished before the signal is obeyed.
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
    """Let the files in `new` take the place of those in `folder` that are ours; files of others stay.

    Wherever the file system can, this is one step, so that `folder` holds all old files or all new ones at any time.
    Where it cannot (folders of others in `folder`; Windows; some network drives), the old files go first and the new
    ones come then, so that the two are never mixed, and `last` is there only while all the others are.

    :param new: a folder of :func:`staging_folder` with nothing but files.
    :param is_ours: whether a file of this name in `folder` belongs to an older result.
    :param last: the name of the file that says that a result is whole.
    :raises OSError: it cannot be done.
    """
    if not folder.exists():
        try:
            new.rename(folder)
            return
        except OSError:
            if not folder.is_dir():  # else somebody was faster
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
    """Whether this process works in `folder`: a shell whose folder is exchanged would show the old one for ever."""
    return Path.cwd().resolve().is_relative_to(folder.resolve())


def _link_all(entries: list[os.DirEntry[str]], folder: Path) -> bool:
    """Make files of the user known in `folder` too, and give it the permissions of theirs; whether all could be."""
    if len(entries) > _MOST_LINKS or any(not entry.is_file(follow_symlinks=False) for entry in entries):
        return False
    try:
        for entry in entries:
            os.link(entry.path, folder / entry.name)
    except OSError:
        return False
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders of the same file system swap their names in one step; False if the system cannot do that."""
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
    """Whether the process that made a staging folder is gone."""
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
    """Each folder at or under `root`, with the names of what is in it that is not a folder, all in order.

    Links to folders are followed, but no folder is visited twice, so that there are no circles. Hidden files and
    folders are left out (also the ``._*`` files that macOS strews). A name is listed even if it cannot be opened (a
    broken link, a pipe).

    :param without: folders that are not searched.
    :param passed_over: told of each file or folder that is left out, and why.
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
