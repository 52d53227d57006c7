"""Weights of a toolkit's whole model: backbone, neck and head."""

from __future__ import annotations

import logging
import os

import paddle
from paddle import nn

from cyclemlp_backbones.weights.download import fetch, is_url
from cyclemlp_backbones.weights.formats import read_checkpoint
from cyclemlp_backbones.weights.pickles import CheckpointError

_LOG = logging.getLogger(__name__)
_SHOWN = 5


def load_model_weights(model: nn.Layer, source: str | os.PathLike) -> None:
    """Gives every tensor of `model` its value from `source`, the path or URL of a `.pdparams` file that training saved.

    Names and shapes have to agree, or nothing is changed and a CheckpointError says what is missing, unexpected or
    misshapen. Weights of a backbone alone go into `model.backbone.pretrained` of the configuration instead.
    """
    path = fetch(source) if isinstance(source, str) and is_url(source) else source
    arrays, expected = read_checkpoint(path), model.state_dict()
    problems = {
        "missing": [name for name in expected if name not in arrays],
        "unexpected": [name for name in arrays if name not in expected],
        "misshapen": [
            f"{name} is {list(arrays[name].shape)}, needs {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in arrays and list(arrays[name].shape) != list(tensor.shape)
        ],
    }
    listed = [
        f"{kind} ({len(names)}): {', '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}"
        for kind, names in problems.items()
        if names
    ]
    if listed:
        raise CheckpointError(
            f"{os.fspath(path)} does not fit the {type(model).__name__} of the configuration: " + "; ".join(listed)
        )
    for name, tensor in expected.items():
        tensor.set_value(paddle.to_tensor(arrays[name]).astype(tensor.dtype))
    _LOG.info("loaded %d tensors from %s", len(expected), os.fspath(path))
