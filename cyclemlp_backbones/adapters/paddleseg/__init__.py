"""CycleMLP in PaddleSeg; importing this package registers it (see `register`)."""

from cyclemlp_backbones.adapters.paddleseg.register import AdamWLayerDecay as AdamWLayerDecay
from cyclemlp_backbones.adapters.paddleseg.register import CycleMLP_B as CycleMLP_B
from cyclemlp_backbones.adapters.paddleseg.register import CycleMLP_B0 as CycleMLP_B0
from cyclemlp_backbones.adapters.paddleseg.register import CycleMLP_B1 as CycleMLP_B1
from cyclemlp_backbones.adapters.paddleseg.register import CycleMLP_B2 as CycleMLP_B2
from cyclemlp_backbones.adapters.paddleseg.register import CycleMLP_B3 as CycleMLP_B3
from cyclemlp_backbones.adapters.paddleseg.register import CycleMLP_B4 as CycleMLP_B4
from cyclemlp_backbones.adapters.paddleseg.register import CycleMLP_B5 as CycleMLP_B5
from cyclemlp_backbones.adapters.paddleseg.register import CycleMLP_S as CycleMLP_S
from cyclemlp_backbones.adapters.paddleseg.register import CycleMLP_T as CycleMLP_T
from cyclemlp_backbones.adapters.paddleseg.register import SemanticFPN as SemanticFPN
from cyclemlp_backbones.adapters.paddleseg.register import manager as manager
from cyclemlp_backbones.adapters.paddleseg.register import register_paddleseg as register_paddleseg
