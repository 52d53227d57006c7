"""AdamW with the recipe's groups, the loss scaler, and one step that clips and knows infinite gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor, nn
from paddle.base import core

from classification.config import OptimizerConfig
from cyclemlp_backbones import apply_layer_decay

_HALF = (paddle.float16, paddle.bfloat16)
_NORMS = (nn.LayerNorm, nn.BatchNorm1D, nn.BatchNorm2D, nn.BatchNorm3D, nn.BatchNorm, nn.GroupNorm, nn.SyncBatchNorm)


def no_decay_names(model: nn.Layer) -> set[str]:
    """The names of the parameters without weight decay: biases, and all of the normalisation layers."""
    names = set()
    for prefix, layer in model.named_sublayers(include_self=True):
        for name, _ in layer.named_parameters(include_sublayers=False):
            if isinstance(layer, _NORMS) or name == "bias":
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def build_optimizer(
    model: nn.Layer, config: OptimizerConfig, *, master_weights: bool = False
) -> paddle.optimizer.AdamW:
    """AdamW over all parameters that train; decay and layer-wise rates go by the parameters' names."""
    structured = {parameter.name: name for name, parameter in model.named_parameters()}
    without_decay = no_decay_names(model)
    optimizer = paddle.optimizer.AdamW(
        learning_rate=config.lr,  # set anew before every step
        beta1=config.beta1,
        beta2=config.beta2,
        epsilon=config.epsilon,
        parameters=[parameter for parameter in model.parameters() if not parameter.stop_gradient],
        weight_decay=config.weight_decay,
        apply_decay_param_fun=lambda name: structured[name] not in without_decay,
        multi_precision=master_weights,
    )
    if config.layer_decay is not None:
        apply_layer_decay(model, config.layer_decay)
    return optimizer


class LossScaler:
    """The scale that keeps float16 gradients from vanishing: halved after a step with infinite gradients, which is not
    taken, doubled after `interval` good ones. `enabled` False scales by 1 and never changes."""

    def __init__(self, scale: float = 65536.0, *, interval: int = 2000, least: float = 1.0, enabled: bool = True):
        self.enabled, self.interval, self.least = enabled, interval, least
        self.scale = float(scale) if enabled else 1.0
        self.good_steps = 0

    def update(self, finite: bool) -> None:
        if not self.enabled:
            return
        if not finite:
            self.scale, self.good_steps = max(self.least, self.scale / 2), 0
            return
        self.good_steps += 1
        if self.good_steps == self.interval:
            self.scale, self.good_steps = self.scale * 2, 0

    def state(self) -> dict[str, float]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load(self, state: Mapping[str, float]) -> None:
        if self.enabled:
            self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])


@dataclass(frozen=True)
class StepReport:
    """`norm`, the global gradient norm before clipping, and whether the step was `taken`."""

    norm: float
    taken: bool


@paddle.no_grad()
def global_norm(gradients: Sequence[Tensor]) -> float:
    """The Euclidean norm of all gradients together; not finite if one of them is not."""
    if not gradients:
        return 0.0
    squares = [gradient.astype("float32").square().sum() for gradient in gradients]
    return math.sqrt(total) if math.isfinite(total := float(paddle.stack(squares).sum())) else math.inf


@paddle.no_grad()
def take_step(
    optimizer: paddle.optimizer.Optimizer, parameters: Sequence[Tensor], scaler: LossScaler, *, clip_norm: float | None
) -> StepReport:
    """Unscales the gradients, clips their global norm, steps and clears them; no step if one is not finite.

    Gradients of half-precision weights become float32 first: unscaled, most would vanish in float16.
    """
    half = [parameter for parameter in parameters if parameter.dtype in _HALF and parameter.grad is not None]
    if half:
        core.eager.set_master_grads(half)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = global_norm(gradients) / scaler.scale
    finite = math.isfinite(norm)
    if finite:
        factor = 1 / scaler.scale
        if clip_norm is not None and norm > clip_norm:
            factor *= clip_norm / norm
        if factor != 1:
            for gradient in gradients:
                gradient.scale_(factor)
        optimizer.step()
    optimizer.clear_grad(set_to_zero=not half)  # a zero would stay float32
    scaler.update(finite)
    return StepReport(norm, finite)
