"""How large a check is, the precisions that it goes through, and what a stage says of a device that lacks something."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any


class NotHere(Exception):
    """The device, or this build of Paddle, does not have what a stage is about; the message says what."""


def reason_of(error: Exception) -> str:
    """An error in a line: of Paddle's many lines those behind its heading."""
    text = re.sub("-{4,}", "", str(error).rpartition("Error Message Summary:")[2])
    return f"{type(error).__name__}: {' '.join(text.split())}"[:300]


@dataclass(frozen=True)
class Scale:
    """`golden` names the variants whose golden values are compared; speed is of `variants` and of a ResNet of `resnet`
    layers, `batch` images of `size` x `size` pixels. Trainers run `steps` steps of `train_batch` crops of `crop` x
    `crop` pixels on the variant `trained`, Mask R-CNN with so many `regions` of a picture.
    """

    device: str
    golden: tuple[str, ...] = ("b1", "b5")
    variants: tuple[str, ...] = ("b1", "b2", "b3", "b4", "b5")
    resnet: int = 50
    batch: int = 64
    size: int = 224
    rounds: int = 9
    steps: int = 50
    crop: int = 512
    train_batch: int = 4
    trained: str = "b1"
    regions: int = 512


SCALES = {
    "gpu": Scale("gpu"),
    "cpu": Scale(
        "cpu",
        ("b1",),
        ("b0",),
        18,
        batch=1,
        size=64,
        rounds=1,
        steps=6,
        crop=64,
        train_batch=2,
        trained="b0",
        regions=16,
    ),
}
"""A CPU's shows that the program works, and measures nothing that is kept."""


@dataclass(frozen=True)
class Precision:
    """Autocast to `dtype`, if any; how far from the golden values results may be, relative to the largest, and norms of
    gradients, relative to themselves.

    The bounds of half precision are two to four times what comes out on a CPU where every layer's output, gradient
    and weight is rounded to it. TF32 keeps as many bits as float16.
    """

    bound: float
    norm_bound: float
    dtype: str | None = None


PRECISIONS = {
    "fp32": Precision(1e-4, 2e-3),
    "tf32": Precision(5e-3, 5e-3),
    "fp16": Precision(5e-3, 5e-3, "float16"),
    "bf16": Precision(3e-2, 3e-2, "bfloat16"),
}


def lacks(device: str, name: str) -> str | None:
    """What a CPU does not have of a precision, of which Paddle says nothing: there, its autocast does nothing."""
    if device != "cpu" or name == "fp32":
        return None
    dtype = PRECISIONS[name].dtype
    return f"Paddle has no {dtype} convolution on a CPU, and no autocast" if dtype else "TF32 is a GPU's"


def autocast(scale: Scale, name: str, level: str = "O1") -> Callable[[], AbstractContextManager[Any]]:
    """What a forward in this precision runs in. NotHere where the device does not have it."""
    import paddle

    precision = PRECISIONS[name]
    if reason := lacks(scale.device, name):
        raise NotHere(reason)
    if precision.dtype == "bfloat16" and not paddle.amp.is_bfloat16_supported():
        raise NotHere("this GPU has no bfloat16")
    if precision.dtype is None:
        return nullcontext
    return lambda: paddle.amp.auto_cast(level=level, dtype=precision.dtype)
