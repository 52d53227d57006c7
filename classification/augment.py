"""Pictures into arrays: training's random transforms, each a function of a generator, and evaluation's."""

from __future__ import annotations

import math

import numpy as np
import paddle.vision.transforms.functional as F
from paddle.vision.transforms import functional_pil
from PIL import Image

from cyclemlp_backbones.pictures import normalise

from .config import AugmentConfig, DataConfig
from .policies import parse_policy

_TRIES = 10
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 1 / 0.3)


def _random_sides(
    area: int, rng: np.random.Generator, *, scale: tuple[float, ...], ratio: tuple[float, ...]
) -> tuple[int, int]:
    """Width and height of a random box: its share of `area` from `scale`, its width / height log-uniform in `ratio`."""
    target = area * rng.uniform(scale[0], scale[1])
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))


def random_resized_crop_box(
    width: int, height: int, rng: np.random.Generator, *, scale: tuple[float, ...], ratio: tuple[float, ...]
) -> tuple[int, int, int, int]:
    """A random box (top, left, height, width) (Szegedy et al., 2015). After ten boxes that do not fit, the central one
    with the nearest ratio."""
    for _ in range(_TRIES):
        w, h = _random_sides(width * height, rng, scale=scale, ratio=ratio)
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def color_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by factors from max(0, 1 - strength) to 1 + strength, in random order."""
    operations = (F.adjust_brightness, F.adjust_contrast, functional_pil.adjust_saturation)
    for position in rng.permutation(len(operations)):
        image = operations[position](image, rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


def random_erasing(array: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """With `probability`, a random box of a normalised image [C, H, W] filled with normal noise per pixel (Zhong et
    al., 2017, "pixel" mode), in place."""
    if rng.random() >= probability:
        return array
    channels, height, width = array.shape
    for _ in range(_TRIES):
        h, w = _random_sides(height * width, rng, scale=_ERASED_AREA, ratio=_ERASED_RATIO)
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            array[:, top : top + h, left : left + w] = rng.standard_normal((channels, h, w), dtype=np.float32)
            break
    return array


class TrainTransform:
    """RandomResizedCrop, flip, a policy or colour jitter, normalisation, RandomErasing: RGB picture -> [3, S, S]."""

    def __init__(self, augment: AugmentConfig, data: DataConfig):
        self.augment, self.size, self.mean, self.std = augment, data.input_size, data.mean, data.std
        fill = tuple(min(255, round(255 * value)) for value in data.mean)
        self.policy = parse_policy(augment.policy, fill=fill, interpolation=augment.interpolation)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        augment = self.augment
        width, height = image.size
        box = random_resized_crop_box(width, height, rng, scale=augment.scale, ratio=augment.ratio)
        image = F.resize(F.crop(image, *box), (self.size, self.size), augment.interpolation)
        if rng.random() < augment.flip:
            image = F.hflip(image)
        if self.policy is not None:
            image = self.policy(image, rng)
        if augment.color_jitter > 0:
            image = color_jitter(image, augment.color_jitter, rng)
        return random_erasing(normalise(np.asarray(image), self.mean, self.std), augment.erase, rng)


class EvalTransform:
    """The shorter side resized to size / crop_pct, bicubic, and the centre: RGB picture -> [3, S, S]."""

    def __init__(self, data: DataConfig, *, crop_pct: float, interpolation: str = "bicubic"):
        self.size, self.mean, self.std, self.interpolation = data.input_size, data.mean, data.std, interpolation
        self.resized = max(self.size, math.floor(self.size / crop_pct))

    def __call__(self, image: Image.Image) -> np.ndarray:
        image = F.resize(image, self.resized, self.interpolation)
        return normalise(np.asarray(F.center_crop(image, self.size)), self.mean, self.std)
