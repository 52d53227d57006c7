"""Weights into a network, strictly: layouts, names, what may differ, the published sources."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import paddle
from paddle import Tensor, nn

from cyclemlp_backbones.cyclenet import CycleFC, cycle_offsets
from cyclemlp_backbones.files import cache_folder
from cyclemlp_backbones.variants import variant_name
from cyclemlp_backbones.weights import formats
from cyclemlp_backbones.weights.download import fetch, is_url
from cyclemlp_backbones.weights.formats import LAYOUTS, Layout
from cyclemlp_backbones.weights.pickles import CheckpointError, listed

logger = logging.getLogger(__name__)

PUBLISHED = {
    variant: f"https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_{variant.upper()}.pth"
    for variant in ("b1", "b2", "b3", "b4", "b5")
}
"""The authors' ImageNet-1k classifiers. No checksum is published: the first download's is recorded."""

_PYRAMID_NORM = re.compile(r"norm[0246]\.(weight|bias)")
_CLASSIFIER_ONLY = re.compile(r"(norm|head)\.(weight|bias)")
_KINDS = ("ignored", "offset", "skipped", "fresh", "fresh_head")  # of names that are not loaded
STEM = "patch_embed.proj.weight"
_BACKBONE = "backbone."


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did. All names are the network's own, but for `skipped`, which are the file's.

    `loaded`: parameters that got their values from `source`, which was in `layout`. `skipped`: entries that are not
    for this network (a classifier's `norm`, `head`; a toolkit's heads). `fresh`: parameters that keep the values that
    they had, since the file has none. `ignored`: names of network or file that match a pattern of `ignore`.
    `checked_offsets`: how many buffers `*.offset` were compared with `cycle_offsets`. With `adapt`: `adapted` is the
    stem's weight if it was made for another number of channels, `fresh_head` a head of another number of classes, which
    keeps the values that it had.
    """

    source: str
    layout: Layout
    loaded: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    checked_offsets: int = 0
    adapted: tuple[str, ...] = ()
    fresh_head: tuple[str, ...] = ()

    def __str__(self) -> str:
        first = f"loaded {len(self.loaded)} parameters from {self.source} ({self.layout} layout); "
        parts = {
            "not for this network": self.skipped,
            "not in the file, kept as initialised": self.fresh,
            "ignored at the call": self.ignored,
            "adapted to another number of channels": self.adapted,
            "of another number of classes in the file, kept as initialised: train it": self.fresh_head,
        }
        lines = [f"  {what}: {listed(names)}" for what, names in parts.items() if names]
        return "\n".join([f"{first}{self.checked_offsets} offset buffers agree", *lines])


def load_weights(
    model: nn.Layer,
    source: str | os.PathLike | Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    layout: Layout | None = None,
    adapt: bool = False,
) -> LoadReport:
    """Gives every parameter of `model` its value from `source`: path or URL of a weights file, or names -> arrays.

    `model` is a CycleNet, or a whole network around one that keeps it as `backbone`.

    `layout` is "torch" (`Linear.weight` [out, in]) or "paddle" ([in, out]). None takes the layout that the file
    tells: a `.pth` PyTorch's, a `.pdparams` Paddle's, a `.safetensors` the one in its metadata, if there; a mapping
    of Paddle tensors is Paddle's. Elsewhere it has to be given: it is never guessed from shapes.

    Every name and shape has to fit, or nothing is changed and one CheckpointError lists all that is missing,
    unexpected or misshapen. Exceptions: names that match a pattern of `ignore` (as in a shell: "head.*") are neither
    read nor asked for; a classifier's file into a pyramid leaves out `norm`, `head`, and the pyramid norms stay fresh;
    from a toolkit's checkpoint, what begins with `backbone.` is read. Buffers `*.offset` are compared with
    `cycle_offsets` and dropped. With `adapt`, as the builders have it, a stem of another number of channels is repeated
    and scaled (`adapt_stem`), a head of another number of classes stays fresh, norms of other outputs are left out.
    Values are cast to the parameters' dtype; one that is not finite is an error. The report is also logged.
    """
    if isinstance(ignore, str):
        raise ValueError(f"ignore is {ignore!r}; it takes a sequence of patterns: ignore=({ignore!r},)")
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"layout is {layout!r}; it takes None, {' or '.join(map(repr, LAYOUTS))}")
    parameters = model.state_dict()
    described, arrays, known_layout = read_source(source)
    layout = layout or known_layout
    if layout is None:
        advice = "pass layout='torch' ([out, in], from PyTorch) or layout='paddle' ([in, out])"
        raise CheckpointError(f"{described}: it does not tell in which layout its Linear weights are; {advice}")
    arrays, skipped = backbone_part(arrays, parameters)
    names = sorted({*parameters, *arrays})
    kinds = {name: "ignored" for name in names if any(fnmatchcase(name, pattern) for pattern in ignore)}
    arrays = {name: array for name, array in arrays.items() if name not in kinds}
    kinds |= dict.fromkeys(_check_offsets(model, arrays, described), "offset")
    if "head.weight" not in parameters and any(map(_PYRAMID_NORM.fullmatch, parameters)):
        heads = [name for name in arrays if _CLASSIFIER_ONLY.fullmatch(name)]
        norms = [name for name in arrays if _PYRAMID_NORM.fullmatch(name)]
        others = [name for name in norms if adapt and name not in parameters]
        kinds |= dict.fromkeys([*heads, *others], "skipped")
        if heads and not norms:
            kinds |= {name: "fresh" for name in parameters if _PYRAMID_NORM.fullmatch(name) and name not in kinds}
    if layout == "torch":
        linear = {f"{name}.weight" for name, layer in model.named_sublayers() if isinstance(layer, nn.Linear)}
        arrays = {name: array.T if name in linear and array.ndim == 2 else array for name, array in arrays.items()}
    shapes = [{name: list(value.shape) for name, value in values.items()} for values in (parameters, arrays)]
    ours, theirs = ([found.get(name, []) for name in (STEM, "head.bias")] for found in shapes)
    adapted = (STEM,) if adapt and len(ours[0]) == len(theirs[0]) == 4 and ours[0][1] != theirs[0][1] else ()
    if adapted:
        arrays[STEM] = adapt_stem(arrays[STEM], ours[0][1])
    if adapt and ours[1] and theirs[1] and ours[1] != theirs[1]:
        kinds |= dict.fromkeys(("head.weight", "head.bias"), "fresh_head")

    wanted = {name: parameter for name, parameter in parameters.items() if name not in kinds}
    set_values(
        wanted,
        {name: array for name, array in arrays.items() if name not in kinds},
        described,
        misfit=f"{described}: the weights do not fit, nothing was loaded\n  ",
        advice=f"\n  shapes are in Paddle's layout, the source was read as {layout}'s\n"
        "choose the network (variant, num_classes, out_indices) that they were made for, "
        "or name the exceptions: ignore=('head.*',)",
    )
    of = {kind: tuple(name for name in kinds if kinds[name] == kind) for kind in _KINDS}
    report = LoadReport(
        described, layout, loaded=tuple(wanted), skipped=(*skipped, *of["skipped"]), fresh=of["fresh"],
        ignored=of["ignored"], checked_offsets=len(of["offset"]), adapted=adapted, fresh_head=of["fresh_head"],
    )  # fmt: skip
    logger.log(logging.WARNING if adapted or of["fresh_head"] else logging.INFO, "%s", report)
    return report


def load_model_weights(model: nn.Layer, source: str | os.PathLike) -> None:
    """Gives every tensor of a toolkit's whole `model` its value from `source`, path or URL of what training saved.

    Names and shapes have to agree, or nothing is changed and a CheckpointError says what is missing, unexpected or
    misshapen. Weights of a backbone alone go into `model.backbone.pretrained` of the configuration instead.
    """
    described, arrays, _ = read_source(source)
    misfit = f"{described} does not fit the {type(model).__name__} of the configuration: "
    set_values(model.state_dict(), arrays, described, misfit=misfit)
    logger.info("loaded %d tensors from %s", len(arrays), described)


def set_values(
    tensors: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray], described: str, *, misfit: str, advice: str = ""
) -> None:
    """Gives each of `tensors` the array of its name, cast to its dtype: all of them, or none and a CheckpointError.

    Names and shapes have to agree, else the message is `misfit`, what differs, `advice`; numbers have to be finite, and
    floating-point where the tensor is.
    """
    shapes = {name: (list(arrays[name].shape), list(tensors[name].shape)) for name in tensors if name in arrays}
    problems = {
        "missing": [name for name in tensors if name not in arrays],
        "unexpected": [name for name in arrays if name not in tensors],
        "misshapen": [f"{name} is {has}, needs {needs}" for name, (has, needs) in shapes.items() if has != needs],
    }
    if any(problems.values()):
        shown = [f"{kind} ({len(names)}): {listed(names)}" for kind, names in problems.items() if names]
        raise CheckpointError(misfit + "\n  ".join(shown) + advice)
    floating = {name: "float" in str(tensor.dtype) for name, tensor in tensors.items()}
    wrong = [f"{name} ({arrays[name].dtype})" for name in tensors if floating[name] != (arrays[name].dtype.kind == "f")]
    if wrong:
        what = f"these weights are no floating-point numbers: {listed(wrong)}; write the file again"
        raise CheckpointError(f"{described}: {what}")
    contiguous = {name: np.asarray(arrays[name], order="C") for name in tensors}
    values = {name: paddle.to_tensor(contiguous[name]).astype(tensor.dtype) for name, tensor in tensors.items()}
    wrong = [name for name, value in values.items() if not np.isfinite(value.astype("float32").numpy()).all()]
    if wrong:
        what = f"values that are not finite (or too large for the network's dtype) in {listed(wrong)}"
        raise CheckpointError(f"{described}: {what}; use a checkpoint from before training diverged")
    for name, value in values.items():
        tensors[name].set_value(value)


def locate_weights(pretrained: str | os.PathLike | Literal[True], variant: str) -> Path:
    """The weights file that `pretrained` means, downloaded if need be.

    True is the published file of `variant` (ValueError for b0, which has none), a string that begins with http:// or
    https:// a URL, anything else a path.
    """
    if pretrained is True:
        variant = variant_name(variant)
        if variant not in PUBLISHED:
            known = f"only for {', '.join(PUBLISHED)}; give a path or URL"
            raise ValueError(f"no weights are published for CycleMLP {variant}, {known}")
        pretrained = PUBLISHED[variant]
    if not isinstance(pretrained, (str, os.PathLike)) or not os.fspath(pretrained):
        raise ValueError(f"pretrained is {pretrained!r}; it takes None, True, a path or a URL")
    return fetch(pretrained) if isinstance(pretrained, str) and is_url(pretrained) else Path(pretrained).expanduser()


def read_source(source: Any) -> tuple[str, Mapping[str, np.ndarray], Layout | None]:
    """What messages call `source`, its arrays, and its layout where it tells one."""
    if isinstance(source, Mapping):
        is_paddle = any(isinstance(value, Tensor) for value in source.values())
        # NumPy would get the bits of bfloat16 as integers
        half = {name for name, value in source.items() if isinstance(value, Tensor) and value.dtype == paddle.bfloat16}
        plain = {name: value.astype("float32") if name in half else value for name, value in source.items()}
        arrays = formats.strip_prefixes({name: np.asarray(value) for name, value in plain.items()})
        return "a mapping of arrays", arrays, "paddle" if is_paddle else None
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise ValueError(f"source is of type {kind}; load_weights takes the path of a file or a mapping of arrays")
    path = Path(fetch(source) if isinstance(source, str) and is_url(source) else source)
    try:
        return str(path), *formats.read_checkpoint_file(path)
    except CheckpointError as error:
        if path.parent == cache_folder() and path.exists():
            raise CheckpointError(f"{error}. Delete it to download it again") from error
        raise


def backbone_part(
    arrays: Mapping[str, np.ndarray], parameters: Mapping[str, Any]
) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """The network's entries of a toolkit's checkpoint, prefix removed, and the names of the others."""
    if not any(name.startswith(_BACKBONE) for name in arrays) or any(name.startswith(_BACKBONE) for name in parameters):
        return arrays, []
    ours = {name.removeprefix(_BACKBONE): array for name, array in arrays.items() if name.startswith(_BACKBONE)}
    return ours, [name for name in arrays if not name.startswith(_BACKBONE)]


def _check_offsets(model: nn.Layer, arrays: Mapping[str, np.ndarray], described: str) -> list[str]:
    """The names of the offset buffers, all equal to ours: dy, dx of channel 0, dy, dx of channel 1, …"""
    ours = {
        f"{name}.offset": cycle_offsets(layer.in_channels, layer.kernel_size).reshape(1, -1, 1, 1)
        for name, layer in model.named_sublayers()
        if isinstance(layer, CycleFC)
    }
    names = [name for name in arrays if name in ours]
    if wrong := [name for name in names if not np.array_equal(arrays[name], ours[name])]:
        what = f"these offsets are not CycleMLP's: {listed(wrong)}; the weights are another operator's"
        raise CheckpointError(f"{described}: {what}. If you want them nevertheless, pass ignore=('*.offset',)")
    return names


def adapt_stem(weight: np.ndarray, in_channels: int) -> np.ndarray:
    """The stem's weight [O, C, 7, 7] for images of another number of channels, as timm does it: their sum for one
    channel; else repeated in order and scaled by C / `in_channels`, which keeps the size of the stem's output."""
    if in_channels == 1:
        return weight.sum(1, keepdims=True)
    order = np.arange(in_channels) % weight.shape[1]
    return weight[:, order] * weight.dtype.type(weight.shape[1] / in_channels)
