# SPDX-License-Identifier: Apache-2.0
"""Writing a file so that nobody ever reads half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a name to write to; when the block ends well, that file takes the place of `path`, else it vanishes."""
    path = Path(path)
    # A folder of its own, since some writers take the format from the end of the name.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        temporary.replace(path)
