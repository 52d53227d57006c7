"""AdamW with layer-wise decay in PaddleSeg's registry of optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paddle import nn
from paddleseg.optimizers.optimizer import AdamW

from cyclemlp_backbones.layer_decay import apply_layer_decay


class AdamWLayerDecay(AdamW):
    """PaddleSeg's AdamW whose rate falls towards the stem of a CycleMLP backbone: `layer_decay_factor`.

    `layer_decay` is above 0 and at most 1; the other arguments are PaddleSeg's AdamW's. A `lr_mult` of `custom_cfg`
    multiplies the factor.
    """

    def __init__(
        self,
        layer_decay: float = 0.9,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        lazy_mode: bool = False,
        grad_clip_cfg: Mapping[str, Any] | None = None,
        custom_cfg: Sequence[Mapping[str, Any]] | None = None,
    ):
        super().__init__(beta1, beta2, epsilon, weight_decay, lazy_mode, grad_clip_cfg, custom_cfg)
        self.layer_decay = layer_decay

    def __call__(self, model: nn.Layer, lr: Any) -> Any:
        optimizer = super().__call__(model, lr)
        apply_layer_decay(model, self.layer_decay)
        return optimizer
