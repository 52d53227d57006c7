"""Trained weights at work: accuracy on a list, predictions for images."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import paddle
import paddle.nn.functional as F
import yaml

from cyclemlp_backbones import CycleNet
from cyclemlp_backbones.checks import existing_file
from cyclemlp_backbones.files import sha256, write_atomically

from .config import Config
from .data import NO_LABEL, Samples, image_names, read_list, read_samples
from .distributed import World
from .metrics import Evaluation, check_broken, eval_batches, evaluate
from .report import environment
from .student import build_student, load_pretrained, weights_path

logger = logging.getLogger(__name__)

IMAGENET_VAL = 50_000
"""Images of ImageNet-1k's validation set."""


def _load(config: Config) -> CycleNet:
    model = build_student(config.model)
    load_pretrained(model, config, adapt=False)
    model.eval()
    return model


def evaluate_weights(config: Config, world: World) -> Evaluation:
    """The accuracy of `model.pretrained` on `data.val_images`, by all processes together."""
    samples = read_samples(config, "val")
    result = evaluate(_load(config), eval_batches(samples, config, world), world)
    check_broken(samples, result, config)
    logger.info("top-1 %.3f %%, top-5 %.3f %% of %d images", result.top1, result.top5, result.images)
    return result


def store(card: str, config: Config, result: Evaluation, world: World, command: Sequence[str]) -> None:
    """Writes a result on ImageNet's validation set, with how it came, into a model card in place of an earlier one.

    ValueError for a card of another variant and for a result of another number of images.
    """
    path = existing_file(card, "model card")
    text = path.read_text(encoding="utf-8").split("\nmeasured_here:")[0].rstrip() + "\n"
    variant = yaml.safe_load(text)["variant"]
    if variant != config.model.variant:
        raise ValueError(f"{path} is of {variant}, the result of {config.model.variant}; give the card of that")
    if result.images + len(result.broken) != IMAGENET_VAL:
        raise ValueError(f"the result is of {result.images} images; a card has that of ImageNet's {IMAGENET_VAL:,}")
    weights = weights_path(config.model)
    provenance = {
        **environment(command, world),
        "weights": {"file": weights.name, "sha256": sha256(weights)},
        "crop_pct": config.crop_pct,
        **result.as_dict(),
    }
    text = re.sub(r"^  here: .*", f"  here: {result.top1:.3f}  # by measured_here", text, flags=re.M)
    text += yaml.safe_dump({"measured_here": json.loads(json.dumps(provenance))}, sort_keys=False, width=1000)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    logger.info("stored in %s; `python docs/generate.py` shows it", path)


@paddle.no_grad()
def predict_list(config: Config, file: TextIO, *, top: int) -> None:
    """Writes CSV lines `name, class 1, probability 1, …`, the likeliest class first, for each image of `data.val_list`,
    or of the folder. An unreadable image's line says "unreadable"."""
    if not 1 <= top <= config.model.num_classes:
        raise ValueError(f"--top is {top}; it takes 1 to model.num_classes ({config.model.num_classes})")
    data = config.data
    if not data.val_images or not Path(data.val_images).is_dir():
        raise ValueError(f"data.val_images is {data.val_images!r}; give the folder of the images (--val-data-dir)")
    if data.val_list:
        samples = read_list(data.val_images, data.val_list, num_classes=None)
    else:
        names = image_names(data.val_images)
        if not names:
            raise ValueError(f"{data.val_images} holds no image")
        samples = Samples(Path(data.val_images), tuple(names), (NO_LABEL,) * len(names))
    model = _load(config)
    writer = csv.writer(file)
    writer.writerow(["name", *(f"{what}{rank}" for rank in range(1, top + 1) for what in ("class", "probability"))])
    for images, _, indices, broken in eval_batches(samples, config, World()):
        values, classes = paddle.topk(F.softmax(model(images), axis=1), k=top, axis=1)
        for index, unreadable, row, chosen in zip(indices.tolist(), broken.tolist(), values.tolist(), classes.tolist()):
            pairs = [cell for number, share in zip(chosen, row) for cell in (number, f"{share:.6f}")]
            writer.writerow([samples.names[index], *(["unreadable"] if unreadable else pairs)])
