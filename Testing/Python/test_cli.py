# SPDX-License-Identifier: Apache-2.0
"""The command line works as documented, with the documented exit codes, and reports a failure in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from batch_toys import write_good, write_model
from forking import Process

from LiverXAILib.cli import _signals_raise, _Stopped, main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_good(tmp_path_factory.mktemp("images") / "ct.nii.gz")


def test_analyze_writes_everything_and_says_where(model, image, tmp_path, capsys):
    assert main(["analyze", str(image), "--model", str(model), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for name in (
        "segmentation.seg.nrrd",
        "heatmap-tumor.nrrd",
        "measurements.csv",
        "report.html",
        "scene.mrb",
        "provenance.json",
    ):
        assert (tmp_path / "out" / name).is_file()
        assert name in printed
    assert "Image   NIfTI, 32 x 32 x 16 voxels of 4 x 4 x 6 mm\n" in printed
    assert "Liver" in printed
    assert "research use only" in printed


def test_options_reach_the_analysis(model, image, tmp_path):
    arguments = ["analyze", str(image), "--model", str(model), "-o", str(tmp_path / "out"), "--no-report"]
    assert main([*arguments, "--explain", "lesion:1", "--method", "hires-cam", "--layer", "encoder.0"]) == 0
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    (explanation,) = provenance["explanations"]
    assert (explanation["method"], explanation["layer"]) == ("hires-cam", "encoder.0")
    assert not (tmp_path / "out" / "report.html").exists()
    assert main([*arguments, "--explain"]) == 0
    assert not list((tmp_path / "out").glob("heatmap-*"))


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["analyze", "missing.nii.gz", "-o", "out"], 1, "missing.nii.gz"),
        (["analyze", "{image}", "-o", "out", "--model", "nobody"], 1, "no model 'nobody'"),
        (["analyze", "{image}", "-o", "out", "--model", "{model}", "--explain", "gremlins:"], 2, "explained"),
        (["analyze", "{image}", "-o", "out", "--model", "{model}", "--method", "magic"], 2, "no explanation method"),
        (["analyze", "{image}", "-o", "out", "--model", "{model}", "--layer", "magic"], 2, "no layer 'magic'"),
        (["analyze", "{image}", "-o", "{image}/out", "--model", "{model}"], 1, "Cannot write the results"),
        (["analyze", "{image}", "-o", "out", "--model", "{model}", "--device", "cuda:77"], 1, "cuda:77"),
        (["models", "show", "nobody"], 1, "no model 'nobody'"),
    ],
)
def test_failures_are_one_line_without_a_traceback(
    arguments, status, sentence, model, image, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(model=model, image=image) for argument in arguments]) == status
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("liverxai:")]
    assert len(error) == 1
    assert sentence in error[0]
    assert not (tmp_path / "out").exists()


def test_wrong_usage_exits_with_2(capsys):
    for arguments in ([], ["dance"], ["analyze"], ["analyze", "x.nii", "--output"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["analyze", "batch", "evaluate", "models", "phantom"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: liverxai " + command in capsys.readouterr().out


def test_a_phantom_and_its_truth_are_written(tmp_path, capsys):
    arguments = ["phantom", "-o", str(tmp_path / "p.nii.gz"), "--seed", "3", "--spacing", "5", "5", "6"]
    assert main(arguments) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    ct, truth = (sitk.ReadImage(str(path)) for path in paths)
    assert ct.GetSize() == truth.GetSize()
    assert ct.GetSpacing() == pytest.approx((5, 5, 6))
    assert set(np.unique(sitk.GetArrayViewFromImage(truth))) >= {0, 1}


def test_the_module_and_the_command_are_the_same_and_start_without_torch():
    code = "import sys; from LiverXAILib import cli; cli._parser('analyze'); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-m", "LiverXAILib", "--version"], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout.startswith("LiverXAI ")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("step", ["Reading the image", "Segmenting", "Explaining"])
def test_a_signal_ends_analyze_with_its_code_and_leaves_nothing(model, image, tmp_path, number, step):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    arguments = ["analyze", image, "--model", model, "-o", tmp_path / "out", "--method", "occlusion", "--device", "cpu"]
    process = Process(
        [sys.executable, "-m", "LiverXAILib", *map(str, arguments)], stderr=subprocess.PIPE, text=True, env=environment
    )
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith(step):
            process.send_signal(number)
            break
    rest = process.stderr.read()
    assert process.wait(60) == 128 + number, (seen, rest)
    process.stderr.close()
    assert rest.splitlines()[-1] == "liverxai: stopped. Every file is complete or unchanged."
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert not list((tmp_path / "tmp").glob("*liverxai*"))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals of POSIX")
def test_a_signal_leaves_no_lock_taken_and_is_not_lost():
    """Signals that arrive while a lock is taken, or an object is removed, stop the program right afterwards."""
    events = []

    class Lock:
        def __enter__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            events.append("taken")

        def __exit__(self, *_):
            events.append("released")

    class Removed:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            events.append("removed")

    def locked():
        with Lock():
            time.sleep(10)

    def removed():
        Removed()
        time.sleep(10)

    for work in (locked, removed):
        with pytest.raises(_Stopped), _signals_raise():
            work()
    assert events == ["taken", "released", "removed"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals of POSIX")
def test_a_signal_while_threads_import_leaves_none_of_them_waiting(tmp_path):
    for number in range(200):
        (tmp_path / f"module_{number}.py").touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])}
    result = subprocess.run(
        [sys.executable, "-c", STOPPED_IMPORTS],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )
    assert (result.returncode, result.stdout) == (0, "50 stopped\n"), result.stderr


#: Two threads import all the time, as `analyze` does when it starts, and the main one is stopped, 50 times.
STOPPED_IMPORTS = """
import os, random, signal, sys, threading, time
from LiverXAILib.cli import _signals_raise, _Stopped

def imports(names, done):
    while not done.is_set():
        for name in names:
            __import__(name)
        for name in names:
            sys.modules.pop(name, None)

def terminate():
    time.sleep(random.uniform(0.001, 0.01))
    os.kill(os.getpid(), signal.SIGTERM)

names, stopped = [f"module_{number}" for number in range(200)], 0
random.seed(1)
for _ in range(50):
    done = threading.Event()
    other = threading.Thread(target=imports, args=(names[100:], done), daemon=True)
    other.start()
    try:
        with _signals_raise():
            threading.Thread(target=terminate, daemon=True).start()
            imports(names[:100], threading.Event())
    except _Stopped:
        stopped += 1
    done.set()
    other.join(60)
    assert not other.is_alive(), "it waits for a lock"
print(stopped, "stopped")
"""


def test_progress_in_a_log_file_is_a_clean_line_for_each_step(model, image, tmp_path):
    arguments = ["analyze", image, "--model", model, "-o", tmp_path / "out", "--write", "--explain", "liver"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "LiverXAILib", *map(str, arguments)]
    with Process(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment) as process:
        said = process.stderr.read()
    assert process.returncode == 0
    lines = said.splitlines()
    assert lines[0] == "Loading the model"
    assert "Reading the image" in lines
    assert len(lines) == len(set(lines))
    assert not set("\r\x1b%█▏?") & set(said)


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_computing_threads_sleep_while_they_wait_unless_the_user_says_otherwise(before, after, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", before or "")
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["--version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == after


def test_flags_are_understood_anywhere(model, image, tmp_path, capsys):
    arguments = ["analyze", str(image), "--model", str(model), "-o", str(tmp_path / "out"), "--write", "--explain"]
    assert main([*arguments, "--quiet"]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert all(line.startswith("warning: ") for line in told.err.splitlines())
    for words in (["--version"], ["analyze", "--version"], ["models", "list", "--version"]):
        assert main(words) == 0
        assert capsys.readouterr().out.startswith("LiverXAI ")
    assert main(["analyze", "missing.nii.gz", "-o", "out", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_has_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-m", "LiverXAILib", "models", "list"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )
    os.close(write)
    assert run.stderr == ""


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory, model: Path, image: Path) -> Path:
    """A folder with all that the commands take: a model, CTs, a result, a file instead of a folder, a configuration."""
    folder = tmp_path_factory.mktemp("mistakes")
    shutil.copytree(model, folder / "model")
    (folder / "cts").mkdir()
    for path in (folder / "ct.nii.gz", folder / "cts" / "ct.nii.gz"):
        shutil.copy(image, path)
    (folder / "file").touch()
    (folder / "train.yaml").write_text(
        "data: {layout: phantoms, path: data, phantoms: 4}\ninit: model\n", encoding="utf-8"
    )
    words = ["--model", str(model), "--explain", "--no-report", "--write"]
    assert main(["analyze", str(image), "-o", str(folder / "result"), *words]) == 0
    return folder


#: What each command takes: each mistake below replaces words, or adds them.
COMPLETE = {
    "analyze": "analyze ct.nii.gz -o out --model model",
    "batch": "batch cts -o out --model model",
    "compare": "compare ct.nii.gz ct.nii.gz -o out --model model",
    "refine": "refine result --image ct.nii.gz --add lps:0,0,0 -o out --model model",
    "evaluate": "evaluate result --reference result/segmentation.seg.nrrd -o out/table.csv",
    "train": "train train.yaml --init model -o out",
    "phantom": "phantom -o out/phantom.nii.gz",
    "models show": "models show model",
    "models import": "models import model",
    "benchmark batch": "benchmark batch --images cts -o out --model model",
    "benchmark border": "benchmark border ct.nii.gz --model model",
    "benchmark clicks": "benchmark clicks --image ct.nii.gz --liver ct.nii.gz --tumor ct.nii.gz --model model",
    "benchmark cost": "benchmark cost ct.nii.gz --model model",
    "benchmark explain": "benchmark explain ct.nii.gz --references ct.nii.gz -o out --model model",
    "benchmark followup": "benchmark followup --pairs 1 --model model",
    "benchmark speed": "benchmark speed --image ct.nii.gz -o out --model model",
    "benchmark wait": "benchmark wait ct.nii.gz -o out",
}


def failure(folder: Path, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> tuple:
    """Exit code and sentence of a command with a mistake; it has written nothing."""
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    code = main(words.split())
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("liverxai: ")]
    if words.startswith("batch "):  # it logs why it could not start
        shutil.rmtree(folder / "out", ignore_errors=True)
    assert sorted(folder.rglob("*")) == before
    return code, sentence.removeprefix("liverxai: ")


def replaced(word: str, by: str) -> list[str]:
    """All complete commands with one of the occurrences of a word replaced."""
    found = []
    for words in map(str.split, COMPLETE.values()):
        for n, own in enumerate(words):
            if own == word:
                found.append(" ".join([*words[:n], by, *words[n + 1 :]]))
    return found


MISSING = [
    *replaced("ct.nii.gz", "missing"),
    *replaced("cts", "missing"),
    *replaced("result", "missing"),
    *replaced("result/segmentation.seg.nrrd", "missing"),
    *replaced("train.yaml", "missing"),
    COMPLETE["evaluate"] + " --tumor-probability missing",
    "evaluate --cases missing",
    "evaluate result --liver missing",
    "evaluate result --liver ct.nii.gz --tumor missing",
    "models import missing",
    "benchmark wait ct.nii.gz --against missing",
]


@pytest.mark.parametrize("words", MISSING)
def test_a_missing_file_gives_the_same_code_and_sentence_everywhere(words, mistakes, monkeypatch, capsys):
    assert failure(mistakes, words, monkeypatch, capsys) == (1, "There is no file or folder missing.")


UNKNOWN = [
    *(words for words in replaced("model", "nobody") if "models import" not in words),
    *(f"models {action} nobody" for action in ("download", "verify", "remove", "trust")),
]


@pytest.mark.parametrize("words", UNKNOWN)
def test_an_unknown_model_gives_the_same_code_and_sentence_everywhere(
    words, mistakes, monkeypatch, capsys, forked_children
):
    code, sentence = failure(mistakes, words, monkeypatch, capsys)
    assert code == 1
    assert sentence.startswith("There is no model 'nobody'. Named models: default, ")


UNWRITABLE = [
    *replaced("out", "file/out"),
    *replaced("out/table.csv", "file/out/table.csv"),
    *replaced("out/phantom.nii.gz", "file/out/phantom.nii.gz"),
    COMPLETE["evaluate"].replace("-o out/table.csv", "--lesions file/out/lesions.csv"),
    COMPLETE["evaluate"].replace("-o out/table.csv", "--plots file/out"),
]


@pytest.mark.parametrize("words", UNWRITABLE)
def test_an_output_that_cannot_be_written_gives_the_same_code_and_sentence_everywhere(
    words, mistakes, monkeypatch, capsys
):
    code, sentence = failure(mistakes, words, monkeypatch, capsys)
    assert code == 1
    assert sentence == f"Cannot write the results to {mistakes / 'file' / 'out'}: {os.strerror(errno.ENOTDIR)}."


TAKES_OPTIONS = ("analyze", "batch", "refine")
WRONG_VALUES = [
    *((name, "--method magic", 2, "There is no explanation method 'magic'. Choose one of: ") for name in TAKES_OPTIONS),
    ("benchmark explain", "--methods magic", 2, "There is no explanation method 'magic'. Choose one of: "),
    *((name, "--sensitivity high", 2, "'high' is not a sensitivity. ") for name in TAKES_OPTIONS),
    *((name, "--write=nothing", 2, "There is no output 'nothing'. ") for name in TAKES_OPTIONS),
    *((name, "--explain=x:", 2, "'x:' is not something that can be explained. ") for name in TAKES_OPTIONS),
    ("benchmark cost", "--target x:", 2, "'x:' is not something that can be explained. "),
    ("benchmark explain", "--targets x:", 2, "'x:' is not something that can be explained. "),
    *(
        (name, f"--{word} spleen", 2, "Model 'toy' has no label 'spleen'; it has liver, tumor.")
        for name, word in (
            ("analyze", "explain"),
            ("refine", "explain"),
            ("benchmark cost", "target"),
            ("benchmark explain", "targets"),
        )
    ),
    *(
        (name, f"--{word} magic", 2, "The network of stage 'all' has no layer 'magic'. Choose one of: ")
        for name, word in (
            ("analyze", "layer"),
            ("refine", "layer"),
            ("benchmark cost", "layer"),
            ("benchmark explain", "layers"),
        )
    ),
    *(
        (name, f"--min-lesion-ml {value}", 2, "--min-lesion-ml must not be negative")
        for name in ("analyze", "batch")
        for value in ("-1", "nan", "inf")
    ),
    ("analyze", "--height 1.72 --weight 70", 2, "Height 1.72 cm and weight 70 kg are not those of an adult"),
    ("analyze", "--height 172", 2, "The standard liver volume needs both height and weight."),
    ("analyze", "--recist-targets 0", 2, "There is no lesion 0: lesions are numbered from 1."),
    *(
        ("batch", f"--{name} -1", 2, f"--{name} must not be negative.")
        for name in ("threads", "time-limit", "cpus-per-worker")
    ),
    *(("evaluate", f"--tolerance {x}", 2, "The tolerance of the surface Dice must be") for x in ("-1", "nan", "inf")),
    ("evaluate", "--lesions seg.nii.gz", 2, "Cannot write seg.nii.gz: its extension must be .csv."),
    ("refine", "--reject x", 2, "'x' is not a list of numbers. "),
    *(
        (name, "--device gpu", 2, "There is no device 'gpu'. Use auto, cpu, cuda, cuda:N or mps.")
        for name in COMPLETE
        if name in ("analyze", "batch", "compare", "refine") or name.startswith("benchmark")
        if name not in ("benchmark clicks", "benchmark wait")
    ),
]


@pytest.mark.parametrize(("name", "option", "code", "sentence"), WRONG_VALUES)
def test_a_wrong_value_of_an_option_gives_the_same_code_and_sentence_everywhere(
    name, option, code, sentence, mistakes, monkeypatch, capsys, forked_children
):
    found = failure(mistakes, f"{COMPLETE[name]} {option}", monkeypatch, capsys)
    assert found[0] == code
    assert found[1].startswith(sentence)


def test_quiet_drops_what_is_merely_told_but_not_warnings(tmp_path):
    code = f"""
import logging, sys
import LiverXAILib.phantoms
from LiverXAILib.cli import main

def made(*_, **__):
    logging.getLogger("LiverXAILib").info("a decision")
    logging.getLogger("LiverXAILib").warning("a doubt")

LiverXAILib.phantoms.make_phantom = made
LiverXAILib.phantoms.write_phantom = lambda *_: []
sys.exit(main(["phantom", "-o", {str(tmp_path / "p.nii.gz")!r}, "--quiet"]))
"""
    with Process([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said == ("", "WARNING LiverXAILib: a doubt\n")


def test_an_unexpected_error_is_one_line(monkeypatch, capsys, tmp_path):
    def fail(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("by\x1b[2Jzero\nliverxai: done")

    monkeypatch.setattr("LiverXAILib.phantoms.make_phantom", fail)
    assert main(["phantom", "-o", str(tmp_path / "p.nii.gz")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "unexpected" in line]
    assert "ZeroDivisionError" in line
    assert "\x1b" not in line


def test_help_names_methods_targets_outputs_and_formats(capsys):
    with pytest.raises(SystemExit):
        main(["analyze", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("hires-cam", "lesion:2", "probabilities", ".nii.gz", "--explain --write seg tables", "--quiet"):
        assert word in text


def test_shells_can_complete(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--min-lesion-ml" in script
    assert "--time-limit" in script


def test_the_documentation_shows_what_every_command_says_of_itself():
    from LiverXAILib.cli import _COMMANDS

    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert [name for name in _COMMANDS if f"generated/help-{name}.txt" not in page] == []


def help_of(command: str) -> str:
    from LiverXAILib.cli import _parser

    parser = _parser(command)
    (commands,) = (action for action in parser._actions if hasattr(action, "choices") and action.choices)
    return str(commands.choices[command].format_help())


def test_every_command_action_and_argument_says_what_it_is():
    from LiverXAILib.cli import _COMMANDS, _parser

    def silent(parser, name):
        found = [] if parser.description else [name]
        for action in parser._actions:
            if isinstance(action.choices, dict):
                found += [one for key, inner in action.choices.items() for one in silent(inner, f"{name} {key}")]
            elif not action.help:
                found.append(f"{name}: {action.dest}")
        return found

    assert {one for command in _COMMANDS for one in silent(_parser(command), command)} == set()


def test_the_help_of_refine_names_the_defaults_of_refine():
    assert "candidates (default: that of RESULT)" in " ".join(help_of("refine").split())
    assert "candidates (default: standard)" in " ".join(help_of("analyze").split())


def test_every_example_in_the_help_can_be_typed():
    from LiverXAILib import options
    from LiverXAILib.cli import _COMMANDS, _parser
    from LiverXAILib.explain import Target

    seen = 0
    for command in _COMMANDS:
        for line in help_of(command).splitlines():
            if line.strip().startswith("liverxai "):
                words = line.strip().removeprefix("liverxai ").split()
                _parser(words[0]).parse_args(words)
                seen += 1
    assert seen >= 3
    targets = options.EXAMPLES.partition("targets of --explain:")[2].partition("examples:")[0].split("\n")
    written = [line.split()[0] for line in targets if line.strip()]
    assert len(written) >= 6
    for text in written:
        assert str(Target.parse(text)) == text
    assert all(text in help_of("batch") for text in written)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["analyze", "CT", "-o", "out", "--explain=point:LPS:1,2,3"], 2, "is not something that can be explained"),
        (["analyze", "CT", "-o", "out", "--method", "magic"], 2, "There is no explanation method 'magic'"),
        (["analyze", "CT", "-o", "out", "--sensitivity", "high"], 2, "'high' is not a sensitivity"),
        (["analyze", "CT", "-o", "out", "--write=nothing"], 2, "There is no output 'nothing'"),
        (["analyze", "missing.nii.gz", "-o", "out"], 1, "There is no file or folder missing.nii.gz"),
        (["analyze", "CT", "-o", "out", "--segmentation", "missing.nrrd"], 1, "no file or folder missing.nrrd"),
        (["analyze", "CT", "-o", "out", "--prior", "missing"], 1, "There is no file or folder missing"),
        (["analyze", "CT", "-o", "out", "--prior", ".", "--prior-image", "no.nii"], 1, "no file or folder no.nii"),
        (["batch", ".", "-o", "out", "--explain=lesion:x"], 2, "is not something that can be explained"),
        (["batch", ".", "-o", "out", "--sensitivity", "nan"], 2, "'nan' is not a sensitivity"),
        (["phantom", "-o", "phantom"], 2, "give it one of the endings"),
        (["phantom", "-o", "phantom.txt"], 2, "give it one of the endings"),
        (["compare", ".", "-o", "out"], 2, "at least two studies"),
        (["compare", ".", "missing", "-o", "out"], 1, "There is no file or folder missing"),
        (["compare", ".", ".", "--images", "no.nii", "-", "-o", "out"], 1, "There is no file or folder no.nii"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_a_model_is_loaded_or_anything_computed(
    tmp_path, monkeypatch, capsys, words, code, says
):
    def never(*_args, **_keywords):
        raise AssertionError("too early")

    monkeypatch.chdir(tmp_path)
    write_good(tmp_path / "ct.nii.gz")
    monkeypatch.setattr("LiverXAILib.models.load_model", never)
    monkeypatch.setattr("LiverXAILib.phantoms.make_phantom", never)
    monkeypatch.setattr("LiverXAILib.batch.command.find_cases", never)
    assert main([word.replace("CT", "ct.nii.gz") for word in words]) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
