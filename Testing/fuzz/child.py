# SPDX-License-Identifier: Apache-2.0
"""The child process of :mod:`fuzz.runner`: ``python -m fuzz.child KIND SEED FIRST LAST FOLDER PREPARED``."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import traceback
import unicodedata
from pathlib import Path

import numpy as np

from LiverXAILib.errors import LiverXAIError

from .kind import BrokenPromiseError, kind_class

#: Hostile code in a file creates this file when it is run.
MARK_VARIABLE = "LIVERXAI_FUZZ_MARK"
_LONGEST_MESSAGE = 3000


def main() -> None:
    name, seed, first, last, folder, prepared = sys.argv[1:]
    # Output of libraries must not mix with the messages to the parent.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    mark = Path(prepared) / "executed"
    os.environ[MARK_VARIABLE] = str(mark)
    base = Path(prepared) / "base"
    base.mkdir()
    kind = kind_class(name)(base)
    _limit(kind.limit_mb)
    print(json.dumps({"limit": kind.limit_s}), file=channel, flush=True)
    for number in range(int(first), int(last)):
        print(json.dumps({"started": number}), file=channel, flush=True)
        place = Path(folder) / f"case-{number}"
        place.mkdir(parents=True)
        message = {}
        try:
            message["outcome"] = kind.run(np.random.default_rng([int(seed), number]), place)
        except BrokenPromiseError as error:
            message["finding"] = f"broken promise: {error}"
        except LiverXAIError as error:
            message = _refusal(error)
        except (Exception, SystemExit, KeyboardInterrupt):
            message["finding"] = traceback.format_exc()[-3000:]
        if mark.exists():
            message["finding"] = "code in a file was run"
            mark.unlink()
        if str(folder) == str(prepared):
            shutil.rmtree(place, ignore_errors=True)
        print(json.dumps(message), file=channel, flush=True)


def _refusal(error: LiverXAIError) -> dict[str, str]:
    """Check that a refusal can be shown: its length is bounded, and it has no terminal control characters."""
    text = str(error)
    control = [c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf")]
    if not text.strip() or len(text) > _LONGEST_MESSAGE or control:
        return {"finding": f"a message of {len(text)} characters, control characters {control[:5]}: {text[:500]!r}"}
    return {"outcome": "refused"}


def _limit(megabytes: int) -> None:
    """Limit memory, the size of files, and core dumps."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if os.name == "posix" else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
