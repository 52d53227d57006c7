"""Mixed precision: what is cast, and the loss scale that goes with it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

import paddle
from paddle import nn
from paddle.amp import GradScaler

from .config import AmpConfig

logger = logging.getLogger(__name__)


class Precision:
    """What mixed precision does here: nothing on a CPU, which is said once. `scaler` is at work for float16 only."""

    def __init__(self, amp: AmpConfig):
        accelerator = not paddle.get_device().startswith("cpu")
        if amp.dtype != "none" and not accelerator:
            logger.info("amp.dtype %s is left out: a CPU trains in float32, without loss scaling", amp.dtype)
        self.dtype = amp.dtype if accelerator else "none"
        self.level = amp.level
        self.scaler = build_scaler(amp.initial_scale, enable=self.dtype == "float16")

    @property
    def half_weights(self) -> bool:
        """Whether the weights are half precision, with float32 master weights in the optimizer."""
        return self.dtype != "none" and self.level == "O2"

    def decorate(
        self, model: nn.Layer, optimizer: paddle.optimizer.Optimizer
    ) -> tuple[nn.Layer, paddle.optimizer.Optimizer]:
        """Both with half-precision weights, and master weights, where they are asked for.

        Not with `master_grad`: gradients in float32 after every backward do not take the next micro-batch's half ones.
        """
        if not self.half_weights:
            return model, optimizer
        return paddle.amp.decorate(model, optimizer, level="O2", dtype=self.dtype, master_weight=True)

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype == "none":
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype)


def build_scaler(scale: float, *, enable: bool = True, interval: int = 2000) -> GradScaler:
    """Keeps float16 gradients from vanishing: doubles its scale after `interval` good steps. `lower_scale` halves it:
    Paddle's own way prints to standard output, and fails with NumPy 2.5, hence a count that is never reached."""
    never = 2**31 - 1
    return GradScaler(
        enable=enable, init_loss_scaling=scale, incr_every_n_steps=interval, decr_every_n_nan_or_inf=never
    )


def lower_scale(scaler: GradScaler) -> None:
    """After a step with infinite gradients. Not below 1: a step that has them there has them without a scaler."""
    if scaler.is_enable():
        scaler.set_init_loss_scaling(max(1.0, loss_scale(scaler) / 2))


def scaler_state(scaler: GradScaler) -> dict[str, float]:
    """What a run state keeps of `scaler`: nothing of one that does nothing."""
    state = scaler.state_dict()
    return {"scale": float(state["scale"][0]), "good_steps": state["incr_count"]} if state else {}


def restore_scaler(scaler: GradScaler, saved: Mapping[str, float]) -> None:
    if scaler.is_enable() and saved:
        state = {"scale": [saved["scale"]], "incr_count": int(saved["good_steps"])}
        scaler.load_state_dict({**scaler.state_dict(), **state})


def loss_scale(scaler: GradScaler) -> float:
    """What losses are multiplied by now."""
    return scaler_state(scaler).get("scale", 1.0)
