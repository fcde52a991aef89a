# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of the library: ``python Testing/mutation.py [PACKAGE ...] --sample 60 --seed 1``.

Mutmut plants one fault at a time into a copy of the library ("<" for "<=", None for an argument, another number) and
runs the tests that reach the function. For each package a fixed number of faults is drawn at random. Faults that only
change texts are left out, because tests check only parts of messages. A fault that no test finds is tried again with
all tests of the files that reach it: the fixtures shared by the tests of a file are set up in the first of them, and
Mutmut does not know which tests reach functions in child processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: The packages, and the tests that belong to them.
TESTS = {
    "explain": ["test_explain_*", "test_faithfulness", "test_reprs"],
    "inference": [
        *("test_segment", "test_coarse_to_fine", "test_windows", "test_backends", "test_given_contours"),
        *("test_nnunet_equivalence", "test_models_resize", "test_volumes_geometry", "test_uncertainty"),
        *("test_reading", "test_outline*", "test_nnunet_loading", "test_reprs"),
    ],
    "volumes": ["test_volumes_*", "test_dicom_*", "test_resample", "test_models_resize"],
    "measure": [
        *("test_measure*", "test_uncertainty", "test_reliability", "test_reading", "test_dicom_objects"),
        "test_reprs",
    ],
    "batch": ["test_batch_*", "test_case_names"],
}
_FOUND = ("killed", "timeout", "segfault", "suspicious")
#: Mutmut's exit code if Pytest refuses the tests it is given; Mutmut reports it as a timeout.
_REFUSED = 255
#: Imported once for all faults. Tests are collected anew for each: when collected again in the same process, a test
#: with a backslash in a parameter gets another name, and Pytest refuses the name that Mutmut knows.
_PRELOADED = ("pytest", "hypothesis", "torch", "scipy.ndimage", "SimpleITK", "pydicom")
_SETTINGS = """[mutmut]
source_paths = LiverXAILib
only_mutate = LiverXAILib/{package}/*
also_copy =
{files}
pytest_add_cli_args =
    -p
    no:cacheprovider
pytest_add_cli_args_test_selection =
{tests}
process_isolation = forkserver
forkserver_warmup = import
preload_modules_file = preload.txt
track_dependencies = False
use_git_change_detection = False
timeout_multiplier = 8.0
timeout_constant = 15.0
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Plant faults in packages and count those that tests find.")
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=f"of {', '.join(TESTS)}; all if none is named")
    parser.add_argument("--sample", type=int, default=60, help="faults in each package (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample (default %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "mutation", help="for the changed copies")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="parallel faults (default %(default)s)")
    parser.add_argument("--go-on", action="store_true", help="continue with the copies of an interrupted run")
    arguments = parser.parse_args()
    if unknown := set(arguments.packages) - set(TESTS):
        parser.error(f"not of {', '.join(TESTS)}: {', '.join(sorted(unknown))}")
    output = arguments.output.resolve()
    run = ["run", "--max-children", str(arguments.processes)]
    for package in arguments.packages or TESTS:
        folder = output / package
        if not (arguments.go_on and (folder / "planted.json").exists()):
            _copy(package, folder)
            _mutmut(folder, "plant", package, str(arguments.sample), str(arguments.seed))
        _mutmut(folder, *run)
        if lived := _living(_outcomes(folder)):
            _widen(folder / "mutants" / "mutmut-stats.json", lived)
            _mutmut(folder, *run, *lived)
        (folder / "outcomes.json").write_text(json.dumps(_outcomes(folder), indent=1))
    _report(output)


def _copy(package: str, folder: Path) -> None:
    """Copy the repository, with settings for Mutmut."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    tests = sorted(path for name in TESTS[package] for path in (ROOT / "Testing" / "Python").glob(f"{name}.py"))
    others = sorted({name.split("/")[0] for name in files} - {"LiverXAILib"})
    settings = _SETTINGS.format(
        package=package,
        files="\n".join(f"    {name}" for name in others),
        tests="\n".join(f"    {path.relative_to(ROOT)}" for path in tests),
    )
    (folder / "setup.cfg").write_text(settings)
    (folder / "preload.txt").write_text("\n".join(_PRELOADED))


def _mutmut(folder: Path, *words: str) -> None:
    """Run :func:`_inside` in its own process: Mutmut reads its settings once, from the folder in which it starts.

    Tests of real CT, which take minutes, are skipped.
    """
    left_out = ("PYTHONPATH", "LIVERXAI_TEST_DATA")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    command = [sys.executable, str(Path(__file__).resolve()), _INSIDE, *words]
    subprocess.run(command, cwd=folder, env=environment | {"OMP_NUM_THREADS": "1"}, check=True)


_INSIDE = "--inside"


def _inside(words: list[str]) -> None:
    """Run a command of Mutmut, or "plant"."""
    from mutmut.__main__ import cli
    from mutmut.workers.isolation import ForkServerRunner

    # The run that determines which tests reach which function has passed already.
    ForkServerRunner.run_clean_tests = lambda *_, **__: 0
    # Whether faults take effect at all shows in the score; this check starts each test process to see it fail.
    ForkServerRunner.run_forced_fail = lambda *_, **__: 1
    sys.path.remove(str(Path(__file__).resolve().parent))
    if words[0] == "plant":
        _plant(words[1], int(words[2]), int(words[3]))
    else:
        cli(words)


def _plant(package: str, size: int, seed: int) -> None:
    """Write the functions with a fault: a sample of all of Mutmut's faults."""
    import libcst
    from mutmut.__main__ import create_file_mutants
    from mutmut.mutation import file_mutation, mutators

    changes = [pair for pair in mutators.mutation_operators if pair[1] is not mutators.operator_string]
    file_mutation.mutation_operators = changes
    find = file_mutation.create_mutations

    def found(name: str, *rest: Any) -> tuple[Any, list[Any], Any, Any]:
        module, faults, *ignored = find(name, *rest)
        inside = [one for one in faults if isinstance(one.contained_by_top_level_function, libcst.FunctionDef)]
        return module, inside, *ignored

    paths = sorted(Path("LiverXAILib", package).rglob("*.py"))
    counts = [len(found(str(path), path.read_text(encoding="utf-8"))[1]) for path in paths]
    total = sum(counts)
    drawn = set(random.Random(seed).sample(range(total), min(size, total)))
    firsts = dict(zip(map(str, paths), accumulate(counts, initial=0), strict=False))

    def drawn_ones(name: str, *rest: Any) -> tuple[Any, list[Any], Any, Any]:
        module, faults, *ignored = found(name, *rest)
        return module, [one for number, one in enumerate(faults, firsts[name]) if number in drawn], *ignored

    file_mutation.create_mutations = drawn_ones
    for path in paths:
        if error := create_file_mutants(path).error:
            raise error
        _keep_name(Path("mutants") / path)
    Path("planted.json").write_text(json.dumps({"total": total, "sample": size, "seed": seed}))


def _keep_name(path: Path) -> None:
    """Let the functions of a module keep its name if it is run with ``python -m``.

    Mutmut recognizes a planted function by the name of its module, which would be ``__main__``.
    """
    text, head, is_run = (
        path.read_text(encoding="utf-8"),
        "from __future__ import annotations\n",
        'if __name__ == "__main__":',
    )
    if is_run not in text:
        return
    name = ".".join(path.with_suffix("").parts[1:])
    named = f'{head}_is_run = __name__ == "__main__"\n__name__ = "{name}"\n'
    path.write_text(text.replace(head, named, 1).replace(is_run, "if _is_run:"), encoding="utf-8")


def _outcomes(folder: Path) -> dict[str, str]:
    from mutmut.stats import status_by_exit_code

    codes: dict[str, int | None] = {}
    for path in (folder / "mutants" / "LiverXAILib").rglob("*.meta"):
        codes |= json.loads(path.read_text())["exit_code_by_key"]
    became = {name: "not tried" if code == _REFUSED else status_by_exit_code[code] for name, code in codes.items()}
    return dict(sorted(became.items()))


def _living(outcomes: dict[str, str]) -> list[str]:
    return [name for name, became in outcomes.items() if became not in _FOUND]


def _widen(path: Path, faults: list[str]) -> None:
    """Try a fault with all tests of the files that reach it, or of the package if none is known to reach it."""
    stats = json.loads(path.read_text())
    every = list(stats["duration_by_test"])
    for function in {name.partition("__mutmut_")[0] for name in faults}:
        known = stats["tests_by_mangled_function_name"].get(function, [])
        files = {test.partition("::")[0] for test in known}
        wider = [test for test in every if not files or test.partition("::")[0] in files]
        stats["tests_by_mangled_function_name"][function] = wider
    path.write_text(json.dumps(stats))


def _report(output: Path) -> None:
    """Print the score of each tested package, and the faults that no test found."""
    from scipy.stats import binomtest

    rows, living = [], []
    for package in TESTS:
        folder = output / package
        if (folder / "outcomes.json").exists():
            outcomes = json.loads((folder / "outcomes.json").read_text())
            lived = _living(outcomes)
            total = json.loads((folder / "planted.json").read_text())["total"]
            rows.append((package, total, len(outcomes), len(outcomes) - len(lived)))
            living += [(folder, name, outcomes[name]) for name in lived]
    rows.append(("all", *(sum(row[column] for row in rows) for column in (1, 2, 3))))
    print("| package | possible faults | tried | found | % | 95 % interval |\n|---|---|---|---|---|---|")
    for package, total, tried, found in rows:
        interval = binomtest(found, tried).proportion_ci(method="wilson")
        low, high = 100 * interval.low, 100 * interval.high
        print(f"| {package} | {total:,} | {tried} | {found} | {100 * found / tried:.1f} | {low:.1f} to {high:.1f} |")
    sys.stdout.flush()
    for folder, name, became in living:
        print(f"\n{became}:", flush=True)
        _mutmut(folder, "show", name)


if __name__ == "__main__":
    if sys.argv[1:2] == [_INSIDE]:
        _inside(sys.argv[2:])
    else:
        main()
