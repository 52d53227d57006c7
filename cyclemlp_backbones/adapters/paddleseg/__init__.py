"""CycleMLP in PaddleSeg; importing this package registers it (see `register`)."""

from cyclemlp_backbones.adapters.paddleseg.register import SemanticFPN as SemanticFPN
from cyclemlp_backbones.adapters.paddleseg.register import manager as manager
from cyclemlp_backbones.adapters.paddleseg.register import register_paddleseg as register_paddleseg
