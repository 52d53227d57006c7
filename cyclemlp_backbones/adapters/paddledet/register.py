"""CycleMLP in PaddleDetection: importing this module registers the backbone `CycleMLP`;
`register_paddledet(repair=True)` also mends what the installed release gets wrong (see `repairs`)."""

# No `from __future__ import annotations`: PaddleDetection checks a configuration's values against these annotations.

import sys
from collections.abc import Mapping, Sequence

import numpy as np
from paddle import Tensor

from cyclemlp_backbones.adapters.launch import importing
from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.factory import Pretrained
from cyclemlp_backbones.variants import VARIANTS, variant_name
from cyclemlp_backbones.weights.formats import Layout
from cyclemlp_backbones.weights.loading import load_weights, locate_weights

if not hasattr(np, "sctypes"):  # imgaug 0.4.0, which newer releases import, reads this table of numpy 1
    kinds = {"float": "efd", "int": "bhil", "uint": "BHIL"}
    vars(np)["sctypes"] = {kind: [np.dtype(code).type for code in codes] for kind, codes in kinds.items()}

with importing("PaddleDetection", "ppdet", "det"):
    from ppdet.core.workspace import global_config, register, serializable
    from ppdet.modeling.shape_spec import ShapeSpec

LAYER_DECAY = "cyclemlp_layer_decay"
"""The value of AdamWDL's `set_param_lr_func` that stands for `layer_decay_factor`; a repair makes it known."""


class CycleMLP(CycleNet):
    """CycleMLP as a feature pyramid for PaddleDetection.

    Args:
        arch: "b0" to "b5", "t", "s" or "b".
        in_channels: channels of the image.
        out_indices: stages to return, an increasing subset of 0..3: [0, 1, 2, 3] for R-CNNs, [1, 2, 3] for RetinaNet;
            negative ones count from the last.
        drop_path_rate: stochastic depth rate of the last block; a linear ramp from 0 leads to it.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        use_recompute: in training, less memory for more time.
        pretrained: None, a path or URL of a weights file, or True for the published ImageNet weights, which have to
            fit: a classifier's file, a backbone's, or a detector's, of which the backbone is taken. Norms of maps
            that are not in `out_indices` are left out, a stem of another number of channels is adapted.
        layout: "paddle" or "torch", for a file that cannot tell how its Linear weights lie.

    Raises ValueError for a value that is not allowed, CheckpointError for weights that do not fit.
    """

    def __init__(
        self,
        arch: str = "b1",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        use_recompute: bool = False,
        pretrained: Pretrained = None,
        layout: Layout | None = None,
    ):
        super().__init__(
            **VARIANTS[variant_name(arch)].network,
            out_indices=out_indices,
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            frozen_stages=frozen_stages,
            use_recompute=use_recompute,
        )
        if pretrained is not None and pretrained is not False:
            load_weights(self, locate_weights(pretrained, arch), layout=layout, adapt=True)

    @property
    def out_shape(self) -> list[ShapeSpec]:
        """Channels and stride of each output, as necks read them."""
        return [ShapeSpec(channels=spec.channels, stride=spec.stride) for spec in self.stage_specs]

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """`inputs["image"]` [N, C, H, W] -> maps [N, C_i, H_i, W_i], high to low resolution."""
        return self.forward_features(inputs["image"])


def register_paddledet(*, repair: bool = False) -> None:
    """Registers the backbone; with `repair`, mends what the installed release gets wrong (see `repairs`).

    Idempotent; importing this module registers without repairing. Raises ValueError if PaddleDetection has another
    component of that name.
    """
    registered = global_config.get(CycleMLP.__name__)
    owner = getattr(getattr(registered, "pymodule", None), "__name__", "a configuration")
    if registered is None:
        register(serializable(CycleMLP))
    elif owner != __name__:
        raise ValueError(
            f"PaddleDetection has a {CycleMLP.__name__} already, from {owner}; remove that one, or do not register ours"
        )
    else:
        registered.pymodule = sys.modules[__name__]  # where PaddleDetection looks the class up; changed by a reload
    if repair:
        from cyclemlp_backbones.adapters.paddledet.repairs import REPAIRS

        REPAIRS.apply()


register_paddledet()
