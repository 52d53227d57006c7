"""AdamW with the recipe's groups, and one step that knows infinite gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from cyclemlp_backbones import apply_layer_decay

from .config import OptimizerConfig
from .precision import lower_scale

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


def build_optimizer(model: nn.Layer, config: OptimizerConfig) -> paddle.optimizer.AdamW:
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
        grad_clip=None if config.clip_norm is None else nn.ClipGradByGlobalNorm(config.clip_norm),
    )
    if config.layer_decay is not None:
        apply_layer_decay(model, config.layer_decay)
    return optimizer


@paddle.no_grad()
def global_norm(gradients: Sequence[Tensor]) -> float:
    """The Euclidean norm of all gradients together; not finite if one of them is not."""
    if not gradients:
        return 0.0
    squares = [gradient.astype("float32").square().sum() for gradient in gradients]
    return math.sqrt(total) if math.isfinite(total := float(paddle.stack(squares).sum())) else math.inf


@paddle.no_grad()
def take_step(
    optimizer: paddle.optimizer.Optimizer, parameters: Sequence[Tensor], scaler: paddle.amp.GradScaler
) -> float:
    """Unscales the gradients, steps, by the clipping that `optimizer` was built with, and clears them.

    The result is their global norm before clipping. It is not finite if one of them is not: no step is taken then.
    Gradients of half-precision weights become float32 first: unscaled, most would vanish in float16.
    """
    half = [parameter for parameter in parameters if parameter.dtype in _HALF and parameter.grad is not None]
    for parameter in half:
        gradient = parameter.grad.astype("float32")
        parameter.clear_gradient(False)  # no zeros: the gradient of another type takes its place
        parameter.grad = gradient
    scaler.unscale_(optimizer)
    norm = global_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    finite = math.isfinite(norm)
    if not finite:
        optimizer.clear_grad(set_to_zero=False)  # nothing is left to step by, with a scaler or without
    scaler.step(optimizer)
    scaler.update()
    if not finite:
        lower_scale(scaler)
    optimizer.clear_grad(set_to_zero=not half)  # a zero would stay float32
    return norm
