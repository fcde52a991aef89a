# SPDX-License-Identifier: Apache-2.0
"""Backends for a network's forward pass: torch in several precisions, or OpenVINO.

:func:`choose_backend` decides by a short self-test on a part of the current image: each backend that is available on
this machine computes the same window, its labels are compared with those of torch in single precision, and the fastest
one that agrees is chosen. The decision is cached for this machine, these versions and this network. Explanations need
gradients and always use torch.

=====================  ==============================================================================================
torch float32          everywhere; the reference; batch norms folded at load, channels-last
torch float16          CUDA and Apple GPUs
torch bfloat16         CPUs with AMX or AVX512-BF16; elsewhere one window would take minutes, so it is not even tried
openvino float32       CPUs, with the extra ``openvino``
openvino bfloat16      the same, if OpenVINO reports that the CPU supports it
=====================  ==============================================================================================

Integer precision (int8) is not offered: it changes labels, and no model card states by how much.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import hashlib
import json
import logging
import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..errors import UsageError
from ..files import replacing, staging_folder
from ..models.spec import COMPILED_NETWORKS, StageSpec
from ..volumes.box import Box
from .cost import input_channels
from .device import processor_name

_log = logging.getLogger(__name__)

#: A network as a function: a batch ``(N, C, *window)`` on the device → float32 logits.
Forward = Callable[[torch.Tensor], torch.Tensor]
#: The same for a part (a, b, c) of the windows: the part's logits ``(N, C, *part)`` equal those of the whole windows.
PartialForward = Callable[[torch.Tensor, Box], torch.Tensor]

#: Environment variable: the backend for every stage, without a self-test: "torch float32", "openvino float32" …
BACKEND_VARIABLE = "LIVERXAI_BACKEND"
REFERENCE = "torch float32"
#: The fraction of voxels whose label must equal the reference's, by precision.
_AGREEMENT = {"float32": 0.9999, "float16": 0.995, "bfloat16": 0.99}
#: A self-test takes some seconds: stages with fewer voxels than this finish sooner without one.
_WORTH_VOXELS = 500_000
#: Another backend must be faster by this factor; otherwise torch is chosen, which needs no second copy of the weights.
_GAIN = 1.1
#: Timed passes of each backend in a self-test.
_ROUNDS = 3


@dataclass(frozen=True)
class BackendChoice:
    """Which backend computes a stage, and why: `reason` and the `tests` are JSON-ready, for the provenance."""

    backend: str
    reason: str
    tests: dict[str, Any] = field(default_factory=dict)


def available_backends(device: torch.device) -> list[str]:
    """The backends that are available on `device`, the reference first."""
    names = [REFERENCE]
    if device.type in ("cuda", "mps"):
        return [*names, "torch float16"]
    # These names are private, so they may be missing: then bfloat16 is not offered.
    has_bf16 = [getattr(torch.cpu, f"_is_{unit}_supported", bool) for unit in ("amx_tile", "avx512_bf16")]
    if any(supported() for supported in has_bf16):
        names.append("torch bfloat16")
    if find_spec("openvino") is not None:
        names.append("openvino float32")
        if "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            names.append("openvino bfloat16")
    return names


def choose_backend(
    network: nn.Module,
    stage: StageSpec,
    device: torch.device,
    sample: torch.Tensor,
    voxels: int,
    requested: str = "auto",
) -> BackendChoice:
    """The backend for a stage whose first network is `network`.

    :param sample: a part (a, b, c) of the stage's input that the network accepts, on the CPU.
    :param voxels: the total number of voxels that the network will process.
    :param requested: a backend's name; "auto": the one in :data:`BACKEND_VARIABLE`, or the fastest that agrees.
    :raises LiverXAILib.errors.UsageError: the backend is not available here.
    """
    requested = (os.environ.get(BACKEND_VARIABLE) or "auto") if requested == "auto" else requested
    if requested != "auto":
        if requested != REFERENCE and requested not in available_backends(device):
            possible = ", ".join(available_backends(device))
            raise UsageError(f"The backend {requested!r} is not available on {device}; use one of: {possible}.")
        return BackendChoice(requested, "requested")
    if voxels < _WORTH_VOXELS:
        return BackendChoice(REFERENCE, "too little work for a self-test")
    if stage.network in COMPILED_NETWORKS:
        return BackendChoice(REFERENCE, "the model is compiled")
    key = _decision_key(network, device)
    if (known := _decisions().get(key)) is not None:
        return BackendChoice(known["backend"], "self-test, earlier on this machine", known["tests"])
    names = available_backends(device)
    if len(names) == 1:
        return BackendChoice(REFERENCE, "nothing else is available here")
    batch = sample[:, None] if stage.dimensions == 2 else sample[None, None]
    choice = _self_test(names, network, stage, device, batch)
    _keep_decision(key, choice)
    return choice


def forward(name: str, network: nn.Module, device: torch.device) -> Forward:
    """The forward pass of `network` (on `device`) in the backend called `name`, cached as long as the network lives."""
    library, _, precision = name.partition(" ")
    if library == "torch":
        return _torch_forward(network, device, precision)
    compiled = _compiled.setdefault(network, {})
    key = precision, torch.get_num_threads()
    if key not in compiled:
        compiled[key] = _openvino_forward(network, precision)
    return compiled[key]


def partial_forward(name: str, network: nn.Module, device: torch.device) -> PartialForward:
    """Like :func:`forward`, for callers that need only the logits of a part of each window.

    A network that can save work for a part runs in torch, in the backend's precision.
    """
    if getattr(network, "computes_parts", False):
        return _torch_forward(network, device, name.partition(" ")[2])
    whole = forward(name, network, device)

    def run(batch: torch.Tensor, part: Box) -> torch.Tensor:
        index = (..., *(part if batch.ndim == 5 else part[1:]))
        return whole(batch)[index]

    return run


#: Compiled networks. They hold no reference to the network, so that it can be freed.
_compiled: WeakKeyDictionary[nn.Module, dict[tuple[str, int], Forward]] = WeakKeyDictionary()


# --- the self-test ------------------------------------------------------------------------------------------------


def _self_test(
    names: list[str], network: nn.Module, stage: StageSpec, device: torch.device, batch: torch.Tensor
) -> BackendChoice:
    """Time all backends in turn, over several rounds, so that other load affects all of them; the best time counts."""
    logits: dict[str, torch.Tensor] = {}
    seconds: dict[str, float] = {}
    tests: dict[str, Any] = {name: {} for name in names}
    for _ in range(1 + _ROUNDS):
        for name in [name for name in names if "failed" not in tests[name]]:
            started = time.perf_counter()
            try:
                with torch.inference_mode(), keep_freed_memory(device):
                    logits[name] = forward(name, network, device)(batch.to(device)).float().cpu()
            except Exception as error:
                # Backends are optional: if one fails in any way, torch is still available.
                _log.warning("Backend %s cannot run stage %s: %s", name, stage.name, type(error).__name__)
                tests[name]["failed"] = type(error).__name__
                continue
            passed = time.perf_counter() - started
            if "first_seconds" not in tests[name]:  # the first pass converts, compiles and allocates
                tests[name]["first_seconds"] = round(passed, 3)
            else:
                seconds[name] = min(passed, seconds.get(name, passed))
    best = REFERENCE
    for name, passed in seconds.items():
        agreement = label_agreement(logits[name], logits[REFERENCE], stage)
        tests[name] |= {"seconds": round(passed, 4), "agreement": round(agreement, 6)}
        gain = seconds[best] / passed
        if agreement >= _AGREEMENT[name.split()[1]] and gain > (_GAIN if best == REFERENCE else 1.0):
            best = name
    return BackendChoice(best, "self-test", tests)


def label_agreement(logits: torch.Tensor, expected: torch.Tensor, stage: StageSpec) -> float:
    """The fraction of voxels that get the same labels from both logits (N, channels, …)."""
    if stage.activation == "sigmoid":
        return float(((logits > 0) == (expected > 0)).all(dim=1).double().mean())
    return float((logits.argmax(dim=1) == expected.argmax(dim=1)).double().mean())


def _decision_key(network: nn.Module, device: torch.device) -> str:
    # The version is read from the package metadata because an import takes a quarter of a second.
    openvino = metadata.version("openvino") if find_spec("openvino") is not None else ""
    parts = [_processor(device), str(device), str(torch.get_num_threads()), torch.__version__, openvino]
    return "|".join([*parts, _fingerprint(network)])


@cache
def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()} {torch.backends.cpu.get_cpu_capability()}"


def _fingerprint(network: nn.Module) -> str:
    """An identifier of a network, computed from its layers and weights."""
    digest = hashlib.sha256(repr(network).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _cache_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("liverxai"))


def _decisions() -> dict[str, Any]:
    try:
        decisions = json.loads((_cache_folder() / "backends.json").read_text(encoding="utf-8"))
        return {key: value for key, value in decisions.items() if value["backend"] and "tests" in value}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # missing or damaged: a cache may be lost at any time


def _keep_decision(key: str, choice: BackendChoice) -> None:
    path = _cache_folder() / "backends.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            decisions = {**_decisions(), key: {"backend": choice.backend, "tests": choice.tests}}
            new.write_text(json.dumps(decisions, indent=1), encoding="utf-8")
    except OSError:
        _log.warning("The result of the backends' self-test cannot be saved; the test will run again.")


# --- torch --------------------------------------------------------------------------------------------------------


def _torch_forward(network: nn.Module, device: torch.device, precision: str) -> Callable[..., torch.Tensor]:
    if precision == "float32":
        return network
    dtype = getattr(torch, precision)

    def run(batch: torch.Tensor, *part: Box) -> torch.Tensor:
        with torch.autocast(device.type, dtype=dtype):
            return network(batch.contiguous(memory_format=_channels_last(batch)), *part).float()

    return run


def _channels_last(batch: torch.Tensor) -> torch.memory_format:
    return torch.channels_last_3d if batch.ndim == 5 else torch.channels_last


# glibc's names for its settings, and its defaults.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TRIM_DEFAULT, _MMAP_DEFAULT = 128 * 1024, 65536


#: How many nested :func:`keep_freed_memory` blocks are active; only the outermost one changes settings.
_keeping = 0


@contextlib.contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """Within the block, glibc keeps freed memory for the next layer; at its end it is returned to the system.

    Otherwise each activation of a large window is mapped anew, and the kernel spends up to a third of the time of a
    forward pass on zeroing its pages. Does nothing on other systems and for devices other than the CPU. May be nested:
    code that runs several passes keeps memory from one to the next. Not for a whole analysis, whose peak would grow by
    the memory that one step leaves to the next.
    """
    global _keeping
    libc = _glibc() if device.type == "cpu" else None
    if libc is None or _keeping:
        yield
        return
    _keeping += 1
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        _keeping -= 1
        libc.mallopt(_M_MMAP_MAX, _MMAP_DEFAULT)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_DEFAULT)
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:
        return None


# --- OpenVINO -----------------------------------------------------------------------------------------------------


@cache
def _openvino() -> Any:
    """The package OpenVINO, without its telemetry, which would report every import of it over the internet."""
    telemetry = "openvino_telemetry"
    absent = telemetry not in sys.modules
    if absent:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # as if it were not installed: it is optional
    try:
        import openvino

        return openvino
    finally:
        if absent:
            del sys.modules[telemetry]


@cache
def _core() -> Any:
    return _openvino().Core()


def _openvino_forward(network: nn.Module, precision: str) -> Forward:
    """`network` compiled for windows of any size. The conversion takes seconds and is cached on disk."""
    path = _cache_folder() / "openvino" / _openvino().__version__.split("-")[0] / f"{_fingerprint(network)}.xml"
    if not (path.is_file() and path.with_suffix(".bin").is_file()):
        _convert(network, path)
    compiled = _core().compile_model(
        str(path),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        },
    )
    requests = threading.local()  # a request can serve only one thread at a time

    def run(batch: torch.Tensor) -> torch.Tensor:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        results = requests.own.infer([batch.float().contiguous().numpy()], share_inputs=True, share_outputs=False)
        return torch.from_numpy(results[0])

    return run


def _convert(network: nn.Module, path: Path) -> None:
    """Write the network as OpenVINO's files. The file that marks the conversion exists only if both are complete.

    Uses the frontend directly, because ``openvino.convert_model`` would report its use over the internet.
    """
    ov = _openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    size = getattr(network, "divisor", (32,) * _dimensions(network))
    # Unequal sides, so that a size that the tracer records as a constant makes the self-test fail.
    example = torch.zeros(2, input_channels(network), *((axis + 1) * n for axis, n in enumerate(size)))
    alone = copy.deepcopy(network).cpu()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about every size that a network checks
        traced = torch.jit.trace(alone, example, check_trace=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=example)  # must live until the model is converted
        model = frontend.convert(frontend.load(decoder))
    (image,) = (source.get_node() for source in model.inputs)
    image.set_element_type(ov.Type.f32)
    image.set_partial_shape(ov.PartialShape([-1, example.shape[1], *[-1] * len(size)]))
    model.validate_nodes_and_infer_types()
    path.parent.mkdir(parents=True, exist_ok=True)
    with staging_folder(path) as folder:
        new = folder / path.name
        ov.save_model(model, new, compress_to_fp16=False)
        new.with_suffix(".bin").replace(path.with_suffix(".bin"))
        new.replace(path)


def _dimensions(network: nn.Module) -> int:
    return 2 if any(isinstance(module, nn.Conv2d) for module in network.modules()) else 3
