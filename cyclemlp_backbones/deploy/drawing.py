"""Pictures for people: classes over a photograph, boxes with names, a legend below."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_log = logging.getLogger(__name__)

Colour = tuple[int, int, int]
_Place = tuple[float, float, float, float]
"""Left, top, right and bottom of a name."""

_LARGEST, _LEAST_WIDTH, _HIGHEST = 2048, 360, 4096
_OPACITY = 128  # of 255
_LONGEST_TEXT = 60
_PACKAGE, _FONT = "mplfonts", "fonts/NotoSansCJKsc-Regular.otf"
_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "SourceHanSansSC-Regular.otf", "wqy-microhei.ttc"),
    *("wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "PingFang.ttc", "msyh.ttc", "simhei.ttf", "DejaVuSans.ttf"),
)
"""Fonts with Chinese letters that systems have, and one with Greek and Cyrillic; Pillow knows the systems' folders."""


def fitted(image: Image.Image) -> Image.Image:
    """A picture that is neither too large to open nor too small for a legend."""
    scale = min(_LARGEST / max(image.size), max(1.0, min(_LEAST_WIDTH / image.width, _HIGHEST / image.height)))
    return image.resize(_scaled(image.size, scale), Image.Resampling.BILINEAR) if scale != 1 else image.copy()


def _scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def paint(image: Image.Image, labels: np.ndarray, colours: Sequence[Colour], plain: Iterable[int]) -> Image.Image:
    """The picture `fitted`, and over it its classes' colours; those of `plain` are left as the photograph is."""
    # Of a large picture, twice the size of the result is enough for smooth edges.
    size = _scaled(image.size, min(1.0, 2 * _LARGEST / max(image.size)))
    kind = np.uint8 if len(colours) <= 256 else np.int32
    seen = np.asarray(Image.fromarray(labels.astype(kind)).resize(size, Image.Resampling.NEAREST))
    opacity = np.full(max(len(colours), 1), _OPACITY, np.uint8)
    opacity[[*plain]] = 0
    painted = image.resize(size, Image.Resampling.BILINEAR)
    painted.paste(Image.fromarray(np.asarray(colours, np.uint8)[seen]), mask=Image.fromarray(opacity[seen]))
    return fitted(painted)


class Object(NamedTuple):
    """Of a picture: class number, score, box (x1, y1, x2, y2 in its pixels), what gives its mask [H, W] of 0 and 1."""

    label: int
    score: float
    box: Sequence[float]
    mask: Callable[[], np.ndarray] | None = None


def with_objects(
    image: Image.Image,
    objects: Iterable[Object],
    names: Sequence[str],
    colours: Sequence[Colour],
    threshold: float,
    legend: Sequence[int] | None = None,
) -> Image.Image:
    """The picture `fitted`, its objects of at least the score `threshold`, and a legend: their classes, or `legend`."""
    picture, objects = fitted(image), sorted(objects, key=lambda one: one.score)  # the best on top
    factors = (picture.width / image.width, picture.height / image.height) * 2
    drawn = [one for one in objects if one.score >= threshold]
    for one in drawn:
        if one.mask is not None:
            layer = Image.fromarray(one.mask() * np.uint8(_OPACITY)).resize(picture.size, Image.Resampling.BILINEAR)
            picture.paste(colours[one.label], (0, 0), layer)
    boxes = [[float(value) * factor for value, factor in zip(one.box, factors)] for one in drawn]
    for one, box in zip(drawn, boxes):
        outline(picture, box, colours[one.label])
    taken: list[_Place] = []
    for one, box in zip(reversed(drawn), reversed(boxes)):
        label(picture, box, f"{names[one.label]} {one.score:.2f}", colours[one.label], taken)
    heading = f"threshold {threshold:.2f}: {len(drawn)} of {len(objects)} objects"
    shown = sorted({one.label for one in drawn}) if legend is None else legend
    return with_legend(picture, [(heading, None), *((names[label], colours[label]) for label in shown)])


def outline(picture: Image.Image, box: Sequence[float], colour: Colour) -> None:
    """Draws a box (x1, y1, x2, y2) into `picture`."""
    draw, width = ImageDraw.Draw(picture), _text_size(picture) // 7
    left, top, right, bottom = min(box[0::2]), min(box[1::2]), max(box[0::2]), max(box[1::2])
    # A light line around the coloured one, which on a dark photograph would not be seen.
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=width + 2)
    draw.rectangle((left, top, right, bottom), outline=colour, width=width)


def label(picture: Image.Image, box: Sequence[float], text: str, colour: Colour, taken: list[_Place]) -> None:
    """Writes an object's name at its `box`, within `picture` and, where there is room, beside what is `taken`.

    Adds its own place to `taken`.
    """
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    text, font = lettering(text, _text_size(picture))
    ends = draw.textbbox((0, 0), text, font=font)
    wide, high = ends[2] + 4, ends[3] + 3
    left, top, right, bottom = min(box[0::2]), min(box[1::2]), max(box[0::2]), max(box[1::2])
    places = []
    for y in (top - high, bottom, top, bottom - high):  # above the box, below it, within it
        for x in (left, right - wide):
            x, y = max(0, min(x, width - wide)), max(0, min(y, height - high))
            places.append((x, y, x + wide, y + high))
    x, y, *corner = min(places, key=lambda place: sum(_overlap(place, other) for other in taken))
    draw.rectangle((x, y, *corner), fill=colour)
    draw.text((x + 2, y + 1), text, fill=_on(colour), font=font)
    taken.append((x, y, corner[0], corner[1]))


def _overlap(some: _Place, others: _Place) -> bool:
    return some[0] < others[2] and others[0] < some[2] and some[1] < others[3] and others[1] < some[3]


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, Colour | None]]) -> Image.Image:
    """The picture, and below it names with their colours; an entry without a colour is a line of its own."""
    size = _text_size(picture)
    scratch, line, gap = ImageDraw.Draw(picture), round(size * 1.5), size // 2
    placed: list[tuple[float, int, str, Any, Colour | None]] = []
    x, row, right, width = float(gap), -1, 0.0, picture.width
    for name, colour in entries:
        text, font = lettering(name, size)
        long = scratch.textlength(text, font=font) + gap + (size + gap if colour else 0)
        if colour is None or not placed or placed[-1][4] is None or x + long > width:
            x, row = float(gap), row + 1
        placed.append((x, row, text, font, colour))
        x += long + gap
        right = max(right, x)
    panel = Image.new("RGB", (max(width, round(right)), picture.height + line * (row + 1) + 2 * gap), "white")
    panel.paste(picture, (0, 0))
    draw = ImageDraw.Draw(panel)
    for x, row, text, font, colour in placed:
        y = picture.height + gap + line * row
        if colour is not None:
            draw.rectangle((x, y, x + size, y + size), fill=colour, outline="gray")
            x += size + gap
        draw.text((x, y), text, fill="black", font=font)
    return panel


def _text_size(picture: Image.Image) -> int:
    return max(14, min(32, picture.width // 40))


def _on(colour: Colour) -> str:
    """What is read on a colour: black or white, whose contrast is the higher."""
    share = sum(part * (value / 255) ** 2.2 for part, value in zip((0.2126, 0.7152, 0.0722), colour))
    return "black" if share > 0.18 else "white"


def lettering(text: str, size: int) -> tuple[str, Any]:
    """`text` on one line, and a font that has its letters; where none is found, with a warning, "?" for those."""
    text = " ".join(text.split())
    text = text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."
    for name in ("", *_FONTS):
        font = _load(name, size)
        if font is not None and all(_has(font, letter) for letter in text):
            return text, font
    font = _load("", size)
    missing = {letter for letter in text if not _has(font, letter)}
    _warn_of_letters()
    return "".join("?" if letter in missing else letter for letter in text), font


@functools.lru_cache(maxsize=1)
def _warn_of_letters() -> None:
    _log.warning(
        'no font here has all letters of the classes\' names; those that lack are drawn as "?". `pip install '
        '"cyclemlp-backbones[fonts]"`, or install Noto Sans CJK or WenQuanYi where the system keeps its fonts'
    )


@functools.lru_cache(maxsize=64)
def _load(name: str, size: int) -> Any:
    """A font by its file's name, Pillow's own for "", None where it is not there."""
    if not name:
        try:
            return ImageFont.load_default(size)
        except TypeError:  # Pillow before 10.1 has one size
            return _load("DejaVuSans.ttf", size) or ImageFont.load_default()
    package = importlib.util.find_spec(_PACKAGE) if name == _FONTS[1] else None
    for path in (*[Path(folder) / _FONT for folder in (package and package.submodule_search_locations) or ()], name):
        try:
            return ImageFont.truetype(str(path), size)
        except OSError:
            continue
    return None


@functools.lru_cache(maxsize=4096)
def _has(font: Any, letter: str) -> bool:
    """Whether a letter is drawn as something else than what stands for unknown ones."""
    try:
        return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))
    except UnicodeEncodeError:  # Pillow's oldest font
        return False
