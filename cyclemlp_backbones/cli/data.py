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
from cyclemlp_backbones.cli import example
from cyclemlp_backbones.cli import parser as command_parser
from cyclemlp_backbones.cli.cls import program
from cyclemlp_backbones.configurations import merge, parse_options, read_configuration
from cyclemlp_backbones.datasets.check import Split, classification_splits, detection_splits, segmentation_splits
from cyclemlp_backbones.datasets.convert import convert
from cyclemlp_backbones.files import write_atomically

_SHOWN = 100
"""Faults printed of one section; the file of --json has all."""

_CHECK = """Reads every image and label that a configuration of PaddleSeg, PaddleDetection or `cyclemlp cls` names,
without the toolkit. Prints sizes and counts per class. Lists what training would stumble over, with status 1."""
_CONVERT = """Reads a folder of LabelMe's JSON files (polygons, rectangles, circles), or one in Pascal VOC's layout
(Annotations/*.xml for det, SegmentationClass/*.png for seg), and writes images, annotations, lists of the splits and
labels.txt into OUT, all or nothing."""


def parser() -> argparse.ArgumentParser:
    parser = command_parser("data", __doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="check|convert")
    check, add = (
        actions.add_parser(name, description=text, epilog=example(f"data {name}"), allow_abbrev=False).add_argument
        for name, text in (("check", _CHECK), ("convert", _CONVERT))
    )
    check("-c", "--config", required=True, metavar="FILE", help="configuration file, YAML")
    check("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="override the configuration")
    check("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")
    check("--json", type=Path, metavar="FILE", help="file for all figures and faults")
    add("source", metavar="SRC", type=Path, help="folder of LabelMe or Pascal VOC")
    add("out", metavar="OUT", type=Path, help="a new or empty folder")
    add("--to", required=True, choices=("seg", "det"), help="PaddleSeg's layout, or PaddleDetection's: COCO")
    add("--classes", type=Path, metavar="FILE", help="a class's name a line, R G B behind it for masks of colours")
    add("--val-share", type=float, default=0.2, metavar="S", help="held out (%(default)s)")
    add("--seed", type=int, default=0, metavar="K", help="another seed, another split (%(default)s)")
    add("--link", action="store_true", help="symbolic links to the images instead of copies")
    return parser


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.action == "check":
        return _check(args)
    options = {name: getattr(args, name) for name in ("to", "classes", "val_share", "seed", "link")}
    counts, classes = convert(args.source, args.out, **options, progress=partial(tqdm, unit="image", disable=None))
    images = f"{counts['train']} training and {counts.get('val', 0)} held-out images"
    print(visible(f"{args.out}: {images}, {'linked' if args.link else 'copied'}"))
    print(visible(f"num_classes: {len(classes)} ({', '.join(classes)})"))
    return 0


def _splits(args: argparse.Namespace) -> Iterator[Split]:
    shipped = Path(args.config).name == args.config and not Path(args.config).exists()  # one of `cyclemlp cls`
    tree: Mapping[str, Any] = {} if shipped else read_configuration(existing_file(args.config, "configuration"))
    for sections, splits in (
        ({"train_dataset", "val_dataset"}, partial(segmentation_splits, open_dataset=_open_dataset)),
        ({"TrainDataset", "EvalDataset"}, detection_splits),
    ):
        if sections & tree.keys():
            return splits(merge(tree, parse_options(args.opts, "--opts")))
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
    reports, faults = [], 0
    for split in _splits(args):
        split.read(args.workers, partial(tqdm, desc=split.section, total=len(split.dataset), disable=None))
        reports.append(split.report())
        faults += len(split.faults)
        print(visible(split.table()))
        for fault in split.faults[:_SHOWN]:
            print(visible(f"{split.section}: {fault}"), file=sys.stderr)
    if args.json:
        text = json.dumps(reports, indent=1) + "\n"
        write_atomically(args.json, lambda path: path.write_text(text, encoding="utf-8"))
    told = f"{faults} faults; above the first {_SHOWN} of a section, in --json FILE all" if faults else "no fault found"
    print(told, file=sys.stderr if faults else sys.stdout)
    return 1 if faults else 0
