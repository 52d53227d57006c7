"""Weights and inputs that the golden values were measured with; tests/golden/README.md defines them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from paddle import nn

GOLDEN = Path(__file__).parent / "golden"


def random_state(key: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(key.encode()))


def reference_parameter(name: str, shape: Sequence[int]) -> np.ndarray:
    """The value of parameter `name`, whose `shape` is PyTorch's (a Linear weight is [out, in])."""
    values = random_state(f"public/{name}").standard_normal(shape)
    if len(shape) > 1:
        values = values / np.sqrt(np.prod(shape[1:]))
    elif name.rsplit(".", 1)[-1] == "weight":
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return values.astype(np.float32)


def fill_parameters(model: nn.Layer) -> None:
    """Gives every parameter of `model` its reference value."""
    for name, parameter in model.named_parameters():
        shape = list(parameter.shape)
        transposed = len(shape) == 2  # Paddle's Linear.weight is [in, out]
        values = reference_parameter(name, shape[::-1] if transposed else shape)
        parameter.set_value(values.T if transposed else values)


def reference_input(shape: Sequence[int]) -> np.ndarray:
    return random_state("public/input/" + "x".join(map(str, shape))).standard_normal(shape).astype(np.float32)


def picked_positions(size: int) -> np.ndarray:
    """The sampled positions of a flattened array of `size` elements."""
    return random_state(f"public/pick/{size}").randint(0, size, size=256)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """max |actual - expected| / max |expected|."""
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())
