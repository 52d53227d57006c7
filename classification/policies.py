"""RandAugment (Cubuk et al., 2019) in the field's notation, and AutoAugment's ImageNet policy (Cubuk et al., 2018)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import paddle.vision.transforms.functional as F
from paddle.vision.transforms import functional_pil
from PIL import Image, ImageEnhance, ImageOps

LEVELS = 10
"""Magnitudes go from 0 to 10."""

_RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))


@dataclass(frozen=True)
class Canvas:
    """What geometric operations put where the picture does not reach, and how they interpolate."""

    fill: tuple[int, ...] = (124, 116, 104)
    interpolation: str = "bicubic"

    def affine(self, image: Image.Image, *matrix: float) -> Image.Image:
        """Output pixel (x, y) is read at (a x + b y + c, d x + e y + f)."""
        method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[self.interpolation]
        return image.transform(image.size, Image.Transform.AFFINE, matrix, method, fillcolor=self.fill)


def _looked_up(image: Image.Image, table: Iterable[int]) -> Image.Image:
    """Every value of a picture replaced by that of a table of 256."""
    return image.point(list(table) * len(image.getbands()))


def _posterize(image: Image.Image, bits: float, _: Canvas) -> Image.Image:
    """The `bits` highest bits of each value; 0 leaves black."""
    mask = 0xFF & ~(2 ** (8 - int(bits)) - 1)
    return _looked_up(image, (value & mask for value in range(256)))


def _solarize_add(image: Image.Image, addend: float, _: Canvas) -> Image.Image:
    """Adds to the values below 128, up to 255."""
    return _looked_up(image, (min(255, value + int(addend)) if value < 128 else value for value in range(256)))


def _contrast(image: Image.Image, factor: float, _: Canvas) -> Image.Image:
    """Blended with its mean gray."""
    gray = np.asarray(image.convert("L"))
    return _blend_with_gray(image, int(gray.sum() / gray.size + 0.5), factor)


def _blend_with_gray(image: Image.Image, gray: int, factor: float) -> Image.Image:
    """`gray + factor * (image - gray)`, rounded as Pillow does."""
    return _looked_up(image, Image.blend(Image.new("L", _RAMP.size, gray), _RAMP, factor).tobytes())


Apply = Callable[[Image.Image, float, Canvas], Image.Image]
Argument = Callable[[float, int], float]


@dataclass(frozen=True)
class Operation:
    """`apply` with the argument that `argument` makes of a magnitude from 0 to 1 and a random sign, 1 or -1."""

    apply: Apply
    argument: Argument = lambda magnitude, sign: 0.0


def _signed(most: float) -> Argument:
    return lambda magnitude, sign: magnitude * most * sign


_COMMON: Mapping[str, Operation] = {
    "AutoContrast": Operation(lambda image, _, __: ImageOps.autocontrast(image)),
    "Equalize": Operation(lambda image, _, __: ImageOps.equalize(image)),
    "Invert": Operation(lambda image, _, __: ImageOps.invert(image)),
    "Rotate": Operation(
        lambda image, degrees, canvas: F.rotate(image, degrees, interpolation=canvas.interpolation, fill=canvas.fill),
        _signed(30.0),
    ),
    "SolarizeAdd": Operation(_solarize_add, lambda magnitude, _: min(128, int(magnitude * 110))),
    "ShearX": Operation(lambda image, factor, canvas: canvas.affine(image, 1, factor, 0, 0, 1, 0), _signed(0.3)),
    "ShearY": Operation(lambda image, factor, canvas: canvas.affine(image, 1, 0, 0, factor, 1, 0), _signed(0.3)),
    "TranslateX": Operation(
        lambda image, share, canvas: canvas.affine(image, 1, 0, share * image.size[0], 0, 1, 0), _signed(0.45)
    ),
    "TranslateY": Operation(
        lambda image, share, canvas: canvas.affine(image, 1, 0, 0, 0, 1, share * image.size[1]), _signed(0.45)
    ),
}
_ENHANCEMENTS: Mapping[str, Apply] = {
    "Color": lambda image, factor, _: functional_pil.adjust_saturation(image, factor),
    "Contrast": _contrast,
    "Brightness": lambda image, factor, _: _blend_with_gray(image, 0, factor),
    "Sharpness": lambda image, factor, _: ImageEnhance.Sharpness(image).enhance(factor),
}


def _operations(posterize: Argument, solarize: Argument, enhance: Argument) -> Mapping[str, Operation]:
    """All operations, by the arguments of those whose strength is a matter of taste."""
    return {
        **_COMMON,
        "Posterize": Operation(_posterize, posterize),
        "Solarize": Operation(lambda image, threshold, _: ImageOps.solarize(image, int(threshold)), solarize),
        **{name: Operation(apply, enhance) for name, apply in _ENHANCEMENTS.items()},
    }


OPERATIONS = _operations(
    lambda magnitude, _: int(magnitude * 4),
    lambda magnitude, _: int(magnitude * 256),
    lambda magnitude, _: 0.1 + magnitude * 1.8,
)
"""RandAugment's operations; some are weakest at a high magnitude."""

INCREASING = _operations(
    lambda magnitude, _: 4 - int(magnitude * 4),
    lambda magnitude, _: 256 - int(magnitude * 256),
    lambda magnitude, sign: max(0.1, 1 + magnitude * 0.9 * sign),
)
"""The same for `inc1`: every operation grows with the magnitude."""


@dataclass(frozen=True)
class RandAugment:
    """`count` operations drawn with replacement, each applied with `probability` at magnitude N(`magnitude`, `std`)."""

    operations: tuple[Operation, ...]
    magnitude: float
    canvas: Canvas
    std: float = 0.0
    count: int = 2
    probability: float = 0.5
    most: float = LEVELS

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for position in rng.integers(len(self.operations), size=self.count):
            if rng.random() < self.probability:
                magnitude = rng.normal(self.magnitude, self.std) if self.std > 0 else self.magnitude
                magnitude = min(max(magnitude, 0.0), self.most) / LEVELS
                operation = self.operations[position]
                sign = 1 if rng.random() < 0.5 else -1
                image = operation.apply(image, operation.argument(magnitude, sign), self.canvas)
        return image


_Step = tuple[str, float, int]
ORIGINAL: tuple[tuple[_Step, _Step], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)), (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)), (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)), (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)), (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)), (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)), (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)), (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)), (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)), (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)), (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)), (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)), (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)  # fmt: skip
"""The ImageNet policy of the paper's appendix: pairs of (operation, probability, magnitude)."""

_ORIGINAL_OPERATIONS = {**OPERATIONS, "Posterize": Operation(_posterize, lambda magnitude, _: 4 + int(magnitude * 4))}


@dataclass(frozen=True)
class AutoAugment:
    """One of the pairs of `policy`, chosen at random; each operation with its own probability and magnitude."""

    canvas: Canvas
    policy: Sequence[tuple[_Step, _Step]] = ORIGINAL

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for name, probability, magnitude in self.policy[int(rng.integers(len(self.policy)))]:
            if rng.random() < probability:
                operation = _ORIGINAL_OPERATIONS[name]
                sign = 1 if rng.random() < 0.5 else -1
                image = operation.apply(image, operation.argument(magnitude / LEVELS, sign), self.canvas)
        return image


_KEYS = re.compile(r"(mstd|mmax|inc|m|n|p)([0-9]+(?:\.[0-9]+)?)")


def parse_policy(text: str | None, *, fill: tuple[int, ...], interpolation: str) -> RandAugment | AutoAugment | None:
    """A policy in the field's notation: "original", or "rand" with parts joined by "-".

    `m9` magnitude (needed), `n2` operations, `p0.5` probability of each, `mstd0.5` deviation of the magnitude, `mmax10`
    its upper bound, `inc1` operations that grow with it. Anything else is a ValueError.
    """
    if text is None or text == "none":
        return None
    canvas = Canvas(fill, interpolation)
    name, *parts = text.split("-")
    if name == "original" and not parts:
        return AutoAugment(canvas)
    found = [_KEYS.fullmatch(part) for part in parts]
    values = {match[1]: float(match[2]) for match in found if match}
    valid = name == "rand" and all(found) and len(values) == len(parts) and "m" in values
    if not valid or not 0 <= values["m"] <= LEVELS or not 0 <= values.get("p", 0.5) <= 1:
        raise ValueError(
            f"augment.policy is {text!r}; it takes null, original, or RandAugment as in rand-m9-mstd0.5-inc1, with "
            "parts m (0 to 10), n, p (0 to 1), mstd, mmax, inc (0 or 1)"
        )
    return RandAugment(
        tuple((INCREASING if values.get("inc") else OPERATIONS).values()),
        values["m"],
        canvas,
        std=values.get("mstd", 0.0),
        count=int(values.get("n", 2)),
        probability=values.get("p", 0.5),
        most=min(values.get("mmax", LEVELS), LEVELS),
    )
