# SPDX-License-Identifier: Apache-2.0
"""Where a segmentation is uncertain."""

from __future__ import annotations

from functools import cache

import numpy as np

from ..inference.segmentation import Segmentation
from ..volumes.volume import Volume


def entropy_map(segmentation: Segmentation) -> Volume | None:
    """The binary entropy of the labels' probabilities, the largest over the labels, on the input's grid.

    ``H(p) = -p log2(p) - (1 - p) log2(1 - p)`` in bits: 0 where the model is certain either way, 1 where p = 0.5. It
    shows where the model is uncertain, not where it is wrong: a model can be both wrong and certain.

    :return: float32 (k, j, i) in [0, 1], 0 where no label was considered; None if the segmentation has no
        probabilities.
    """
    if not segmentation.probabilities:
        return None
    grid = segmentation.labels.grid
    result = np.zeros(grid.shape, dtype=np.float32)
    for probability in segmentation.probabilities.values():
        part = result[grid.box_of(probability.grid)]
        np.maximum(part, binary_entropy(probability.array), out=part)
    return Volume(result, segmentation.labels.ijk_to_lps)


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """``H(p)`` in bits, float32, of probabilities, which are first rounded to half precision."""
    return _entropies()[probability.astype(np.float16).view(np.uint16)]


@cache
def _entropies() -> np.ndarray:
    """The entropy of every half-precision number from 0 to 1, indexed by its bits: there are only 15361."""
    p = np.arange(0x3C00 + 1, dtype=np.uint16).view(np.float16).astype(np.float64)
    bits = [q * np.log2(q, out=np.zeros_like(q), where=q > 0) for q in (p, 1 - p)]  # q log q is 0 at 0
    return -np.sum(bits, axis=0).astype(np.float32)
