"""Layer-wise decay of the learning rate: the earlier a block, the lower its rate (as in BEiT, arXiv 2106.08254)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from paddle import nn

from cyclemlp_backbones.cyclenet import CycleNet

_STEM = re.compile(r"(?:backbone\.)?patch_embed\.")
_STAGE = re.compile(r"(?:backbone\.)?network\.(\d+)\.(\d+|proj)\.")


def layer_decay_factor(name: str, depths: Sequence[int], decay: float) -> float:
    """The factor, `decay ** distance`, on the learning rate of the parameter `name` of a CycleNet with `depths`.

    Blocks are counted from the end: the last has distance 1, the first sum(depths), the stem one more. A downsampling
    counts with the block behind it. All else, pyramid norms, a classifier's norm and head, a toolkit's neck and heads,
    has distance 0. `name` may begin with `backbone.`. Raises ValueError for a block that `depths` do not have and for
    a decay that is not above 0 and at most 1.
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"the layer-wise decay is {decay!r}; it takes a number above 0 and at most 1")
    blocks = sum(depths)
    if _STEM.match(name):
        return decay ** (blocks + 1)
    found = _STAGE.match(name)
    if found is None:
        return 1.0
    position, block = int(found[1]), found[2]
    stage = (position + 1) // 2  # network.{2i} is stage i, network.{2i - 1} the downsampling before it
    is_downsampling = position % 2 == 1
    if (
        stage >= len(depths)
        or is_downsampling != (block == "proj")
        or (not is_downsampling and int(block) >= depths[stage])
    ):
        raise ValueError(f"no parameter {name!r} in a network of depths {tuple(depths)}")
    before = sum(depths[:stage]) + (0 if is_downsampling else int(block))
    return decay ** (blocks - before)


def apply_layer_decay(model: nn.Layer, decay: float) -> dict[str, float]:
    """Multiplies each parameter's own learning rate by its `layer_decay_factor`; returns the factors by name.

    `model` is a CycleNet or has one as `backbone`, else ValueError. To be called once, after the optimizer is made:
    Paddle's optimizers, all of them, multiply their rate by the parameter's.
    """
    network = model if isinstance(model, CycleNet) else getattr(model, "backbone", None)
    if not isinstance(network, CycleNet):
        raise ValueError(
            f"layer-wise decay is for a CycleMLP, but the model {type(model).__name__} "
            + ("has no backbone" if network is None else f"has the backbone {type(network).__name__}")
        )
    depths = [len(stage) for stage in network.network[::2]]
    factors = {}
    for name, parameter in model.named_parameters():
        factors[name] = layer_decay_factor(name, depths, decay)
        parameter.optimize_attr["learning_rate"] = parameter.optimize_attr["learning_rate"] * factors[name]
    return factors
