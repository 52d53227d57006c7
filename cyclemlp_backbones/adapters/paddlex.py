"""PaddleX 3: its trainers run our networks, and its predictors load what `export_paddlex` writes.

A model's name stands there for how images are read and results written, and for no network: the registered names of
`_NAMES` do the same for ours. PaddleX is imported when a function is called.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import paddle
import yaml
from paddle import Tensor, nn

from cyclemlp_backbones.adapters.launch import LAUNCHER
from cyclemlp_backbones.deploy.export import Exportable, save_paddle
from cyclemlp_backbones.deploy.manifest import Preprocessing
from cyclemlp_backbones.files import new_folder

_LOG = logging.getLogger(__name__)
_COMMANDS = {"PaddleSeg": "seg", "PaddleDetection": "det"}
"""PaddleX's name of a toolkit, our command."""

_NAMES = {"seg": "MaskFormer_tiny", "det": "FasterRCNN-ResNet50-FPN", "mask": "MaskRCNN-ResNet50-FPN"}
"""Names under which PaddleX gives a model our inputs, and on a CPU leaves oneDNN out, which Paddle 3.3.1 needs."""

_INTERPOLATIONS = {"nearest": "NEAREST", "bilinear": "LINEAR", "bicubic": "BICUBIC"}


def register_paddlex() -> None:
    """From now on PaddleX starts the scripts of its checkouts by `cyclemlp seg` and `det`, which know our networks.

    A checkout is what `paddlex --install` made, or PADDLE_PDX_PADDLESEG_PATH and PADDLE_PDX_PADDLEDETECTION_PATH name.
    """
    try:
        from paddlex.repo_apis.base import BaseRunner
    except ImportError as error:
        raise ImportError(f'`import paddlex` fails: {error}; `pip install "paddlex[cv]==3.7.2"`') from error
    variables = {toolkit: f"PADDLE_PDX_{toolkit.upper()}_PATH" for toolkit in _COMMANDS}
    if not any(map(os.environ.get, variables.values())):
        _LOG.warning("PaddleX has no checkout and trains nothing; %s name some", " and ".join(variables.values()))
    for toolkit, variable in variables.items():
        if root := os.environ.get(variable):
            if not Path(root, "tools/train.py").is_file():
                raise FileNotFoundError(f"{variable} is {root}, no checkout of {toolkit}")
            sys.path.append(root)
            importlib.import_module(f"paddlex.repo_apis.{toolkit}_api")
    run_cmd = BaseRunner.run_cmd

    @functools.wraps(run_cmd)
    def run_ours(self: Any, command: list[Any], *arguments: Any, **named: Any) -> Any:
        ours = [action for toolkit, action in _COMMANDS.items() if f".{toolkit}_api." in type(self).__module__]
        script = next(index for index, word in enumerate(command) if str(word).endswith(".py"))
        if ours:
            command = [*command[:script], str(LAUNCHER), *ours, *command[script:]]
        return run_cmd(self, command, *arguments, **named)

    if not hasattr(run_cmd, "__wrapped__"):
        BaseRunner.run_cmd = run_ours


class _ClassMap(nn.Layer):
    """A segmenter's classes [N, H, W], int32, in place of its logits."""

    def __init__(self, model: nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return paddle.argmax(self.model(image), axis=1, dtype="int32")


def export_paddlex(model: Exportable, folder: Path, device: str) -> str:
    """Writes a segmenter or detector into the new `folder`, for `paddlex.create_model(NAME, model_dir=folder)`; NAME.

    Raises ValueError for a folder that exists, and where PaddleX prepares no images as the model wants them.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; --format paddlex takes a new folder")
    name = _NAMES["mask" if "mask" in model.outputs else model.task]
    settings: dict[str, Any] = {"Global": {"model_name": name}}
    if model.task == "seg":
        model = dataclasses.replace(model, layer=_ClassMap(model.layer))
        settings["Deploy"] = {"transforms": _transforms(model.preprocessing, "Normalize", size_divisor=None)}
    else:
        steps = _transforms(model.preprocessing, "NormalizeImage")
        steps += [{"type": "Permute"}, {"type": "PadStride", "stride": model.preprocessing.pad_to}]
        settings |= {"Preprocess": steps, "label_list": [*model.classes], "draw_threshold": 0.5}
    with new_folder(folder) as staged:
        save_paddle(model, staged, device, "inference")
        (staged / "inference.yml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return name


def _transforms(preprocessing: Preprocessing, normalize: str, **resize: Any) -> list[dict[str, Any]]:
    """PaddleX's steps, of which segmentation takes a size as width and height, detection as height and width."""
    steps: list[dict[str, Any]] = []
    if preprocessing.resize == "short":
        raise ValueError("PaddleX knows no ResizeByShort without max_size; give val_dataset one, or a Resize")
    if preprocessing.resize != "none":
        keep = preprocessing.resize == "within"  # the order of the sides is all the same then
        size = preprocessing.size[::-1] if normalize == "Normalize" else preprocessing.size
        interp = _INTERPOLATIONS[preprocessing.interpolation]
        steps = [{"type": "Resize", "target_size": [*size], "keep_ratio": keep, "interp": interp, **resize}]
    return [*steps, {"type": normalize, "mean": [*preprocessing.mean], "std": [*preprocessing.std]}]
