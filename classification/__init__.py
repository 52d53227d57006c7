"""Pretraining of CycleMLP on ImageNet: data, recipe, distillation, exact resuming, several processes.

The doors are `cyclemlp cls`, `python -m classification`, `train.py`, `eval.py` and `predict.py`; nothing here is a
library for others. An installed package has this folder as `cyclemlp_backbones.classification`.
"""

import sys

_other_name = {"classification": "cyclemlp_backbones.classification"}.get(__name__, "classification")
if getattr(sys.modules.get(_other_name), "__file__", None) == __file__:
    raise ImportError(f"this program is loaded already, as {_other_name}; import it by that name")
