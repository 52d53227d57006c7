"""Trained weights at work: accuracy on a list, predictions for images."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import TextIO

import paddle
import paddle.nn.functional as F

from cyclemlp_backbones import CycleNet

from .config import Config
from .data import NO_LABEL, Samples, image_names, read_list, read_samples
from .distributed import World
from .metrics import Evaluation, check_broken, eval_batches, evaluate_samples
from .student import build_student, load_pretrained

logger = logging.getLogger(__name__)


def _load(config: Config) -> CycleNet:
    model = build_student(config.model)
    load_pretrained(model, config, adapt=False)
    model.eval()
    return model


def evaluate_weights(config: Config, world: World) -> Evaluation:
    """The accuracy of `model.pretrained` on `data.val_images`, by all processes together."""
    samples = read_samples(config, "val")
    result = evaluate_samples(_load(config), samples, config, world)
    check_broken(samples, result, config)
    logger.info("top-1 %.3f %%, top-5 %.3f %% of %d images", result.top1, result.top5, result.images)
    return result


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
