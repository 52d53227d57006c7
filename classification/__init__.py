"""Pretraining of CycleMLP on ImageNet: data, recipe, distillation, exact resuming, several processes.

The doors are `python -m classification`, `train.py`, `eval.py` and `predict.py`; nothing here is a library for others.
"""
