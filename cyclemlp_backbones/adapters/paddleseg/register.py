"""CycleMLP in PaddleSeg: importing this module registers the backbones `CycleMLP_B0` … `CycleMLP_B5`, `CycleMLP_T`,
`CycleMLP_S` and `CycleMLP_B`, the model `SemanticFPN` and the optimizer `AdamWLayerDecay`;
`register_paddleseg(repair=True)` also mends the release."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paddle import Tensor, nn

from cyclemlp_backbones.adapters.launch import importing
from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.factory import Pretrained, build_backbone
from cyclemlp_backbones.heads.semantic_fpn import SemanticFPN as SemanticFPN
from cyclemlp_backbones.layer_decay import apply_layer_decay
from cyclemlp_backbones.variants import list_variants
from cyclemlp_backbones.weights.formats import Layout

with importing("PaddleSeg", "paddleseg", "seg"):
    from paddleseg.cvlibs import manager
    from paddleseg.optimizers.optimizer import AdamW


class _Maps(list):
    """Maps, high to low resolution, which MaskFormer reads by the names "res2" to "res5"; "res5" is the last."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(int(key[3:]) - 6 if isinstance(key, str) else key)


class _CycleMLP(CycleNet):
    """A CycleNet with what PaddleSeg's models read."""

    @property
    def feat_channels(self) -> list[int]:
        return [spec.channels for spec in self.stage_specs]

    def output_shape(self) -> dict[str, dict[str, int]]:
        """Channels and stride of each map, by its name."""
        specs = self.stage_specs
        return {f"res{6 - len(specs) + i}": dict(vars(spec)) for i, spec in enumerate(specs)}

    def forward(self, image: Tensor) -> list[Tensor]:
        return _Maps(self.forward_features(image))


def _backbone(variant: str) -> Callable[..., CycleNet]:
    """The function that PaddleSeg's registry calls for `variant`."""

    def build(
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        use_recompute: bool = False,
        pretrained: Pretrained = None,
        layout: Layout | None = None,
    ) -> CycleNet:
        backbone = build_backbone(
            variant,
            out_indices=out_indices,
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            frozen_stages=frozen_stages,
            use_recompute=use_recompute,
            pretrained=pretrained,
            layout=layout,
        )
        backbone.__class__ = _CycleMLP
        return backbone

    build.__name__ = build.__qualname__ = f"CycleMLP_{variant.upper()}"
    build.__doc__ = f"""CycleMLP-{variant.upper()} as a feature pyramid for PaddleSeg: strides 4, 8, 16, 32.

    Args:
        in_channels: channels of the image; PaddleSeg itself sets it for some data sets.
        out_indices: stages to return, an increasing subset of 0..3; negative ones count from the last.
        drop_path_rate: stochastic depth rate of the last block; a linear ramp from 0 leads to it.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        use_recompute: in training, less memory for more time.
        pretrained: None, a path or URL of a weights file, or True for the published ImageNet weights; those of another
            number of channels are adapted.
        layout: "paddle" or "torch", for a file that cannot tell how its Linear weights lie.

    Raises ValueError for a value that is not allowed, CheckpointError for weights that do not fit.
    """
    return build


_BACKBONES = tuple(_backbone(variant) for variant in list_variants())
CycleMLP_B0, CycleMLP_B1, CycleMLP_B2, CycleMLP_B3, CycleMLP_B4, CycleMLP_B5, *_RECONSTRUCTED = _BACKBONES
CycleMLP_T, CycleMLP_S, CycleMLP_B = _RECONSTRUCTED


class AdamWLayerDecay(AdamW):
    """PaddleSeg's AdamW whose rate falls towards the stem of a CycleMLP backbone: `layer_decay_factor`.

    Args:
        layer_decay: factor on the rate from block to block, above 0 and at most 1.
        beta1, beta2, epsilon, weight_decay, lazy_mode, grad_clip_cfg: PaddleSeg's AdamW's.
        custom_cfg: PaddleSeg's AdamW's; a `lr_mult` multiplies the factor.
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


def register_paddleseg(*, repair: bool = False) -> None:
    """Registers backbones, model and optimizer; with `repair`, mends what the release gets wrong (see `repairs`).

    Idempotent; importing this module registers without repairing. Raises ValueError if PaddleSeg has another component
    of one of the names.
    """
    registries = (
        (manager.BACKBONES, _BACKBONES),
        (manager.MODELS, (SemanticFPN,)),
        (manager.OPTIMIZERS, (AdamWLayerDecay,)),
    )
    for registry, components in registries:
        for component in components:
            registered = registry.components_dict.setdefault(component.__name__, component)
            if registered.__module__ != component.__module__:
                raise ValueError(
                    f"PaddleSeg has a {component.__name__} already, from {registered.__module__}; "
                    "remove that one, or do not register CycleMLP"
                )
            registry.components_dict[component.__name__] = component  # the earlier one is ours, of before a reload
    if repair:
        from cyclemlp_backbones.adapters.paddleseg.repairs import REPAIRS

        REPAIRS.apply()


register_paddleseg()
