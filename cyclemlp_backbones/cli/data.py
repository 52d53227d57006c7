"""`cyclemlp data check|convert`: data sets of one's own, checked as a whole before training, and converted."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cyclemlp_backbones.checks import check_integer, existing_file, visible
from cyclemlp_backbones.cli.cls import program
from cyclemlp_backbones.configurations import merge, parse_options, read_configuration
from cyclemlp_backbones.datasets.check import Split, classification_splits, detection_splits, segmentation_splits
from cyclemlp_backbones.datasets.convert import LAYOUTS, convert
from cyclemlp_backbones.files import write_atomically

_SHOWN = 100
"""Faults printed of one section; the file of --json has all."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cyclemlp data", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="check|convert")
    check = actions.add_parser(
        "check",
        help="read every image and label that a configuration names",
        description="Reads every image and label that a configuration of PaddleSeg, of PaddleDetection or of `cyclemlp "
        "cls` names, without the toolkit. Prints counts per class and sizes. The exit status is 1 if training would "
        "stumble over anything, which is listed.",
        allow_abbrev=False,
    )
    check.add_argument("-c", "--config", required=True, metavar="FILE", help="configuration file, YAML")
    check.add_argument("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="override the configuration")
    check.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")
    check.add_argument("--json", type=Path, metavar="FILE", help="file for all figures and faults")
    converting = actions.add_parser(
        "convert",
        help="LabelMe or Pascal VOC to PaddleSeg's or PaddleDetection's layout",
        description="Reads a folder of LabelMe's JSON files (polygons, rectangles, circles), or one in Pascal VOC's "
        "layout (Annotations/*.xml for det, SegmentationClass/*.png for seg), and writes images, annotations, the "
        "lists of the splits and labels.txt into OUT, all or nothing.",
        allow_abbrev=False,
    )
    converting.add_argument("source", metavar="SRC", type=Path, help="folder of LabelMe or Pascal VOC")
    converting.add_argument("out", metavar="OUT", type=Path, help="a new or empty folder")
    converting.add_argument(
        "--to", required=True, choices=LAYOUTS, help="seg: PaddleSeg, masks of class numbers; det: COCO's JSON"
    )
    converting.add_argument(
        "--classes", type=Path, metavar="FILE", help="a class's name a line, with R G B behind it for masks of colours"
    )
    converting.add_argument("--val-share", type=float, default=0.2, metavar="S", help="held out (%(default)s)")
    converting.add_argument(
        "--seed", type=int, default=0, metavar="K", help="another seed, another split (%(default)s)"
    )
    converting.add_argument("--link", action="store_true", help="symbolic links to the images instead of copies")
    return parser


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    return _check(args) if args.action == "check" else _convert(args)


def _convert(args: argparse.Namespace) -> int:
    options = {name: getattr(args, name) for name in ("to", "classes", "val_share", "seed", "link")}
    progress = partial(tqdm, unit="image", disable=None)
    counts, classes = convert(args.source, args.out, **options, progress=progress)
    how = "linked" if args.link else "copied"
    print(visible(f"{args.out}: {counts['train']} training and {counts.get('val', 0)} held-out images, {how}"))
    print(visible(f"num_classes: {len(classes)} ({', '.join(classes)})"))
    return 0


def _splits(args: argparse.Namespace) -> Iterator[Split]:
    shipped = Path(args.config).name == args.config and not Path(args.config).exists()  # one of `cyclemlp cls`
    tree: Mapping[str, Any] = {} if shipped else read_configuration(existing_file(args.config, "configuration"))
    if "train_dataset" in tree or "val_dataset" in tree:
        return segmentation_splits(merge(tree, parse_options(args.opts, "--opts")), _open_dataset)
    if "TrainDataset" in tree or "EvalDataset" in tree:
        return detection_splits(merge(tree, parse_options(args.opts, "--opts")))
    files, data = (importlib.import_module(f"{program()}.{name}") for name in ("config_files", "data"))
    config = files.load_config(args.config, map(files.parse_setting, args.opts))
    wanted = [what for what in ("train", "val") if getattr(config.data, f"{what}_images")] or ["train"]
    return classification_splits(partial(data.read_samples, config), wanted, config.model.num_classes)


def _open_dataset(settings: Mapping[str, Any]) -> Any:
    from cyclemlp_backbones.adapters.launch import importing

    with importing("PaddleSeg", "paddleseg", "seg"):
        from cyclemlp_backbones.adapters.paddleseg.launch import open_dataset

    return open_dataset(settings)


def _check(args: argparse.Namespace) -> int:
    check_integer("--workers", args.workers, 1)
    reports = []
    for split in _splits(args):
        split.read(
            args.workers, partial(tqdm, desc=split.section, total=len(split.dataset), unit="image", disable=None)
        )
        reports.append(split.report())
        _print(reports[-1], split.unit)
    if args.json:
        text = json.dumps(reports, indent=1) + "\n"
        write_atomically(args.json, lambda path: path.write_text(text, encoding="utf-8"))
    faults = sum(len(report["faults"]) for report in reports)
    print(f"{faults} faults, listed above" if faults else "no fault found", file=sys.stderr if faults else sys.stdout)
    return 1 if faults else 0


def _print(report: Mapping[str, Any], unit: str) -> None:
    section = report["section"]
    print(f"{section}: {report['samples']} images")
    for side in ("width", "height"):
        if side in report:
            print(f"  {side:<6} {report[side][0]} to {report[side][2]}, median {report[side][1]}")
    columns = [*dict.fromkeys(("images", unit))]
    if report["classes"]:
        print(f"  {'class':<24}" + "".join(f"{column:>14}" for column in columns))
    for row in report["classes"]:
        name = f"{row['class']} {row['name']}"
        print(visible(f"  {name:<24}" + "".join(f"{row[column]:>14,}" for column in columns)))
    for note in report["notes"]:
        print(visible(f"  note: {note}"))
    for fault in report["faults"][:_SHOWN]:
        print(visible(f"{section}: {fault}"), file=sys.stderr)
    if more := report["faults"][_SHOWN:]:
        print(f"{section}: and {len(more)} more; --json FILE has all", file=sys.stderr)
