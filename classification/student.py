"""The network that is trained or evaluated, and the weights it starts from."""

from __future__ import annotations

import logging
from pathlib import Path

from cyclemlp_backbones import VARIANTS, CycleNet, LoadReport, load_weights, locate_weights

from .config import Config, ModelConfig

logger = logging.getLogger(__name__)

PUBLISHED = "published"
HEAD = ("head.*",)


def build_student(config: ModelConfig) -> CycleNet:
    """The classifier that `config` describes, freshly initialised."""
    own = {name: sizes for name in ("depths", "embed_dims", "mlp_ratios") if (sizes := getattr(config, name))}
    return CycleNet(
        **{**VARIANTS[config.variant].network, **own},
        num_classes=config.num_classes,
        drop_path_rate=config.drop_path_rate,
        use_recompute=config.use_recompute,
    )


def weights_path(config: ModelConfig) -> Path:
    """The file that `config.pretrained` means, which must not be None."""
    return locate_weights(True if config.pretrained == PUBLISHED else config.pretrained or "", config.variant)


def load_pretrained(model: CycleNet, config: Config, *, adapt: bool) -> LoadReport | None:
    """Loads `model.pretrained`. With `adapt`, to train on: a head of another number of classes stays fresh, as any does
    with `model.replace_head`, and a stem of other channels is adapted. Without, for results, all has to fit."""
    pretrained, replace_head = config.model.pretrained, config.model.replace_head
    if not pretrained:
        if replace_head:
            raise ValueError("model.replace_head is true, but there is no model.pretrained whose head it could replace")
        return None
    report = load_weights(model, weights_path(config.model), ignore=HEAD if replace_head else (), adapt=adapt)
    if head_replaced(report):
        logger.info("the head is replaced: %d classes, freshly initialised", config.model.num_classes)
    return report


def head_replaced(report: LoadReport | None) -> bool:
    """Whether the file's head was left out."""
    return report is not None and "head.weight" in (*report.ignored, *report.fresh_head)
