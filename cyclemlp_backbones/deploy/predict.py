"""Predictions of an exported model for image files, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cyclemlp_backbones.deploy.images import ImageFile, Prepared, batches_of_equal_shape, prepare, to_array
from cyclemlp_backbones.deploy.manifest import Manifest
from cyclemlp_backbones.deploy.results import Describer, Detections, Writer, encode_mask, softmax
from cyclemlp_backbones.deploy.runtime import DeployedModel
from cyclemlp_backbones.deploy.tiling import check_tiling, segment_tiles
from cyclemlp_backbones.deploy.video import Video
from cyclemlp_backbones.pictures import UNREADABLE, read_rgb

_MODEL_PIXELS = 4096 * 4096
_LOGITS = 2**29
"""Numbers that a segmentation model may give for one batch: 2 GiB."""
_MASK_PIXELS = 2_000_000
"""A detector gives every object a mask of the whole picture; beyond this size, one of the resized picture."""


class UnusableResult(ValueError):
    """What a model gave for an image is no result."""


@dataclass(frozen=True)
class Options:
    """How to predict. `tile` and `overlap` are for segmentation, the thresholds for detection, `top` for classes."""

    batch_size: int = 1
    tile: int | None = None
    overlap: int = 128
    top: int = 5
    score_threshold: float = 0.05
    draw_threshold: float = 0.5
    max_pixels: int = 250_000_000
    max_model_pixels: int | None = None
    pictures: bool = True
    coco_images: Path | None = None

    def check(self, manifest: Manifest) -> None:
        """ValueError for what the task does not take."""
        if manifest.task == "features":
            raise ValueError("the model is a backbone, whose maps are no prediction; predict takes cls, seg and det")
        if self.tile is not None:
            if manifest.task != "seg":
                raise ValueError(f"--tile is for segmentation; the model's task is {manifest.task}")
            check_tiling(self.tile, self.overlap)
            if self.tile**2 > self.model_pixels(manifest):
                raise ValueError(
                    f"--tile is {self.tile}, its square more than --max-model-pixels {self.model_pixels(manifest)}"
                )
        if self.coco_images is not None and manifest.task != "det":
            raise ValueError(f"--coco-images is for detection; the model's task is {manifest.task}")
        for name in ("batch_size", "top", "max_pixels", "max_model_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it takes 1 and more")
        for name in ("score_threshold", "draw_threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it takes 0 to 1")

    def model_pixels(self, manifest: Manifest) -> int:
        """The largest batch, in pixels: `max_model_pixels`, else what keeps logits of many classes within memory."""
        if self.max_model_pixels is not None:
            return self.max_model_pixels
        classes = len(manifest.classes) if manifest.task == "seg" else 1
        return min(_MODEL_PIXELS, _LOGITS // max(1, classes))


def predict_files(
    model: DeployedModel,
    files: Iterable[ImageFile],
    folder: Path,
    options: Options,
    *,
    image_ids: Mapping[ImageFile, int] | None = None,
    video: Video | None = None,
) -> Iterator[dict[str, Any]]:
    """Writes the results of `files` into `folder`; yields for each when it is done its `image`, `results`, and the
    `files` written below `folder`, or its `image` and `error`.

    A file that cannot be read, is too large, or has no result in finite numbers is left out, and the others are done.
    Overlays of the frames of a `video` become one.
    """
    manifest = model.manifest
    options.check(manifest)
    describer = Describer(
        manifest, top=options.top, draw_threshold=options.draw_threshold, all_classes=video is not None
    )
    writer = Writer(folder, describer, image_ids=image_ids, pictures=options.pictures, video=video)
    broken: _Broken = []
    try:
        for file, image, result in (_tiled if options.tile else _batched)(model, files, options, broken):
            try:
                yield writer.write(file, image, result())
            except UnusableResult as error:
                broken.append({"image": str(file.path), "error": _described(error)})
            while broken:
                yield broken.pop(0)
        yield from broken
    finally:
        writer.close()
        if video is not None:
            video.close()


_Broken = list[dict[str, Any]]
_Result = tuple[ImageFile, Image.Image, Callable[[], Any]]
"""A file, its picture, and what gives its result or raises UnusableResult."""


def _batched(model: DeployedModel, files: Iterable[ImageFile], options: Options, broken: _Broken) -> Iterator[_Result]:
    manifest = model.manifest
    most = options.model_pixels(manifest)

    def take(image: Image.Image) -> Prepared:
        return prepare(image, manifest.preprocessing, most_pixels=most)

    for batch in batches_of_equal_shape(_read(files, take, options, broken), options.batch_size, most_pixels=most):
        result = predict_batch(model, [prepared for _, _, prepared in batch], options)
        for index, (file, image, _) in enumerate(batch):
            yield file, image, partial(result, index)


def _tiled(model: DeployedModel, files: Iterable[ImageFile], options: Options, broken: _Broken) -> Iterator[_Result]:
    def probabilities(pixels: np.ndarray) -> np.ndarray:
        logits = model.run({"image": to_array(pixels, model.manifest.preprocessing)[None]})[0][0]
        return softmax(_finite(logits)[:, : pixels.shape[0], : pixels.shape[1]], axis=0)

    segment = partial(segment_tiles, predict=probabilities, tile=options.tile or 0, overlap=options.overlap)
    for file, image, pixels in _read(files, np.asarray, options, broken):
        yield file, image, partial(segment, pixels)


def _read(
    files: Iterable[ImageFile], take: Callable[[Image.Image], Any], options: Options, broken: _Broken
) -> Iterator[tuple[ImageFile, Image.Image, Any]]:
    for file in files:
        try:
            image = file.picture or read_rgb(file.path, most_pixels=options.max_pixels)
            taken = take(image)
        except UNREADABLE as error:
            broken.append({"image": str(file.path), "error": _described(error)})
            continue
        yield file, image, taken


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _finite(numbers: np.ndarray) -> np.ndarray:
    if not np.isfinite(numbers.sum(dtype=np.float64)):
        raise UnusableResult("the model gives numbers that are not finite; its weights are damaged")
    return numbers


def predict_batch(model: DeployedModel, prepared: Sequence[Prepared], options: Options) -> Callable[[int], Any]:
    """Runs the model once for pictures `prepared` to one shape; the result of that with a given number: logits
    [classes], labels [H, W] of the original picture, or `Detections`. UnusableResult where it has none."""
    manifest = model.manifest
    images = np.stack([one.array for one in prepared])
    if manifest.task == "det" and manifest.nms is None:
        return _detect(model, images, prepared, options)
    outputs = model.run({"image": images})
    if manifest.task == "cls":
        return lambda index: _finite(outputs[0][index])
    if manifest.task == "seg":
        return lambda index: _labels(prepared[index], _finite(outputs[0][index]))
    boxes, scores = outputs
    nms = manifest.nms or {}
    return lambda index: _suppressed(prepared[index], _finite(boxes[index]), _finite(scores[index]), nms, options)


def _labels(prepared: Prepared, logits: np.ndarray) -> np.ndarray:
    """The class of each pixel of the original picture: logits are enlarged, a class at a time, and then compared."""
    logits = logits[:, : prepared.content[0], : prepared.content[1]]
    if prepared.content == prepared.original:
        return logits.argmax(axis=0)
    labels = np.zeros(prepared.original, np.int32)
    best = np.full(prepared.original, -np.inf, np.float32)
    for label, plane in enumerate(logits.astype(np.float32)):
        enlarged = Image.fromarray(plane).resize(prepared.original[::-1], Image.Resampling.BILINEAR)
        labels[np.asarray(enlarged) > best] = label
        best = np.maximum(best, enlarged)
    return labels


def _detect(
    model: DeployedModel, images: np.ndarray, prepared: Sequence[Prepared], options: Options
) -> Callable[[int], Detections]:
    masked = "mask" in model.manifest.outputs
    # Pasted at the resized picture's size where masks of the original's would not fit the memory.
    small = [masked and one.original[0] * one.original[1] > _MASK_PIXELS for one in prepared]
    # PaddleDetection's own numbers: unrounded sizes, and the factors from the original to them.
    sizes = [[one.original[axis] * one.scale[axis] for axis in (0, 1)] for one in prepared]
    outputs = model.run(
        {
            "image": images,
            "im_shape": np.array(sizes, np.float32),
            "scale_factor": np.array(
                [(1.0, 1.0) if shrunk else one.scale for shrunk, one in zip(small, prepared)], np.float32
            ),
        }
    )
    ends = np.cumsum(outputs[1])

    def detections(index: int) -> Detections:
        one = prepared[index]
        rows = slice(int(ends[index]) - int(outputs[1][index]), int(ends[index]))
        table = _finite(outputs[0][rows])
        if len(table) and table[:, 0].max() >= len(model.manifest.classes):
            names = f"cyclemlp.yml has {len(model.manifest.classes)} classes"
            raise UnusableResult(f"the model gives the class number {int(table[:, 0].max())}, {names}")
        # A row of score 0 or label -1 stands for no object.
        kept = np.flatnonzero((table[:, 1] >= max(options.score_threshold, 1e-9)) & (table[:, 0] >= 0))
        kept = kept[np.argsort(-table[kept, 1], kind="stable")]  # the best first, whatever the model's order
        table = table[kept]
        boxes = table[:, 2:6].astype(np.float64)
        if small[index]:
            boxes = boxes / np.array([one.scale[1], one.scale[0]] * 2)
        masks = None
        if masked:
            masks = [_mask(outputs[2][rows][row], one, small[index]) for row in kept.tolist()]
        return Detections(table[:, 0].astype(np.int64), table[:, 1], _clipped(boxes, one.original), masks)

    return detections


def _mask(mask: np.ndarray, prepared: Prepared, small: bool) -> dict:
    """One object's mask, run-length coded, at the original picture's size."""
    height, width = prepared.original
    if not small:
        return encode_mask(mask[:height, :width] > 0)
    content = Image.fromarray((mask[: prepared.content[0], : prepared.content[1]] > 0).astype(np.uint8) * 255)
    return encode_mask(np.asarray(content.resize((width, height), Image.Resampling.BILINEAR)) > 127)


def _clipped(boxes: np.ndarray, original: tuple[int, int]) -> np.ndarray:
    limits = np.array([original[1], original[0]] * 2)
    return np.clip(boxes, 0, limits)


def _suppressed(
    prepared: Prepared, boxes: np.ndarray, scores: np.ndarray, nms: Mapping[str, float], options: Options
) -> Detections:
    """The best objects among candidates `boxes` [R, 4], `scores` [R, classes], as PaddleDetection's MultiClassNMS finds
    them, in the original picture's pixels."""
    boxes = boxes / np.array([prepared.scale[1], prepared.scale[0]] * 2)
    labels: list[int] = []
    values: list[float] = []
    rows: list[int] = []
    candidates, most = (int(nms[name]) if nms[name] >= 0 else None for name in ("nms_top_k", "keep_top_k"))
    for label in range(scores.shape[1]):
        chosen = np.flatnonzero(scores[:, label] > nms["score_threshold"])
        chosen = chosen[np.argsort(-scores[chosen, label], kind="stable")][:candidates]
        kept = chosen[suppress(boxes[chosen], nms["nms_threshold"])]
        labels.extend([label] * len(kept))
        values.extend(scores[kept, label])
        rows.extend(kept)
    best = np.argsort(-np.array(values, np.float32), kind="stable")[:most]
    order = [index for index in best.tolist() if values[index] >= options.score_threshold]
    chosen_boxes = boxes[[rows[index] for index in order]].reshape(-1, 4)
    return Detections(
        np.array([labels[index] for index in order], np.int64),
        np.array([values[index] for index in order], np.float32),
        _clipped(chosen_boxes, prepared.original),
    )


def suppress(boxes: np.ndarray, threshold: float) -> list[int]:
    """Non-maximum suppression: which of `boxes` [R, 4], the best first, overlap no better one by more than `threshold`
    (intersection over union)."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = np.arange(len(boxes)), []
    while len(left):
        first, left = left[0], left[1:]
        kept.append(int(first))
        low = np.maximum(boxes[first, :2], boxes[left, :2])
        high = np.minimum(boxes[first, 2:], boxes[left, 2:])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        left = left[common <= threshold * np.maximum(areas[first] + areas[left] - common, 1e-12)]
    return kept
