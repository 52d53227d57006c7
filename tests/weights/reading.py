"""What the tests of weights files share: arrays, how they compare, and how a file is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cyclemlp_backbones import CheckpointError, read_checkpoint

GOLDEN_FILES = ("tiny_zip.pth", "tiny_legacy.pth", "tiny_ddp_fp16.pth")
RANGE = np.arange(12, dtype=np.float32)


def same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return list(actual) == list(expected) and all(
        actual[name].dtype == array.dtype and actual[name].shape == array.shape and np.array_equal(actual[name], array)
        for name, array in expected.items()
    )


def some_arrays() -> dict[str, np.ndarray]:
    random_state = np.random.RandomState(0)
    return {
        "a.weight": random_state.standard_normal((3, 4)).astype(np.float32),
        "a.bias": random_state.standard_normal(4).astype(np.float16),
        "fortran": np.asfortranarray(random_state.standard_normal((5, 2))),
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
    }


def refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
