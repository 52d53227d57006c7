"""What `cyclemlp export` can export, built from its checkpoint."""

from __future__ import annotations

import math
import os
from pathlib import Path

from cyclemlp_backbones.deploy.export import IMAGE, Exportable, variant_of
from cyclemlp_backbones.deploy.manifest import Preprocessing
from cyclemlp_backbones.variants import VARIANTS
from cyclemlp_backbones.weights.formats import Layout
from cyclemlp_backbones.weights.loading import read_network
from cyclemlp_backbones.weights.pickles import CheckpointError

_CROP_PCT = 0.9


def read_class_names(path: str | os.PathLike, count: int) -> tuple[str, ...]:
    """The names in a text file, one a line, as many as there are classes; else a ValueError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != count:
        raise ValueError(f"{path} names {len(names)} classes; the model has {count}: give one name a line")
    return names


def numbered(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def network_export(
    checkpoint: str,
    task: str,
    *,
    layout: Layout | None = None,
    size: int = 224,
    mean: tuple[float, float, float] = Preprocessing.mean,
    std: tuple[float, float, float] = Preprocessing.std,
    class_names: str | None = None,
) -> Exportable:
    """A classifier ("cls") or a feature pyramid ("features") from a weights file, whose shapes tell its variant.

    `size` is the side of the crop that a classifier is evaluated on. Raises CheckpointError for another file.
    """
    model, _ = read_network(checkpoint, layout=layout)
    if task == "cls" and model.num_classes is None:
        raise CheckpointError(
            f"{checkpoint} holds a backbone without a classifier's head; export it with --task features"
        )
    if task == "features" and model.num_classes is not None:
        raise CheckpointError(f"{checkpoint} holds a classifier, without pyramid norms; export it with --task cls")
    variant = variant_of(model)
    crop_pct = VARIANTS[variant].crop_pct if variant else _CROP_PCT
    if task == "features":
        preprocessing = Preprocessing(mean=mean, std=std)
        outputs = tuple(f"stride{spec.stride}" for spec in model.stage_specs)
        return Exportable(model, task, "CycleNet", variant, ("image",), outputs, [IMAGE], preprocessing)
    count = model.num_classes or 0
    classes = read_class_names(class_names, count) if class_names else numbered(count)
    preprocessing = Preprocessing(
        mean=mean,
        std=std,
        resize="short",
        size=(max(size, math.floor(size / crop_pct)),),
        interpolation="bicubic",
        antialias=True,
        crop=size,
    )
    return Exportable(model, task, "CycleNet", variant, ("image",), ("logits",), [IMAGE], preprocessing, classes)
