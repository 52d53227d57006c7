"""Mixed precision: what is cast, and the loss scale that goes with it."""

from __future__ import annotations

import contextlib
import logging

import paddle
from paddle import nn

from classification.config import AmpConfig
from classification.optim import LossScaler

logger = logging.getLogger(__name__)


class Precision:
    """What mixed precision does here: nothing on a CPU, which is said once."""

    def __init__(self, amp: AmpConfig):
        accelerator = not paddle.get_device().startswith("cpu")
        if amp.dtype != "none" and not accelerator:
            logger.info("amp.dtype %s is left out: a CPU trains in float32, without loss scaling", amp.dtype)
        self.dtype = amp.dtype if accelerator else "none"
        self.level = amp.level
        self.scaler = LossScaler(amp.initial_scale, enabled=self.dtype == "float16")

    @property
    def half_weights(self) -> bool:
        """Whether the weights are half precision, with float32 master weights in the optimizer."""
        return self.dtype != "none" and self.level == "O2"

    def decorate(self, model: nn.Layer) -> nn.Layer:
        """`model` with half-precision weights where they are asked for."""
        return paddle.amp.decorate(model, level="O2", dtype=self.dtype) if self.half_weights else model

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype == "none":
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype)
