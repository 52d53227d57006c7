"""CycleMLP in PaddleDetection: importing this module registers the backbone `CycleMLP`, makes COCODataSet check its
annotation file (see `coco_checks`), and repairs what the installed release gets wrong (see `paddledet_repairs`)."""

# No `from __future__ import annotations`: PaddleDetection checks a configuration's values against these annotations.

from collections.abc import Mapping, Sequence

from paddle import Tensor

from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.factory import Pretrained
from cyclemlp_backbones.variants import VARIANTS, variant_name
from cyclemlp_backbones.weights import load_weights, locate_weights

try:
    from ppdet.core.workspace import global_config, register, serializable
    from ppdet.modeling.shape_spec import ShapeSpec
except ImportError as error:
    missing = isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "ppdet"
    if missing:
        raise ImportError('PaddleDetection is not installed; `pip install "cyclemlp-backbones[det]"`') from error
    raise ImportError(
        f"`import ppdet` fails: {error}. If it speaks of numpy: opencv-python 4.5 was built for numpy 1 and does "
        'not load with numpy 2; `pip install "numpy<2"`, or all at once `pip install "cyclemlp-backbones[det]"`'
    ) from error

from cyclemlp_backbones.adapters.paddledet_repairs import apply_repairs


class CycleMLP(CycleNet):
    """CycleMLP as a feature pyramid for PaddleDetection.

    Args:
        arch: "b0" to "b5".
        out_indices: stages to return, an increasing subset of 0..3: [0, 1, 2, 3] for R-CNNs, [1, 2, 3] for RetinaNet.
        drop_path_rate, frozen_stages, use_recompute: as for `CycleNet`.
        pretrained: None, a path or URL of a weights file, or True for the published ImageNet weights, which have to
            fit: a classifier's file, a backbone's, or a detector's, of which the backbone is taken.

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
            load_weights(self, locate_weights(pretrained, arch))

    @property
    def out_shape(self) -> list[ShapeSpec]:
        """Channels and stride of each output, as necks read them."""
        return [ShapeSpec(channels=spec.channels, stride=spec.stride) for spec in self.stage_specs]

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """`inputs["image"]` [N, 3, H, W] -> maps [N, C_i, H_i, W_i], high to low resolution."""
        return self.forward_features(inputs["image"])


def register_paddledet() -> None:
    """Registers the backbone and applies the repairs. Idempotent; importing this module calls it.

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
    apply_repairs()


register_paddledet()
