"""`cyclemlp plot KIND …`: draws offsets, receptive fields, pyramids, training curves or a confusion matrix as a PNG."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cyclemlp_backbones.checks import existing_file
from cyclemlp_backbones.cli import example
from cyclemlp_backbones.cli import parser as command_parser
from cyclemlp_backbones.complexity import parse_size
from cyclemlp_backbones.variants import VARIANTS

_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's
_Draw = Callable[[Any, argparse.Namespace], None]
_NUMBER = r"([-+]?\d[\d.]*(?:e[-+]?\d+)?)"
_STEP = re.compile(r'\b(?:step|iter)"?: *(\d+)')
_CURVES = {
    "loss": re.compile(rf'\bloss"?: *{_NUMBER}'),
    "mIoU": re.compile(rf"\bmIoU: *{_NUMBER}"),
    "top1": re.compile(rf'\btop1"?: *{_NUMBER}'),
    "AP": re.compile(rf"\(AP\) @\[ IoU=0\.50:0\.95 \| area= *all .*= *{_NUMBER}"),
}
"""What `read_curves` finds in a line: of PaddleSeg's and PaddleDetection's logs, and of pretraining's log.jsonl."""


def main(argv: list[str]) -> int:
    parser = command_parser("plot", __doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    network = ("network", None, "a variant, with random weights, or a weights file")
    table: list[tuple[str, str, _Draw, list[tuple[str, str | None, str]]]] = [
        ("offsets", "which position each channel of a CycleFC reads", _draw_offsets, []),
        ("receptive-field", "pixels that the middle of each map depends on", _draw_receptive_field, [network]),
        ("pyramid", "the maps of an image", _draw_pyramid, [network, ("image", None, "an image file")]),
        ("curves", "loss and accuracy of logs", _draw_curves, [
            ("logs", "+", "logs of PaddleSeg or PaddleDetection, or a log.jsonl of pretraining"),
        ]),
        ("confusion", "which classes are taken for which", _draw_confusion, [
            ("predicted", None, "a folder of masks, or the CSV file of `cyclemlp cls predict`"),
            ("truth", None, "a folder of masks of the same names, or a list of lines `name class`"),
        ]),
    ]  # fmt: skip
    for kind, summary, draw, positional in table:
        action = kinds.add_parser(kind, help=summary, description=f"Draws {summary}.", allow_abbrev=False)
        action.epilog = example(f"plot {kind}")
        action.set_defaults(draw=draw)
        for name, count, text in positional:
            action.add_argument(name, nargs=count, help=text, type=str if name == "network" else Path)
        action.add_argument("--out", type=Path, default=Path(f"{kind}.png"), help="default %(default)s")
        if kind == "offsets":
            action.add_argument("--channels", type=int, default=9, help="default %(default)s")
            action.add_argument("--kernel", type=int, default=3, help="positions K that are read, default %(default)s")
        elif kind in ("receptive-field", "pyramid"):
            default = "224x224" if kind == "receptive-field" else None
            action.add_argument("--size", default=default, help=f"HEIGHTxWIDTH, default {default or 'the image has'}")
        elif kind == "confusion":
            action.add_argument("--names", type=Path, help="file with a class name a line")
    arguments = parser.parse_args(argv)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("cyclemlp plot draws with matplotlib: pip install matplotlib") from error
    figure = Figure(layout="constrained")
    arguments.draw(figure, arguments)
    if not arguments.out.parent.is_dir():
        raise ValueError(f"there is no folder {arguments.out.parent}; create it first")
    figure.savefig(arguments.out, dpi=100)
    print(arguments.out)
    return 0


def reads(channels: int, length: int) -> np.ndarray:
    """How a CycleFC of K = `length` reads: [channels, 2 (K // 2) + 1], 1 at the offset of each channel, else 0."""
    from cyclemlp_backbones.cyclenet import cycle_offsets

    offsets = cycle_offsets(channels, (1, length))[:, 1]
    return (offsets[:, None] == np.arange(-(length // 2), length // 2 + 1)).astype(int)


def receptive_fields(model: Any, height: int, width: int) -> list[np.ndarray]:
    """For each map, how its middle position depends on each pixel, [height, width]: the gradient's absolute value,
    summed over colours, averaged over four random images, the largest 1."""
    import paddle

    model.eval()
    images = np.random.RandomState(0).standard_normal((4, model.in_channels, height, width)).astype(np.float32)
    image = paddle.to_tensor(images, stop_gradient=False)
    fields = []
    for y in model(image):  # random signs: a normalised map's channels have a constant sum
        signs = np.sign(np.random.RandomState(1).standard_normal(y.shape[1])).astype(np.float32)
        middle = (y[:, :, y.shape[2] // 2, y.shape[3] // 2] * paddle.to_tensor(signs)).sum()
        (gradient,) = paddle.grad(middle, image, retain_graph=True)
        field = np.abs(gradient.numpy()).sum(1).mean(0)
        fields.append(field / field.max())
    return fields


def pyramid(model: Any, image: np.ndarray) -> list[np.ndarray]:
    """For each map, its first three principal components as colours, [H_i, W_i, 3], 0 to 1: positions of like features
    are of like colour. `image` is [H, W, 3], 0 to 255."""
    import paddle

    model.eval()
    x = ((image / 255 - _MEAN) / _STD).astype(np.float32).transpose(2, 0, 1)[None]
    with paddle.no_grad():
        return [_principal(y.numpy()[0].transpose(1, 2, 0)) for y in model(paddle.to_tensor(x))]


def _principal(features: np.ndarray) -> np.ndarray:
    rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
    rows -= rows.mean(0)
    _, directions = np.linalg.eigh(rows.T @ rows)  # the largest last
    scores = rows @ directions[:, :-4:-1]
    scores -= scores.min(0)
    return (scores / np.maximum(scores.max(0), 1e-12)).reshape(*features.shape[:2], 3)


def read_curves(log: Path) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of each of `_CURVES` that a log has; without steps in it, lines with a loss count."""
    found: dict[str, list[tuple[int, float]]] = {}
    step = 0
    for line in existing_file(log, "log").read_text(encoding="utf-8", errors="replace").splitlines():
        told = _STEP.search(line)
        step = int(told[1]) if told else step + bool(_CURVES["loss"].search(line))
        for name, pattern in _CURVES.items():
            if value := pattern.search(line):
                found.setdefault(name, []).append((step, float(value[1])))
    if not found:
        raise ValueError(f"{log} has no line with {', '.join(_CURVES)}; give the log of a training")
    return found


def confusion(predicted: Path, truth: Path) -> np.ndarray:
    """Counts [true class, predicted class]: of pixels, 255 left out, or of images."""
    pairs = _of_masks(predicted, truth) if predicted.is_dir() else [_of_lists(predicted, truth)]
    classes = 1 + max(max(true.max(initial=0), said.max(initial=0)) for true, said in pairs)
    counts = [np.bincount(true * classes + said, minlength=classes**2) for true, said in pairs]
    return np.sum(counts, axis=0).reshape(classes, classes)


def _of_masks(predicted: Path, truth: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    from PIL import Image

    pairs = []
    masks = {path.stem: path for path in truth.glob("*.png")}
    for path in sorted(predicted.glob("*.png")):
        if path.stem not in masks:
            raise ValueError(f"{path} has no mask {truth / path.name} to be compared with")
        said, true = (np.asarray(Image.open(file)).astype(np.int64) for file in (path, masks[path.stem]))
        if said.shape != true.shape:
            raise ValueError(f"{path} is {said.shape}, {masks[path.stem]} {true.shape}; masks hold a class a pixel")
        pairs.append((true[true != 255], said[true != 255]))
    if not pairs:
        raise ValueError(f"{predicted} holds no mask; `cyclemlp predict` writes them into masks/")
    return pairs


def _of_lists(predicted: Path, truth: Path) -> tuple[np.ndarray, np.ndarray]:
    table = existing_file(predicted, "folder of masks or CSV file")
    lines = existing_file(truth, "list").read_text(encoding="utf-8").splitlines()
    true = {name: int(label) for name, label in (line.rsplit(maxsplit=1) for line in lines if line.strip())}
    with table.open(encoding="utf-8", newline="") as file:
        said = {row["name"]: int(row["class1"]) for row in csv.DictReader(file) if row["class1"] != "unreadable"}
    if missing := [name for name in said if name not in true]:
        raise ValueError(f"{predicted} has {len(missing)} images that {truth} does not name, as {missing[0]}")
    return np.array([true[name] for name in said]), np.array(list(said.values()))


def _network(source: str) -> Any:
    import paddle

    from cyclemlp_backbones.factory import build_backbone, from_weights

    paddle.seed(0)
    if source in VARIANTS and not Path(source).exists():
        return build_backbone(source, drop_path_rate=0.0)
    return from_weights(source, out_indices=(0, 1, 2, 3))


def _draw_offsets(figure: Any, arguments: argparse.Namespace) -> None:
    read = reads(arguments.channels, arguments.kernel)
    figure.set_size_inches(2 + read.shape[1], 1.5 + 0.3 * len(read))
    axes = figure.subplots()
    axes.imshow(read, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    axes.set(xlabel="offset along the width, or the height", ylabel="channel", yticks=range(len(read)))
    axes.set_xticks(
        range(read.shape[1]), [f"{x:+d}" if x else "p" for x in np.arange(read.shape[1]) - arguments.kernel // 2]
    )


def _draw_maps(figure: Any, maps: Sequence[np.ndarray], titles: Sequence[str], **options: Any) -> None:
    figure.set_size_inches(3.2 * len(maps), 3.6 * max(0.5, maps[0].shape[0] / maps[0].shape[1]))
    for axes, y, title in zip(figure.subplots(1, len(maps)), maps, titles):
        shown = axes.imshow(y, **options)
        axes.set_title(title)
        axes.axis("off")
    if options:
        figure.colorbar(shown, ax=figure.axes, shrink=0.8)


def _draw_receptive_field(figure: Any, arguments: argparse.Namespace) -> None:
    from matplotlib.colors import LogNorm

    model = _network(arguments.network)
    fields = receptive_fields(model, *parse_size(arguments.size))
    titles = [f"stride {spec.stride}" for spec in model.stage_specs]
    _draw_maps(figure, [np.maximum(y, 1e-5) for y in fields], titles, norm=LogNorm(1e-4, 1), cmap="magma")


def _draw_pyramid(figure: Any, arguments: argparse.Namespace) -> None:
    from cyclemlp_backbones.pictures import read_rgb

    image = read_rgb(existing_file(arguments.image, "image"))
    if arguments.size:
        image = image.resize(parse_size(arguments.size)[::-1])
    model = _network(arguments.network)
    maps = pyramid(model, np.asarray(image))
    titles = [
        "image",
        *(f"stride {spec.stride}: {y.shape[0]} x {y.shape[1]}" for spec, y in zip(model.stage_specs, maps)),
    ]
    _draw_maps(figure, [np.asarray(image), *maps], titles)


def _draw_curves(figure: Any, arguments: argparse.Namespace) -> None:
    runs: Mapping[str, Any] = {str(log): read_curves(log) for log in arguments.logs}
    names = [name for name in _CURVES if any(name in curves for curves in runs.values())]
    figure.set_size_inches(5 * len(names), 4)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        for log, curves in runs.items():
            if name in curves:
                axes.plot(*zip(*curves[name]), marker=None if name == "loss" else ".", label=log)
        axes.set(title=name, xlabel="step")
        axes.legend(fontsize=8)


def _draw_confusion(figure: Any, arguments: argparse.Namespace) -> None:
    counts = confusion(arguments.predicted, arguments.truth)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [str(number) for number in range(len(counts))]
    if arguments.names:
        told = existing_file(arguments.names, "file of names").read_text(encoding="utf-8").splitlines()
        names[: len(told)] = told[: len(names)]
    side = min(30.0, 3 + 0.4 * len(counts))
    figure.set_size_inches(side + 1, side)
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    if len(names) <= 20:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                colour = "white" if share > 0.6 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(shown, shrink=0.8, label="share of the true class")
