"""CycleMLP in PaddleDetection: importing this module registers the backbone `CycleMLP`, makes COCODataSet check its
annotation file (see `coco`), and repairs what the installed release gets wrong (see `repairs`)."""

# No `from __future__ import annotations`: PaddleDetection checks a configuration's values against these annotations.

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from paddle import Tensor, nn

from cyclemlp_backbones.adapters.paddledet.coco import check_annotations
from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.factory import Pretrained
from cyclemlp_backbones.layer_decay import apply_layer_decay
from cyclemlp_backbones.variants import VARIANTS, variant_name
from cyclemlp_backbones.weights.loading import load_weights, locate_weights

try:
    from ppdet.core.workspace import global_config, register, serializable
    from ppdet.data.source.coco import COCODataSet
    from ppdet.modeling.shape_spec import ShapeSpec
    from ppdet.optimizer import optimizer as optimizer_builders
except ImportError as error:
    missing = isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "ppdet"
    if missing:
        raise ImportError('PaddleDetection is not installed; `pip install "cyclemlp-backbones[det]"`') from error
    raise ImportError(
        f"`import ppdet` fails: {error}. If it speaks of numpy: opencv-python 4.5 was built for numpy 1 and does "
        'not load with numpy 2; `pip install "numpy<2"`, or all at once `pip install "cyclemlp-backbones[det]"`'
    ) from error

from cyclemlp_backbones.adapters.paddledet.repairs import apply_repairs

LAYER_DECAY = "cyclemlp_layer_decay"
"""The value of AdamWDL's `set_param_lr_func` that stands for `layer_decay_factor`."""


class CycleMLP(CycleNet):
    """CycleMLP as a feature pyramid for PaddleDetection.

    Args:
        arch: "b0" to "b5".
        out_indices: stages to return, an increasing subset of 0..3: [0, 1, 2, 3] for R-CNNs, [1, 2, 3] for RetinaNet.
        drop_path_rate, frozen_stages, use_recompute: as for `CycleNet`.
        pretrained: None, a path or URL of a weights file, or True for the published ImageNet weights, which have to
            fit: a classifier's file, a backbone's, or a detector's, of which the backbone is taken. Norms of maps
            that are not in `out_indices` are left out.

    Raises ValueError for a value that is not allowed, CheckpointError for weights that do not fit.
    """

    def __init__(
        self,
        arch: str = "b1",
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        use_recompute: bool = False,
        pretrained: Pretrained = None,
    ):
        size = VARIANTS[variant_name(arch)]
        super().__init__(
            size.depths,
            size.embed_dims,
            size.mlp_ratios,
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            frozen_stages=frozen_stages,
            use_recompute=use_recompute,
        )
        if pretrained is not None and pretrained is not False:
            others = [f"norm{2 * index}.*" for index in range(4) if index not in self.out_indices]
            load_weights(self, locate_weights(pretrained, arch), ignore=others)

    @property
    def out_shape(self) -> list[ShapeSpec]:
        """Channels and stride of each output, as necks read them."""
        return [ShapeSpec(channels=spec.channels, stride=spec.stride) for spec in self.stage_specs]

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """`inputs["image"]` [N, 3, H, W] -> maps [N, C_i, H_i, W_i], high to low resolution."""
        return self.forward_features(inputs["image"])


@functools.cache
def _check_annotations_first() -> None:
    parse = COCODataSet.parse_dataset

    @functools.wraps(parse)
    def check_and_parse(self: COCODataSet) -> None:
        check_annotations(
            os.path.join(self.dataset_dir, self.anno_path), os.path.join(self.dataset_dir, self.image_dir)
        )
        parse(self)

    COCODataSet.parse_dataset = check_and_parse


@functools.cache
def _offer_layer_decay() -> None:
    """Makes AdamWDL take `set_param_lr_func: cyclemlp_layer_decay` with its `layer_decay`."""
    build = optimizer_builders.build_adamwdl

    @functools.wraps(build)
    def build_with_layer_decay(
        model: nn.Layer,
        lr: Any,
        *,
        layer_decay: float = 0.65,
        set_param_lr_func: str | None = "layerwise_lr_decay",
        **arguments: Any,
    ) -> Any:
        if set_param_lr_func == LAYER_DECAY:
            optimizer = build(model, lr, layer_decay=1.0, set_param_lr_func=None, **arguments)
            apply_layer_decay(model, layer_decay)
            return optimizer
        if set_param_lr_func is not None and isinstance(getattr(model, "backbone", None), CycleNet):
            raise ValueError(
                f"set_param_lr_func is {set_param_lr_func!r}, which does not know CycleMLP's parameters; "
                f"it takes {LAYER_DECAY} or null"
            )
        return build(model, lr, layer_decay=layer_decay, set_param_lr_func=set_param_lr_func, **arguments)

    optimizer_builders.build_adamwdl = build_with_layer_decay


def register_paddledet() -> None:
    """Registers the backbone and the layer-wise decay, and applies the repairs. Idempotent; importing this module calls
    it.

    Raises ValueError if PaddleDetection has another component of that name.
    """
    registered = global_config.get(CycleMLP.__name__)
    if registered is None:
        register(serializable(CycleMLP))
    elif getattr(registered, "pymodule", None) is None or registered.pymodule.__name__ != __name__:
        raise ValueError(
            f"PaddleDetection has a {CycleMLP.__name__} already, from "
            f"{getattr(getattr(registered, 'pymodule', None), '__name__', 'a configuration')}; "
            "remove that one, or do not register ours"
        )
    _check_annotations_first()
    _offer_layer_decay()
    apply_repairs()


register_paddledet()
