# SPDX-License-Identifier: Apache-2.0
"""``liverxai batch``: arguments, terminal output, exit codes.

Exit codes: 0 all done (including cases done before), 1 some failed or the batch had to stop, 2 incorrect usage,
128 + n stopped by signal n (130: Ctrl+C, 143: terminated).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import options
from ..arguments import path_of
from ..errors import InputError, LiverXAIError, UsageError
from ..files import require_exists, require_writable, staging_folder
from ..progress import Progress, print_line, progress_bar
from ..text import counted, one_line
from .cases import Found, find_cases
from .dicomweb import Archive, is_address
from .manifest import last_states, read_manifest
from .names import write_names
from .run import Batch, LocalWorkerPool, MakePool, RunSummary, Settings, resume_decision
from .store import Shard, Store
from .summary import write_summary

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``liverxai batch`` to `parser`."""
    parser.add_argument(
        "source",
        metavar="INPUT",
        type=_source,
        nargs="?",
        help="a folder with images or DICOM series at any depth, a list of cases (.csv, .json), or a PACS "
        "(dicomweb+http://…), in which DICOM results are stored",
    )
    parser.add_argument("--input", metavar="INPUT", type=_source, help="the same, as a named option")
    parser.add_argument("--output", "-o", metavar="FOLDER", type=Path, required=True, help="where the results go")
    parser.add_argument("--pattern", metavar="GLOB", help="take only images whose path in INPUT matches, e.g. '*/ct.*'")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be done")
    options.add_arguments(parser)
    parser.epilog = f"{options.EXAMPLES.partition('examples:')[0]}{parser.epilog}"
    parser.set_defaults(scene=False)
    parser.add_argument(
        "--keep-names",
        action="store_true",
        help="identify cases by their paths and series descriptions, which may name patients, in tables, logs and the "
        "manifest (default: by pseudonyms, which names.csv resolves)",
    )
    group = parser.add_argument_group("running")
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="skip cases already done with the same image, model and settings (default)",
    )
    group.add_argument(
        "--keep-failed", action="store_true", help="do not retry cases that failed with the same settings"
    )
    group.add_argument(
        "--time-limit", type=float, default=1800.0, metavar="SECONDS", help="limit per case; 0: none (default: 1800)"
    )
    group.add_argument(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="processes, each with a copy of the model (default: 1)",
    )
    group.add_argument(
        "--threads", type=int, default=0, metavar="N", help="CPU threads per worker (default: all / workers)"
    )
    group.add_argument("--shard", type=_shard, default=Shard(), metavar="I/N", help="do only part I of N of the cases")
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="where the workers run")
    group.add_argument(
        "--ray-address", metavar="ADDRESS", help="an existing Ray cluster (default: RAY_ADDRESS, or a new cluster)"
    )
    group.add_argument(
        "--cpus-per-worker", type=float, default=4, metavar="N", help="Ray: CPUs per worker without GPUs (default: 4)"
    )


def _source(text: str) -> Path | str:
    return text if is_address(text) else path_of(text)


def _shard(text: str) -> Shard:
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must look like 2/8") from None
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"{text!r}: the part must be between 1 and {count}")
    return Shard(index, count)


def run(arguments: argparse.Namespace, *, python: str = sys.executable) -> int:
    """Run ``liverxai batch``; return the exit code.

    :param python: interpreter of the worker processes.
    :raises LiverXAILib.errors.LiverXAIError: the batch cannot start or continue; the message says why and what to do.
    """
    screen = Screen()
    given = _source_of(arguments)
    archive = given if isinstance(given, Archive) else None
    settings = _settings(arguments)
    settings.options.require_valid()
    if not arguments.dry_run:
        require_writable(arguments.output)
    with screen:
        source = given.fetch(arguments.output / "fetched", screen.note) if isinstance(given, Archive) else given
        found = find_cases(
            source,
            pattern=arguments.pattern,
            exclude=[arguments.output / name for name in ("cases", "manifest", "logs")],
            keep_names=arguments.keep_names,
            progress=screen.note,
        )
        store = Store(arguments.output.absolute(), arguments.shard)
        mine = sum(store.shard.holds(case.id) for case in found.cases)
        of = "" if store.shard.count == 1 else f", {mine} of them in part {store.shard}"
        screen.say(
            f"{counted(len(found.cases), 'case')} in {source}{of}; "
            f"{counted(len(found.passed_over), 'file or series', 'files or series')} skipped."
        )
        for reason, count in Counter(reason for _, reason in found.told).most_common():
            screen.say(f"  {count} skipped: {reason}")
        if not mine:
            if not found.cases:
                raise InputError(f"There are no CTs in {source}.")
            screen.say("Nothing to do in this part.")
            return 0
        if arguments.dry_run:
            return _dry_run(found, store, settings, screen, python)
        store.open(lambda text: screen.note(text, 0.0))
        try:
            screen.open_log(store.logs / f"{store.name}.log")
            if not found.keep_names:
                _explain_names(store, found)
                _warn_of_names(store, screen)
            summary = Batch(found, store, settings, screen).run(_engine(arguments, store, settings, python))
            screen.note("Summing up", 0.0)
            files = write_summary(store, found)
            if archive is not None:
                results = [path for case in found.cases for path in sorted((store.cases / case.folder).glob("*.dcm"))]
                stored = archive.store(results, arguments.output, screen.note)
                screen.say(f"{counted(stored, 'DICOM object')} stored in {archive.url}.")
        finally:
            store.close()
    _tell(summary, screen, files, store.damage)
    return summary.exit_code


def _source_of(arguments: argparse.Namespace) -> Path | Archive:
    """The INPUT, which exists; for an archive, DICOM results are chosen unless the options name others."""
    source = arguments.source or arguments.input
    if source is None or (arguments.source and arguments.input):
        raise UsageError("Give one INPUT: a folder with images, or a list of cases (.csv, .json).")
    if not is_address(source):
        return require_exists(source)
    if arguments.write is None and arguments.dicom is None:
        arguments.dicom = True
    return Archive(source)


def _explain_names(store: Store, found: Found) -> None:
    """Record, for the user alone, which image each pseudonym stands for."""
    rows = [{"case": case.name, "name": case.label, "path": case.path} for case in found.cases]
    rows += [{"case": name, "name": label} for (name, _), (label, _) in zip(found.told, found.passed_over, strict=True)]
    try:
        damage = write_names(store.output, rows)
    except OSError as error:
        raise store.unusable(error) from error
    if damage:
        store.damage.append(damage)


def _warn_of_names(store: Store, screen: Screen) -> None:
    """Warn if an earlier run used --keep-names: the names remain, because a manifest is never changed."""
    lines = read_manifest(store.manifest)
    if any(line["event"] == "run" and line.get("keep_names") for line in lines):
        screen.say(
            "An earlier run into this folder used --keep-names: its lines in the manifest and logs will always contain "
            "the names of files and series. To share results without them, use a new output folder."
        )


def _settings(arguments: argparse.Namespace) -> Settings:
    workers = 1 if arguments.workers is None else arguments.workers
    if workers < 1:
        raise UsageError("--workers must be at least 1.")
    for name in ("threads", "time_limit", "cpus_per_worker"):
        if not getattr(arguments, name) >= 0:
            raise UsageError(f"--{name.replace('_', '-')} must not be negative.")
    threads = arguments.threads
    if not threads and workers > 1 and arguments.engine == "local":
        threads = max(1, (os.cpu_count() or 1) // workers)
    # Workers on other machines may start in a different working directory.
    model = str(Path(arguments.model).absolute()) if Path(arguments.model).is_dir() else arguments.model
    return Settings(
        options=options.Options.from_arguments(arguments),
        model=model,
        devices=tuple(arguments.device.split(",")),
        workers=workers,
        threads=threads,
        keep_names=arguments.keep_names,
        time_limit=arguments.time_limit,
        resume=arguments.resume,
        keep_failed=arguments.keep_failed,
    )


def _engine(arguments: argparse.Namespace, store: Store, settings: Settings, python: str) -> MakePool:
    if arguments.engine == "ray":
        from .cluster.ray_pool import RayWorkerPool

        return lambda emit: RayWorkerPool(
            store,
            settings,
            emit,
            address=arguments.ray_address,
            workers=arguments.workers,
            cpus_per_worker=arguments.cpus_per_worker,
        )
    configs = [settings.config(store, number) for number in range(settings.workers)]
    return lambda emit: LocalWorkerPool(store, configs, emit, time_limit=settings.time_limit, python=python)


def _dry_run(found: Found, store: Store, settings: Settings, screen: Screen, python: str) -> int:
    """Print what would be done with each case."""
    before = last_states(read_manifest(store.manifest))
    model: dict[str, Any] = {}
    if store.cases.is_dir() and any(store.record(case.folder) for case in found.cases):
        model = _identify(store, settings, screen, python)
    todo = 0
    for case in found.cases:
        if not store.shard.holds(case.id):
            continue
        decision = resume_decision(case, store, model, settings, before.get(case.id, {}))
        todo += not decision.finished
        what = "skip" if decision.finished else "do"
        screen.say(f"{what:<4}  {decision.reason:<14}  {case.folder:<40}  {case.label}")
    for label, reason in found.passed_over:
        screen.say(f"{'-':<4}  {'skipped':<14}  {label}: {reason}")
    screen.say(f"{counted(todo, 'case')} would be done. Nothing was done.")
    return 0


def _identify(store: Store, settings: Settings, screen: Screen, python: str) -> dict[str, Any]:
    """Get the identity of the model from a worker process that loads it."""
    import queue
    import tempfile

    from .session import Session

    with staging_folder(Path(tempfile.gettempdir()) / "liverxai", private=True) as folder:
        scratch = Store(folder)
        scratch.open()
        events: queue.Queue[dict[str, Any]] = queue.Queue()
        session = Session(scratch, settings.config(scratch), events.put, time_limit=0, python=python)
        try:
            while True:
                screen.note("Loading the model", 0.0)
                event = events.get()
                if event["event"] == "ready":
                    return dict(event["model"])
                if event["event"] == "fatal":
                    raise (UsageError if event["usage"] else LiverXAIError)(event["error"])
        finally:
            session.stop()


def _tell(summary: RunSummary, screen: Screen, files: Sequence[Path], damage: Sequence[str]) -> None:
    """Summarize a run in a few lines."""
    done, failed = len(summary.done), len(summary.failed)
    before = f", {counted(summary.done_before, 'was', 'were')} done before" if summary.done_before else ""
    before += f", {summary.failed_before} had failed before" if summary.failed_before else ""
    screen.say(f"{done} done, {failed} failed{before}.")
    if not summary.exit_code and not done:
        screen.say("Nothing to do.")
    if summary.signal:
        screen.say("Stopped. Finished cases are complete; run the same command again to continue.")
    elif summary.stopped:
        screen.say(f"Stopped: {summary.stopped}")
    elif failed:
        screen.say("Run the same command again to retry the failed cases.")
    for sentence in dict.fromkeys(damage):
        screen.say(sentence)
    for path in files:
        screen.say(f"  {path}")


class Screen:
    """A progress bar on a terminal, otherwise one line per case; and a log file with the same lines."""

    def __init__(self) -> None:
        self._showing = contextlib.ExitStack()
        self._progress: Progress = lambda step, fraction: None
        self._log: logging.Handler | None = None
        self._level = logging.NOTSET

    def __enter__(self) -> Screen:
        self._progress = self._showing.enter_context(progress_bar(lines=False))
        return self

    def __exit__(self, *_: object) -> None:
        self._showing.close()
        if self._log is not None:
            logger = logging.getLogger("LiverXAILib")
            logger.removeHandler(self._log)
            logger.setLevel(self._level)
            self._log.close()
            self._log = None

    def open_log(self, path: Path) -> None:
        """Also write all lines for the user, and the program's log messages, to `path`."""
        self._log = _QuietFile(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("LiverXAILib")
        logger.addHandler(self._log)
        self._level = logger.level
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)

    def say(self, text: str) -> None:
        """Print a line for the user."""
        if self._log is not None:
            self._log.handle(logging.LogRecord("batch", logging.INFO, "", 0, one_line(text), None, None))
        # File names are not always valid Unicode.
        print_line(one_line(text).encode("utf-8", "backslashreplace").decode())

    def note(self, step: str, fraction: float) -> None:
        """Show the current step before and after the cases."""
        self.show(0, 0, step)

    def show(self, finished: float, total: int, text: str) -> None:
        """Update the bar."""
        if total:
            self._progress(f"{finished:.1f}/{total}  {text}", finished / total)
        else:
            self._progress(text, 0.0)


class _QuietFile(logging.FileHandler):
    """A log file that ignores write errors: the batch itself detects and reports a full disk."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass
