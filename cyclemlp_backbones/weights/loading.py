"""Weights into a network, strictly: layouts, names, the published sources."""

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
from paddle import nn

from cyclemlp_backbones.cyclenet import CycleFC, cycle_offsets
from cyclemlp_backbones.variants import variant_name
from cyclemlp_backbones.weights.download import fetch, is_url
from cyclemlp_backbones.weights.formats import (
    LAYOUTS,
    Layout,
    MissingCheckpointError,
    read_checkpoint_file,
    strip_prefixes,
)
from cyclemlp_backbones.weights.pickles import CheckpointError

logger = logging.getLogger(__name__)

PUBLISHED = {
    variant: f"https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_{variant.upper()}.pth"
    for variant in ("b1", "b2", "b3", "b4", "b5")
}
"""The authors' ImageNet-1k classifiers. No checksum is published: the first download's is recorded."""

_PYRAMID_NORM = re.compile(r"norm[0246]\.(weight|bias)")
_CLASSIFIER_ONLY = re.compile(r"(norm|head)\.(weight|bias)")
_BACKBONE = "backbone."


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did. All names are the network's own, but for `skipped`, which are the file's.

    `loaded`: parameters that got their values from `source`, which was in `layout`. `skipped`: entries that are not
    for this network (a classifier's `norm`, `head`; a toolkit's heads). `fresh`: parameters that keep the values that
    they had, since the file has none. `ignored`: names of network or file that match a pattern of `ignore`.
    `checked_offsets`: how many buffers `*.offset` were compared with `cycle_offsets`.
    """

    source: str
    layout: Layout
    loaded: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    checked_offsets: int = 0

    def __str__(self) -> str:
        lines = [
            f"loaded {len(self.loaded)} parameters from {self.source} ({self.layout} layout); "
            f"{self.checked_offsets} offset buffers agree"
        ]
        for what, names in (
            ("not for this network", self.skipped),
            ("not in the file, kept as initialised", self.fresh),
            ("ignored at the call", self.ignored),
        ):
            if names:
                lines.append(f"  {what}: {_listed(names)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Layer,
    source: str | os.PathLike | Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    layout: Layout | None = None,
) -> LoadReport:
    """Gives every parameter of `model` its value from `source`: a weights file, or a mapping of names to arrays.

    `model` is a CycleNet, or a whole network around one that keeps it as `backbone`.

    `layout` is "torch" (`Linear.weight` [out, in]) or "paddle" ([in, out]). None takes the layout that the file
    tells: a `.pth` PyTorch's, a `.pdparams` Paddle's, a `.safetensors` that we wrote the one in its metadata; a mapping
    of Paddle tensors is Paddle's. Elsewhere it has to be given: it is never guessed from shapes.

    Every name and shape has to fit, or nothing is changed and one CheckpointError lists all that is missing,
    unexpected or misshapen. Exceptions: names that match a pattern of `ignore` (as in a shell: "head.*") are neither
    read nor asked for; a classifier's file into a pyramid leaves out `norm`, `head`, and the pyramid norms stay fresh;
    from a toolkit's checkpoint, what begins with `backbone.` is read. Buffers `*.offset` are compared with
    `cycle_offsets` and dropped.
    Values are cast to the parameters' dtype; one that is not finite is an error. The report is also logged.
    """
    described, arrays, known_layout = _read_source(source)
    report = load_arrays(
        model, arrays, described=described, ignore=ignore, layout=known_layout if layout is None else layout
    )
    logger.info("%s", report)
    return report


def load_arrays(
    model: nn.Layer,
    arrays: Mapping[str, np.ndarray],
    *,
    described: str,
    ignore: Sequence[str] = (),
    layout: Layout | None,
) -> LoadReport:
    """`load_weights` with arrays that are read already; `described` is what messages call their source."""
    if isinstance(ignore, str):
        raise ValueError(f"ignore is {ignore!r}; it takes a sequence of patterns: ignore=({ignore!r},)")
    if layout is None:
        raise CheckpointError(
            f"{described}: it does not tell in which layout its Linear weights are; pass layout='torch' ([out, in], "
            "from PyTorch) or layout='paddle' ([in, out])"
        )
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; it takes None, {' or '.join(map(repr, LAYOUTS))}")
    parameters = model.state_dict()
    arrays, skipped = _backbone_part(arrays, parameters)

    def is_ignored(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in ignore)

    ignored = sorted({name for name in [*parameters, *arrays] if is_ignored(name)})
    arrays = {name: array for name, array in arrays.items() if not is_ignored(name)}
    wanted = {name: parameter for name, parameter in parameters.items() if not is_ignored(name)}

    fresh: list[str] = []
    if _is_pyramid(parameters):
        heads = [name for name in arrays if _CLASSIFIER_ONLY.fullmatch(name)]
        if heads and not any(_PYRAMID_NORM.fullmatch(name) for name in arrays):
            fresh = [name for name in wanted if _PYRAMID_NORM.fullmatch(name)]
        skipped += heads
        arrays = {name: array for name, array in arrays.items() if name not in heads}
    wanted = {name: parameter for name, parameter in wanted.items() if name not in fresh}

    checked_offsets = _check_offsets(model, arrays, described)
    arrays = {name: array for name, array in arrays.items() if name not in checked_offsets}
    if layout == "torch":
        transposed = {f"{name}.weight" for name, layer in model.named_sublayers() if isinstance(layer, nn.Linear)}
        arrays = {name: array.T if name in transposed and array.ndim == 2 else array for name, array in arrays.items()}
    _check_names_and_shapes(wanted, arrays, described, layout)
    values = _cast({name: (arrays[name], parameter.dtype) for name, parameter in wanted.items()}, described)
    for name, value in values.items():
        wanted[name].set_value(value)
    return LoadReport(
        described, layout, tuple(values), tuple(skipped), tuple(fresh), tuple(ignored), len(checked_offsets)
    )


def locate_weights(pretrained: str | os.PathLike | Literal[True], variant: str) -> Path:
    """The weights file that `pretrained` means, downloaded if need be.

    True is the published file of `variant` (ValueError for b0, which has none), a string that begins with http:// or
    https:// a URL, anything else a path.
    """
    if pretrained is True:
        variant = variant_name(variant)
        if variant not in PUBLISHED:
            raise ValueError(
                f"no weights are published for CycleMLP {variant}, only for {', '.join(PUBLISHED)}; give a path or URL"
            )
        return fetch(PUBLISHED[variant])
    if not isinstance(pretrained, (str, os.PathLike)):
        raise ValueError(f"pretrained is {pretrained!r}; it takes None, True, a path or a URL")
    if isinstance(pretrained, str) and is_url(pretrained):
        return fetch(pretrained)
    path = Path(pretrained).expanduser()
    if not path.exists():
        raise MissingCheckpointError(
            f"there is no weights file {path}; check the path, or use pretrained=True for the published weights"
        )
    return path


def _read_source(source: Any) -> tuple[str, dict[str, np.ndarray], Layout | None]:
    """What messages call `source`, its arrays, and its layout where it tells one."""
    if isinstance(source, Mapping):
        is_paddle = any(isinstance(value, paddle.Tensor) for value in source.values())
        arrays = strip_prefixes({name: _to_numpy(value) for name, value in source.items()})
        return "a mapping of arrays", arrays, "paddle" if is_paddle else None
    if isinstance(source, (str, os.PathLike)):
        file = read_checkpoint_file(source)
        return os.fspath(source), file.arrays, file.layout
    raise ValueError(
        f"source is of type {type(source).__name__}; load_weights takes the path of a file or a mapping of arrays"
    )


def _to_numpy(value: Any) -> np.ndarray:
    if isinstance(value, paddle.Tensor) and value.dtype == paddle.bfloat16:
        value = value.astype("float32")  # NumPy would get the bits as integers
    return np.asarray(value)


def _backbone_part(
    arrays: Mapping[str, np.ndarray], parameters: Mapping[str, Any]
) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """The network's entries of a toolkit's checkpoint, prefix removed, and the names of the others."""
    if not any(name.startswith(_BACKBONE) for name in arrays) or any(name.startswith(_BACKBONE) for name in parameters):
        return arrays, []
    ours = {name.removeprefix(_BACKBONE): array for name, array in arrays.items() if name.startswith(_BACKBONE)}
    return ours, [name for name in arrays if not name.startswith(_BACKBONE)]


def _is_pyramid(parameters: Mapping[str, Any]) -> bool:
    return any(_PYRAMID_NORM.fullmatch(name) for name in parameters) and "head.weight" not in parameters


def _check_offsets(model: nn.Layer, arrays: Mapping[str, np.ndarray], described: str) -> list[str]:
    """The names of the offset buffers, all equal to ours."""
    layers = {name: layer for name, layer in model.named_sublayers() if isinstance(layer, CycleFC)}
    names = [name for name in arrays if name.endswith(".offset") and name.removesuffix(".offset") in layers]
    wrong = []
    for name in names:
        layer = layers[name.removesuffix(".offset")]
        expected = cycle_offsets(layer.in_channels, layer.kernel_size).reshape(
            1, -1, 1, 1
        )  # dy, dx of channel 0, dy, dx of channel 1, …
        if not np.array_equal(arrays[name], expected):
            wrong.append(name)
    if wrong:
        raise CheckpointError(
            f"{described}: these offsets are not CycleMLP's: {_listed(wrong)}; the weights are another operator's. "
            "If you want them nevertheless, pass ignore=('*.offset',)"
        )
    return names


def _check_names_and_shapes(
    wanted: Mapping[str, Any], arrays: Mapping[str, np.ndarray], described: str, layout: str
) -> None:
    missing = [name for name in wanted if name not in arrays]
    unexpected = [name for name in arrays if name not in wanted]
    misshapen = [
        f"{name} is {list(arrays[name].shape)}, needs {list(parameter.shape)}"
        for name, parameter in wanted.items()
        if name in arrays and list(arrays[name].shape) != list(parameter.shape)
    ]
    problems = [
        f"{kind} ({len(names)}): {_listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        problems.append(f"shapes are in Paddle's layout, the source was read as {layout}'s")
        raise CheckpointError(
            f"{described}: the weights do not fit, nothing was loaded\n  " + "\n  ".join(problems) + "\n"
            "choose the network (variant, num_classes, out_indices) that they were made for, "
            "or name the exceptions: ignore=('head.*',)"
        )


def _cast(arrays: Mapping[str, tuple[np.ndarray, Any]], described: str) -> dict[str, paddle.Tensor]:
    """Name -> (array, dtype) as tensors, all of finite numbers."""
    wrong = [f"{name} ({array.dtype})" for name, (array, _) in arrays.items() if array.dtype.kind != "f"]
    if wrong:
        raise CheckpointError(
            f"{described}: these weights are no floating-point numbers: {_listed(wrong)}; write the file again"
        )
    tensors = {
        name: paddle.to_tensor(np.asarray(array, order="C")).astype(dtype) for name, (array, dtype) in arrays.items()
    }
    wrong = [name for name, tensor in tensors.items() if not np.isfinite(tensor.astype("float32").numpy()).all()]
    if wrong:
        raise CheckpointError(
            f"{described}: values that are not finite (or too large for the network's dtype) in {_listed(wrong)}; "
            "use a checkpoint from before training diverged"
        )
    return tensors


def _listed(names: Sequence[str], limit: int = 60) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
