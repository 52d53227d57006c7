"""CycleMLP in PaddleDetection; importing this package registers it (see `register`)."""

from cyclemlp_backbones.adapters.paddledet.register import LAYER_DECAY as LAYER_DECAY
from cyclemlp_backbones.adapters.paddledet.register import CycleMLP as CycleMLP
from cyclemlp_backbones.adapters.paddledet.register import register_paddledet as register_paddledet
