"""What a usable sample is, for the trainers and for `cyclemlp data check`."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from cyclemlp_backbones.pictures import FORMATS, UNREADABLE, shown_size

_COMPARED = (".png", ".jpg", ".jpeg", ".bmp")


class SampleError(ValueError):
    """A sample that cannot be used; the message names its files and says why."""


def checked_sample(dataset: Any, index: Any) -> Any:
    """`dataset[index]` of a toolkit's data set, or of one that has its `file_list` or `roidbs`; a SampleError for what
    cannot be used."""
    files = _files(dataset, index)
    try:
        sample = dataset[index]
        if hasattr(dataset, "num_classes") and isinstance(sample, dict) and len(files) == 2:
            _check_mask(dataset, sample, *files)
        return sample
    except Exception as error:
        reasons = [*filter(None, map(_unreadable, files)), f"{type(error).__name__}: {error}"]
        raise SampleError(f"{' with '.join(files) or f'sample {index}'}: {reasons[0]}") from error


def _files(dataset: Any, index: int) -> list[str]:
    """Image and mask of a PaddleSeg data set, the image of a PaddleDetection one, or nothing."""
    records = getattr(dataset, "file_list", None) or getattr(dataset, "roidbs", None)
    record = records[index % len(records)] if records and isinstance(index, int) else ()
    values = record if isinstance(record, (list, tuple)) else [dict(record).get("im_file")]
    return [path for path in values if isinstance(path, str)]


def _unreadable(path: str) -> str:
    try:
        shown_size(path, whole=True)
    except UNREADABLE as error:
        return str(error)
    return ""


def _check_mask(dataset: Any, sample: dict[str, Any], image: str, mask: str) -> None:
    """ValueError for a mask that does not belong to its image or has no classes of the data set; Paddle would read one
    of unsigned 16-bit integers, which it takes for bfloat16, as zeros: it becomes int32."""
    if all(path.lower().endswith(_COMPARED) for path in (image, mask)):
        with Image.open(mask, formats=FORMATS) as opened:
            bands, (mask_width, mask_height) = opened.getbands(), opened.size
        width, height = shown_size(image)
        if len(bands) > 1:
            raise ValueError(f"the mask has the bands {', '.join(bands)}; it takes one, whose values are the classes")
        # One mask for each class, one beside or below the other, are PaddleSeg's multi-label masks.
        if mask_width % width or mask_height % height or (width < mask_width and height < mask_height):
            raise ValueError(f"the image is {width} x {height}, its mask {mask_width} x {mask_height}; make them equal")
    label = sample.get("label")
    if not isinstance(label, np.ndarray):
        return
    if label.dtype == np.uint16:
        sample["label"] = label = label.astype(np.int32)
    ignored = getattr(dataset, "ignore_index", 255)
    wrong = label[(label != ignored) & ((label < 0) | (label >= dataset.num_classes))]
    if wrong.size:
        raise ValueError(
            f"the mask has the label {wrong[0]}; num_classes: {dataset.num_classes} takes 0 to "
            f"{dataset.num_classes - 1}, and {ignored}, the ignore_index"
        )
