"""The moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import paddle
from paddle import Tensor, nn


class WeightAverage:
    """`average = decay * average + (1 - decay) * weights` in float32, one `update` per optimizer step; it starts as a
    copy of the weights."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float):
        self.decay = decay
        # 1 - decay in float64: 1 - 0.99996 has three digits in float32. A tensor: Paddle 3.3 makes one of a number at
        # every call, and each that it makes in Python leaves a hundred bytes for good.
        self.share = paddle.to_tensor(1.0 - decay, "float32")
        self.values = {name: weight.detach().astype("float32").clone() for name, weight in weights.items()}

    @paddle.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        for name, average in self.values.items():
            average.lerp_(weights[name].detach().astype("float32"), self.share)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, average in self.values.items():
            average.set_value(arrays[name])


@contextlib.contextmanager
def weights_replaced(model: nn.Layer, values: Mapping[str, Tensor]) -> Iterator[None]:
    """`model` with other weights for as long as the context lasts."""
    state = model.state_dict()
    kept = {name: state[name].clone() for name in values}
    try:
        for name, value in values.items():
            state[name].set_value(value.astype(state[name].dtype))
        yield
    finally:
        for name, value in kept.items():
            state[name].set_value(value)
