"""CycleMLP (Chen et al., ICLR 2022, arXiv 2107.10224) as a backbone for PaddlePaddle.

The public names are imported at their first use, so that the commands that need no Paddle work without it.
"""

import importlib
import zlib  # noqa: F401  before paddle: Paddle 2.6 exports symbols that crash a zlib loaded after it, as in reading a PNG
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclemlp_backbones.cyclenet import CycleFC as CycleFC
    from cyclemlp_backbones.cyclenet import CycleNet as CycleNet
    from cyclemlp_backbones.cyclenet import cycle_offsets as cycle_offsets
    from cyclemlp_backbones.factory import build_backbone as build_backbone
    from cyclemlp_backbones.factory import build_classifier as build_classifier
    from cyclemlp_backbones.factory import from_weights as from_weights
    from cyclemlp_backbones.layer_decay import apply_layer_decay as apply_layer_decay
    from cyclemlp_backbones.variants import VARIANTS as VARIANTS
    from cyclemlp_backbones.variants import StageSpec as StageSpec
    from cyclemlp_backbones.variants import Variant as Variant
    from cyclemlp_backbones.variants import list_variants as list_variants
    from cyclemlp_backbones.weights.formats import read_checkpoint as read_checkpoint
    from cyclemlp_backbones.weights.formats import write_checkpoint as write_checkpoint
    from cyclemlp_backbones.weights.loading import LoadReport as LoadReport
    from cyclemlp_backbones.weights.loading import load_weights as load_weights
    from cyclemlp_backbones.weights.loading import locate_weights as locate_weights
    from cyclemlp_backbones.weights.pickles import CheckpointError as CheckpointError

__version__ = "0.2.0"

_MODULE_OF = {
    "CheckpointError": "weights.pickles",
    "CycleFC": "cyclenet",
    "CycleNet": "cyclenet",
    "LoadReport": "weights.loading",
    "StageSpec": "variants",
    "VARIANTS": "variants",
    "Variant": "variants",
    "apply_layer_decay": "layer_decay",
    "build_backbone": "factory",
    "build_classifier": "factory",
    "cycle_offsets": "cyclenet",
    "from_weights": "factory",
    "list_variants": "variants",
    "load_weights": "weights.loading",
    "locate_weights": "weights.loading",
    "read_checkpoint": "weights.formats",
    "write_checkpoint": "weights.formats",
}
__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
