# SPDX-License-Identifier: Apache-2.0
"""Every Python block of the documentation is run, in the order of its page; those of docs/slicer.md need Slicer's scene
and are run in test_slicer_docs.py.

The CTs are tiny, and a tiny model takes the place of the bundled one. A block that cannot be run anywhere would begin
with the comment :data:`NOT_RUN`, which readers see as well; it is compiled, and the modules and names that it imports
must exist.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from batch_toys import phantom, write_model

import LiverXAILib as lx
from LiverXAILib.models import Model
from LiverXAILib.volumes.io import write_volume

ROOT = Path(__file__).parents[2]
#: First line of a block that is only compiled.
NOT_RUN = "# Not run by the tests."
#: Pages whose blocks are run by another test.
ELSEWHERE = {"docs/slicer.md"}


def blocks(page: str) -> list[tuple[str, int]]:
    """The Python blocks of a page, each with the number of the line before it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(match[1], text.count("\n", 0, match.start()) + 1) for match in found]


def pages() -> list[str]:
    """The pages with Python blocks."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    names = sorted(file.relative_to(ROOT).as_posix() for file in files)
    return [name for name in names if blocks(name)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return lx.load_model(write_model(tmp_path_factory.mktemp("models") / "toy"))


@pytest.fixture(scope="module")
def studies(model, tmp_path_factory) -> Path:
    """A folder with two CTs of a patient, and their results."""
    folder = tmp_path_factory.mktemp("studies")
    for name, lesions in (("may", 1), ("august", 2)):
        volume = phantom(lesions=lesions)
        write_volume(volume, folder / f"{name}.nii.gz")
        lx.write_analysis(lx.analyze(volume, model, targets=[], device="cpu"), folder / f"result-{name}")
    write_volume(phantom(lesions=1), folder / "ct.nii.gz")
    return folder


def write_checkpoint(path: Path) -> None:
    """A checkpoint with an object that no safe reader opens, as docs/models.md describes."""
    import torch

    about = {"configuration": "3d_fullres", "plans": Path("plans")}
    names = {"trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": None, "logging": {}}
    torch.save({"network_weights": {"w": torch.zeros(2)}, "init_args": about, **names}, path)


@pytest.mark.parametrize("page", [page for page in pages() if page not in ELSEWHERE])
def test_the_blocks_of_a_page_run_one_after_the_other(page, model, studies, tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(lx, "load_model", {"default": model}.__getitem__)
    for file in studies.iterdir():
        (tmp_path / file.name).symlink_to(file)
    write_checkpoint(tmp_path / "checkpoint_final.pth")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for text, line in blocks(page):
        code = compile("\n" * line + text, page, "exec")
        if text.startswith(NOT_RUN):
            check_imports(text)
        else:
            exec(code, names)


def check_imports(text: str) -> None:
    """Raise an error if a block imports what does not exist."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_a_block_that_is_only_compiled_may_import_only_what_exists():
    check_imports("import LiverXAILib.models\nfrom LiverXAILib.explain import explain_regions")
    with pytest.raises(AssertionError, match="has no explain_nothing"):
        check_imports("from LiverXAILib.explain import explain_nothing")


def test_the_checkpoint_of_the_models_page_is_written_anew_without_its_objects(tmp_path, monkeypatch):
    import torch

    write_checkpoint(tmp_path / "checkpoint_final.pth")
    with pytest.raises(Exception, match="weights_only"):
        torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)
    monkeypatch.chdir(tmp_path)
    ((text, _line),) = blocks("docs/models.md")
    exec(compile(text, "docs/models.md", "exec"), {})
    kept = torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)
    assert kept["init_args"] == {"configuration": "3d_fullres"}
