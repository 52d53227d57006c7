"""CycleMLP (Chen et al., ICLR 2022, arXiv 2107.10224) as a backbone for PaddlePaddle."""

import zlib  # noqa: F401  before paddle: Paddle 2.6 exports symbols that crash a zlib loaded after it, as in reading a PNG

from cyclemlp_backbones.cyclenet import CycleNet as CycleNet
from cyclemlp_backbones.factory import build_backbone as build_backbone
from cyclemlp_backbones.factory import build_classifier as build_classifier
from cyclemlp_backbones.layers import CycleFC as CycleFC
from cyclemlp_backbones.layers import cycle_offsets as cycle_offsets
from cyclemlp_backbones.pyramid import StageSpec as StageSpec
from cyclemlp_backbones.variants import VARIANTS as VARIANTS
from cyclemlp_backbones.variants import Variant as Variant
from cyclemlp_backbones.variants import list_variants as list_variants

__version__ = "0.1.0"
