"""The network that is trained or evaluated, and the weights it starts from."""

from __future__ import annotations

import logging

from cyclemlp_backbones import VARIANTS, CheckpointError, CycleNet, LoadReport, load_weights, locate_weights

from .config import Config, ModelConfig

logger = logging.getLogger(__name__)

PUBLISHED = "published"
HEAD = ("head.*",)


def build_student(config: ModelConfig) -> CycleNet:
    """The classifier that `config` describes, freshly initialised."""
    size = VARIANTS[config.variant]
    return CycleNet(
        config.depths or size.depths,
        config.embed_dims or size.embed_dims,
        config.mlp_ratios or size.mlp_ratios,
        num_classes=config.num_classes,
        drop_path_rate=config.drop_path_rate,
        use_recompute=config.use_recompute,
    )


def load_pretrained(model: CycleNet, config: Config) -> LoadReport | None:
    """Loads `model.pretrained` strictly; with `model.replace_head` all but the head, which stays fresh."""
    pretrained, replace_head = config.model.pretrained, config.model.replace_head
    if not pretrained:
        if replace_head:
            raise ValueError("model.replace_head is true, but there is no model.pretrained whose head it could replace")
        return None
    path = locate_weights(True if pretrained == PUBLISHED else pretrained, config.model.variant)
    try:
        report = load_weights(model, path, ignore=HEAD if replace_head else ())
    except CheckpointError as error:
        hint = "" if replace_head or "head.weight" not in str(error) else " (here: model.replace_head: true)"
        raise CheckpointError(f"{error}{hint}") from error
    if replace_head:
        logger.info("the head is replaced: %d classes, freshly initialised", config.model.num_classes)
    return report
