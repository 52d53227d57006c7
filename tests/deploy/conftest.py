"""One small classifier, exported once in every format that this Paddle writes."""

import sys
from pathlib import Path

import paddle
import pytest

from cyclemlp_backbones import build_classifier
from cyclemlp_backbones.cli import main

ONNX = paddle.__version__.startswith("3.") and sys.version_info < (3, 13)
"""paddle2onnx reads the programs of Paddle 3 only, and has no wheel for Python 3.13."""
FORMATS = ("paddle", "onnx") if ONNX else ("paddle",)
SHAPES = [(1, 224, 224), (3, 96, 64), (1, 97, 131), (3, 33, 45), (1, 32, 32)]
CLASSES = ["ant", "bee", "cat", "dog"]


def small_classifier():
    paddle.seed(0)
    network = build_classifier("b0", num_classes=len(CLASSES))
    for parameter in network.parameters():  # the initial weights give logits too small to tell classes apart
        if len(parameter.shape) > 1:
            parameter.set_value(parameter * 3)
    network.eval()
    return network


def export_classifier(weights: Path, folder: Path, *flags: str) -> int:
    return main(["export", str(weights), str(folder), "--task", "cls", "--size", "64", *flags])


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """A folder with b0.pdparams, names.txt and the exported folders `paddle` and `onnx`."""
    folder = tmp_path_factory.mktemp("classifier")
    paddle.save(small_classifier().state_dict(), str(folder / "b0.pdparams"))
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    names = ["--class-names", str(folder / "names.txt")]
    for kind in FORMATS:
        assert export_classifier(folder / "b0.pdparams", folder / kind, "--format", kind, *names) == 0
    return folder
