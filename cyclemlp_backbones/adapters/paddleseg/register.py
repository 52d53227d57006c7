"""CycleMLP in PaddleSeg: importing this module registers the backbones `CycleMLP_B0` … `CycleMLP_B5`, the model
`SemanticFPN` and the optimizer `AdamWLayerDecay`, and repairs what the release gets wrong (see `repairs`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.factory import Pretrained, build_backbone
from cyclemlp_backbones.heads.semantic_fpn import SemanticFPN as SemanticFPN
from cyclemlp_backbones.variants import list_variants

try:
    from paddleseg.cvlibs import manager
except ImportError as error:
    missing = isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "paddleseg"
    if missing:
        raise ImportError('PaddleSeg is not installed; `pip install "cyclemlp-backbones[seg]"`') from error
    raise ImportError(
        f"`import paddleseg` fails: {error}. If it speaks of numpy: opencv-python 4.5 was built for numpy 1 and does "
        'not load with numpy 2; `pip install "numpy<2"`, or all at once `pip install "cyclemlp-backbones[seg]"`'
    ) from error

from cyclemlp_backbones.adapters.paddleseg.optimizer import AdamWLayerDecay
from cyclemlp_backbones.adapters.paddleseg.repairs import apply_repairs


def _backbone_component(variant: str) -> Callable[..., CycleNet]:
    """The function that PaddleSeg's registry calls for `variant`."""

    def build(
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        use_recompute: bool = False,
        pretrained: Pretrained = None,
    ) -> CycleNet:
        backbone = build_backbone(
            variant,
            out_indices=out_indices,
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            frozen_stages=frozen_stages,
            use_recompute=use_recompute,
            pretrained=pretrained,
        )
        backbone.feat_channels = [spec.channels for spec in backbone.stage_specs]  # what PaddleSeg's models read
        return backbone

    build.__name__ = build.__qualname__ = f"CycleMLP_{variant.upper()}"
    build.__doc__ = f"CycleMLP-{variant.upper()} as a feature pyramid; the arguments are those of `build_backbone`."
    return build


_COMPONENTS: Mapping[str, Sequence[Any]] = {
    "BACKBONES": [_backbone_component(variant) for variant in list_variants()],
    "MODELS": [SemanticFPN],
    "OPTIMIZERS": [AdamWLayerDecay],
}


def register_paddleseg() -> None:
    """Registers backbones, model and optimizer, and applies the repairs. Idempotent; importing this module calls it.

    Raises ValueError if PaddleSeg has another component of one of the names.
    """
    for registry_name, components in _COMPONENTS.items():
        registry = getattr(manager, registry_name)
        for component in components:
            registered = registry.components_dict.get(component.__name__)
            if registered is None:
                registry.add_component(component)
            elif registered is not component:
                raise ValueError(
                    f"PaddleSeg's registry {registry_name} has a {component.__name__} already, from "
                    f"{registered.__module__}; remove that one, or do not register CycleMLP"
                )
    apply_repairs()


register_paddleseg()
