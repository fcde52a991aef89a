# SPDX-License-Identifier: Apache-2.0
"""The command line: ``liverxai`` (= ``python -m LiverXAILib``).

Exit codes: 0 done, 1 failed (one line gives the reason), 2 incorrect usage, 128 + n stopped by signal n (130: Ctrl+C,
143: terminated).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from . import options
from ._version import __version__
from .arguments import Parser
from .context import RunContext
from .errors import Cancelled, LiverXAIError, UsageError, is_memory
from .files import require_writable
from .progress import progress_bar, progress_hidden
from .subprocesses import WAITING
from .text import one_line, warn, whole_sentence
from .volumes.formats import FILE_FORMATS

if TYPE_CHECKING:
    from .followup.studies import Study
    from .inference import Segmentation
    from .volumes.volume import Volume

FAILED, USAGE = 1, 2


#: Accepted before and after the command.
_ANYWHERE = {
    "--quiet": "show only errors and warnings",
    "--verbose": "also show decisions made along the way",
    "--debug": "show all log messages, and tracebacks of errors",
}
#: Commands that print what they are doing; the output of the others is their result.
_TELLING = ("analyze", "batch", "benchmark", "compare", "phantom", "train")
_LEVELS = {"--debug": logging.DEBUG, "--verbose": logging.INFO}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    # At exit, Python would collect garbage among all objects: half a second with torch and VTK imported.
    atexit.register(gc.freeze)
    os.environ.setdefault(*WAITING)
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    flags = {word for word in given[:end] if word in _ANYWHERE}
    words = [word for word in given[:end] if word not in _ANYWHERE] + given[end:]
    command = next((word for word in words if word in _COMMANDS), None)
    quiet = "--quiet" in flags
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_signals_raise())
            if "--version" in words[:end]:
                print(f"LiverXAI {__version__}")
                return 0
            parsed = _parser(command).parse_args(words)
            level = next((level for flag, level in _LEVELS.items() if flag in flags), logging.WARNING)
            logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
            stack.enter_context(progress_hidden(quiet))
            if quiet and command in _TELLING:
                nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            code = int(parsed.run(parsed))
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
        except BaseException as error:
            return _exit_code(error, debug="--debug" in flags)


class _Stopped(BaseException):
    """The user or the system asked the program to stop. (Not an Exception, so it is never handled as a failure.)"""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Make the first SIGINT or SIGTERM raise an exception so that everything is cleaned up; ignore any others.

    The exception is raised a little later if it would leave a lock acquired, or be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    # Windows has no timer signal: there, the exception is raised at once.
    alarm = getattr(signal, "SIGALRM", None)

    def stop(number: int, frame: FrameType | None) -> None:
        if alarm is not None and not _can_raise(frame):
            if alarm not in old:
                old[alarm] = signal.signal(alarm, lambda _, later: stop(number, later))
            signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
            return
        for one in old:
            signal.signal(one, signal.SIG_IGN)
        raise _Stopped(number)

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if alarm in old:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in old.items():
            signal.signal(number, handler)


#: Time after which the exception is tried again, in seconds.
_RETRY_SECONDS = 0.002
#: Functions that acquire or release a lock. Python runs signal handlers between its instructions: an exception raised
#: after a lock was acquired, but before the block that releases it was entered, would block other threads forever.
_LOCKING = {"__enter__", "__exit__", "acquire", "release", "_acquire_restore", "_release_save", "_acquireLock"}


def _can_raise(frame: FrameType | None) -> bool:
    """Whether a signal handler can safely raise an exception in `frame`, where it interrupted the main thread.

    It cannot while a lock is acquired or released, in Python's import machinery, which has its own locks, or in a
    ``__del__`` method, from which exceptions do not propagate.
    """
    if frame is None:
        return True
    code = frame.f_code
    if code.co_name in _LOCKING or code.co_filename == "<frozen importlib._bootstrap>":
        return False
    return all(one.f_code.co_name != "__del__" for one, _ in traceback.walk_stack(frame))


def _exit_code(error: BaseException, debug: bool) -> int:
    """Print one line that says what went wrong; return the exit code."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, BrokenPipeError):
        # The reader of the output has closed the pipe (`| head`). Nothing more may be written, not even at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    if isinstance(error, _Stopped | KeyboardInterrupt):
        number = error.number if isinstance(error, _Stopped) else int(signal.SIGINT)
        print("liverxai: stopped. Every file is complete or unchanged.", file=sys.stderr)
        return 128 + number
    if debug:
        traceback.print_exception(error)
    print(f"liverxai: {_sentence(error)}", file=sys.stderr)
    return USAGE if isinstance(error, UsageError) and not isinstance(error, Cancelled) else FAILED


def _sentence(error: BaseException) -> str:
    if is_memory(error) and not isinstance(error, LiverXAIError):
        return "not enough memory. Close other programs, or crop the image."
    text = one_line(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, LiverXAIError | OSError):
        return text
    return f"unexpected error ({type(error).__name__}: {text}). --debug shows where; please report it."


def _parser(command: str | None) -> Parser:
    """The complete parser, but with the arguments of `command` only: those of others would import their packages."""
    parser = Parser(
        prog="liverxai",
        description="Segment the liver and its tumors in CT and explain the result. For research use only.",
    )
    parser.add_argument("--version", action="version", version=f"LiverXAI {__version__}")
    for flag, text in _ANYWHERE.items():
        parser.add_argument(flag, action="store_true", help=f"{text} (before or after the command)")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (text, fill) in _COMMANDS.items():
        one = commands.add_parser(
            name,
            help=text,
            description=whole_sentence(text),
            epilog=f"Also: {', '.join(_ANYWHERE)}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if command in (name, "completion"):
            fill(one)
    return parser


def _module(name: str) -> Callable[[argparse.ArgumentParser], None]:
    """Set up a parser with the functions ``add_arguments(parser)`` and ``run(arguments) -> int`` of a module."""

    def fill(parser: argparse.ArgumentParser) -> None:
        module = importlib.import_module(name, __package__)
        parser.set_defaults(run=module.run)
        module.add_arguments(parser)

    return fill


# --- analyze ----------------------------------------------------------------------------------------------------


_INPUT = f"a file ({', '.join(FILE_FORMATS)}) or a DICOM folder"


def _analyze_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", type=Path, help=_INPUT)
    parser.add_argument("--output", "-o", metavar="FOLDER", type=Path, required=True, help="where the results go")
    parser.add_argument(
        "--segmentation",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="measure and explain these contours instead of the model's: a label map, .seg.nrrd or DICOM SEG on the "
        "CT's voxel grid, or files named liver and tumor",
    )
    for name in ("liver", "tumor"):
        parser.add_argument(
            f"--{name}-label", metavar="N", type=int, nargs="+", help=f"value of the {name} in --segmentation"
        )
    parser.add_argument(
        "--ignore-other-labels", action="store_true", help="treat other values in --segmentation as background"
    )
    parser.add_argument(
        "--prior",
        metavar="RESULT",
        type=Path,
        nargs="+",
        help="also compare with results of earlier studies, oldest first (see the compare command)",
    )
    parser.add_argument(
        "--prior-image", metavar="CT", nargs="+", help="the CTs of these results, in the same order, '-' for none"
    )
    options.add_arguments(parser)
    parser.add_argument("--height", metavar="CM", type=float, help="patient height, for the standard liver volume")
    parser.add_argument("--weight", metavar="KG", type=float, help="patient weight, for the standard liver volume")
    parser.add_argument(
        "--recist-targets", metavar="N", type=int, nargs="*", help="numbers of target lesions (default: by RECIST 1.1)"
    )
    parser.set_defaults(run=_analyze)
    parser.epilog = f"{options.EXAMPLES}\n\n{parser.epilog}"


def _analyze(arguments: argparse.Namespace) -> int:
    from .volumes.image_file import existing  # imports ITK before torch, never at the same time

    chosen = options.Options.from_arguments(arguments)
    chosen.require_valid()
    images = [Path(name) for name in arguments.prior_image or () if name != "-"]
    for path in (arguments.input, *(arguments.segmentation or ()), *(arguments.prior or ()), *images):
        existing(path)
    if any(path.resolve() == arguments.output.resolve() for path in arguments.prior or ()):
        raise UsageError(f"{arguments.output} is a result of --prior, which would be replaced: give another --output.")
    with _short_turns(), progress_bar() as progress, ThreadPoolExecutor(1) as background:
        # torch is imported while the file is read; the modules for measuring and writing, while the network runs.
        reading = background.submit(chosen.read, arguments.input)
        progress("Loading the model", 0.0)
        from .inference import select_device
        from .models import load_model
        from .pipeline import check_request, require_undecided

        model = load_model(arguments.model)
        check_request(model, chosen.explain, chosen.method, chosen.layer, chosen.sensitivity)
        select_device(arguments.device)
        progress("Reading the image", 0.0)
        require_writable(arguments.output)
        require_undecided(arguments.output)
        volume = reading.result()
        importing = background.submit(chosen.import_ahead)
        prior = _prior(arguments, chosen)
        given = _given(arguments, volume)
        context = RunContext(progress, device=arguments.device)
        analysis = chosen.analyze(volume, model, context.part(0.0, 0.7 if prior else 1.0), segmentation=given)
        comparison = None
        if prior:
            from .followup import compare

            comparison = compare([*prior, analysis], options=chosen, **context.part(0.7, 1.0).keywords)
            analysis = dataclasses.replace(analysis, follow_up=comparison.findings)
        progress("Writing", 1.0)
        importing.result()
        written = chosen.save(analysis, arguments.output)
        files = dict(written.files)
        if comparison is not None:
            from .followup import write_comparison

            files |= write_comparison(comparison, arguments.output, report="report" in files)
    print(f"Image   {volume.summary()}")
    for sentence in [*analysis.provenance["warnings"], *written.warnings]:
        warn(sentence)
    print(analysis.measurements.summary())
    for answer in analysis.answers:
        print(one_line(answer.sentence))
    if comparison is not None:
        for remark in comparison.findings.remarks:
            warn(remark)
        print(comparison.findings.summary())
    for role, path in files.items():
        print(f"{role:>20}  {path}")
    print("For research use only. Not for diagnosis or treatment.")
    return 0


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """Let threads take the interpreter lock from each other after half a millisecond instead of five.

    Importing is pure Python, so while one thread imports, another would wait that long after each layer of a network.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _prior(arguments: argparse.Namespace, chosen: options.Options) -> list[Study]:
    """The earlier studies named by ``--prior``, read before minutes are spent on the new one."""
    paths, images = arguments.prior or [], arguments.prior_image or []
    if images and len(images) != len(paths):
        raise UsageError("--prior-image needs one CT for each result in --prior, '-' for none.")
    if not paths:
        return []
    from .followup.studies import read_result

    plain = options.Options(force=chosen.force, allow_irregular=chosen.allow_irregular)
    images = [None if name == "-" else Path(name) for name in images or ["-"] * len(paths)]
    return [
        read_result(path, image, f"Study {number} ({path.name})", plain)
        for number, (path, image) in enumerate(zip(paths, images, strict=True), start=1)
    ]


def _given(arguments: argparse.Namespace, volume: Volume) -> Segmentation | None:
    """The contours named by the options."""
    from .inference import read_segmentation
    from .labels.vocabulary import named_values

    values = named_values(arguments.liver_label, arguments.tumor_label)
    if arguments.segmentation is None:
        if values is not None or arguments.ignore_other_labels:
            raise UsageError("--liver-label, --tumor-label and --ignore-other-labels need --segmentation.")
        return None
    return read_segmentation(arguments.segmentation, volume, values, others=arguments.ignore_other_labels)


# --- phantom ----------------------------------------------------------------------------------------------------


def _phantom_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        "-o",
        metavar="FILE",
        type=Path,
        required=True,
        help="e.g. phantom.nii.gz; the ground truth is written to phantom-truth.nrrd beside it",
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed, another patient (default: 1)")
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        default=(1.5, 1.5, 3.0),
        metavar=("I", "J", "K"),
        help="voxel size in mm (default: 1.5 1.5 3)",
    )
    parser.set_defaults(run=_phantom)


def _phantom(options: argparse.Namespace) -> int:
    """Make a synthetic abdominal CT and write its ground truth (1 liver, 2 tumor) to the same folder."""
    from .phantoms import make_phantom, write_phantom
    from .volumes.io import require_writable_ending

    require_writable_ending(options.output)
    require_writable(options.output.parent)
    with progress_bar() as progress:
        progress("Making the phantom", 0.0)
        paths = write_phantom(make_phantom(options.seed, spacing_mm=tuple(options.spacing)), options.output)
    for path in paths:
        print(path)
    return 0


# --- completion -------------------------------------------------------------------------------------------------


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help='e.g. eval "$(liverxai completion bash)"')
    parser.set_defaults(run=_completion)


def _completion(arguments: argparse.Namespace) -> int:
    """Print the script that makes a shell complete commands and options."""
    import shtab

    print(shtab.complete(_parser("completion"), arguments.shell))
    return 0


# --- benchmark --------------------------------------------------------------------------------------------------


def _benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="WHAT")
    for name, (text, module) in _BENCHMARKS.items():
        _module(module)(kinds.add_parser(name, help=text, description=whole_sentence(text)))


_BENCHMARKS = {
    "audit": ("explanations of networks for which the true cause is known", ".benchmarks.explanations.audit"),
    "batch": ("cases per hour, overhead, memory and scaling of batches", ".benchmarks.batch"),
    "border": (
        "how much surrounding context the liver's border needs",
        ".benchmarks.explanations.border",
    ),
    "clicks": ("how well one click outlines a lesion, compared with classical methods", ".benchmarks.clicks"),
    "cost": ("time and memory of a heat map, compared with other libraries", ".benchmarks.cost"),
    "explain": ("how faithful the maps of each method and layer are", ".benchmarks.explanations.explain"),
    "followup": ("how well lesions are tracked, on synthetic pairs with known change", ".benchmarks.followup"),
    "speed": (
        "time and memory of a segmentation, compared with other programs",
        ".benchmarks.speed",
    ),
    "wait": ("how long a user waits, part by part, cold and warm", ".benchmarks.wait"),
}

_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "analyze": ("segment, explain, measure and report one CT", _analyze_arguments),
    "batch": ("analyze many CTs; resumable, failures are isolated per case", _module(".batch.command")),
    "benchmark": ("measure speed and memory on this machine", _benchmark_arguments),
    "compare": ("track lesions across two or more studies of one patient", _module(".followup.command")),
    "completion": ("print a script that makes your shell complete commands and options", _completion_arguments),
    "evaluate": ("compare predictions with references", _module(".evaluation.evaluate")),
    "models": ("list, show, download, import, verify and remove models", _module(".models.commands")),
    "phantom": ("make a synthetic CT with its ground truth", _phantom_arguments),
    "refine": ("accept, reject, add, merge and split lesions of a result", _module(".reading.command")),
    "train": ("train or fine-tune a model on your own data", _module(".training.command")),
}
