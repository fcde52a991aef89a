# SPDX-License-Identifier: Apache-2.0
"""Reading weights files without running code, and building networks in memory bounded by their weights.

A file is untrusted data: it may claim more numbers than it has, or belong to a network of a million layers.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...errors import ModelError

#: How many numbers building a network may allocate: this multiple of the numbers in its weights, plus a constant.
_TIMES, _SPARE_NUMBERS = 4, 20_000_000
#: How many torch operations it may run: this many for each tensor of its weights, plus a constant.
_OPERATIONS, _SPARE_OPERATIONS = 60, 20_000
#: Exceptions of a class that is called with invalid arguments.
_BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a safetensors file or a torch file, which is read without running any code in it.

    :raises LiverXAILib.errors.ModelError: the file is damaged, or has other content.
    """
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"The weights file {path.name} cannot be read: {error}.") from error
    else:
        state = load_torch_file(path)
    return checked_state(state, path)


def load_torch_file(path: Path, extra_types: Sequence[Any] = ()) -> Any:
    """The content of a torch file that holds only tensors, numbers, text, lists and mappings (and `extra_types`).

    :raises LiverXAILib.errors.ModelError: the file is damaged, or opening it could run code.
    """
    allowed: AbstractContextManager[Any] = (
        torch.serialization.safe_globals(list(extra_types)) if extra_types else nullcontext()
    )
    try:
        if not path.is_file():
            raise ModelError(f"The weights file {path} is missing, or is not a regular file.")
        _require_stored(path)
        with allowed:
            return torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is not opened: it holds more than tensors and numbers, and opening it could run code. Ask its "
            "author for the weights alone (docs/models.md describes how to write them)."
        ) from error
    except Exception as error:
        # Unpickling a malicious file can raise any exception.
        raise ModelError(f"The weights file {path} is damaged: {type(error).__name__}: {str(error)[:200]}") from error


def _require_stored(path: Path) -> None:
    """Refuse a file with compressed parts, which torch never writes: they could expand a thousandfold in memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
    size = path.stat().st_size
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or (
        sum(member.file_size for member in members) > size
    ):
        raise ModelError(f"{path} was not written by torch: its parts are compressed or overlap.")


def checked_state(state: Any, path: Path) -> dict[str, torch.Tensor]:
    """`state`, if it is a mapping from names to tensors whose numbers are all in the file and finite.

    :raises LiverXAILib.errors.ModelError: it is something else.
    """
    if not isinstance(state, Mapping) or not state:
        raise ModelError(f"The weights file {path.name} does not hold tensors by name.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ModelError(f"The weights file {path.name} does not hold tensors by name.")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise ModelError(f"The weights file {path.name}: {name[:80]!r} is not a plain tensor.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ModelError(f"The weights file {path.name}: {name[:80]!r} claims more numbers than it has.")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"The weights file {path.name}: {name[:80]!r} has values that are not finite numbers.")
    return dict(state)


def build_with_weights(
    build: Callable[[], nn.Module], state: Mapping[str, torch.Tensor], path: Path, what: str
) -> nn.Module:
    """The network that `build` returns, with the weights `state`, which must fit exactly.

    :param path: the file from which `state` was read, for messages.
    :param what: the network's name, for messages.
    :raises LiverXAILib.errors.ModelError: the network cannot be built, is far larger than its weights, or they do not
        fit.
    """
    numbers = sum(value.numel() for value in state.values())
    try:
        with _Budget(_TIMES * numbers + _SPARE_NUMBERS, _OPERATIONS * len(state) + _SPARE_OPERATIONS):
            network = build()
        network.load_state_dict(state, strict=True)
    except ModelError:
        raise
    except _BUILD_ERRORS as error:
        raise ModelError(
            f"The weights in {path} do not fit the network {what}: {type(error).__name__}: {str(error)[:500]}"
        ) from error
    return network


class _Budget(TorchDispatchMode):
    """Limits how many numbers torch allocates, and how many operations it runs, while it is active."""

    def __init__(self, numbers: int, operations: int) -> None:
        super().__init__()
        self._numbers, self._operations = numbers, operations

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, in order to exclude it, which takes longer than building the network.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._operations -= 1
        if isinstance(result, torch.Tensor) and not any(isinstance(value, torch.Tensor) for value in args):
            self._numbers -= result.numel()
        if self._operations < 0 or self._numbers < 0:
            raise ModelError("The network that the model describes is far larger than its weights; it is refused.")
        return result
