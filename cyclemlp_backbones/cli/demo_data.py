"""`cyclemlp demo-data DIR --format seg|coco|imagenet`: digits on photographs, without a download."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tqdm import tqdm

from cyclemlp_backbones.cli import parser as command_parser
from cyclemlp_backbones.digits import CLASSES, FORMATS, DemoSettings, write_demo_data


def main(argv: list[str]) -> int:
    parser = command_parser(
        "demo-data",
        "Writes scikit-learn's handwritten digits on crops of its two photographs, with exact masks, boxes "
        "and classes. The same settings give the same files; the held-out split (val) has other digits and other crops "
        "than training.",
    )
    defaults = DemoSettings("seg")
    parser.add_argument("folder", metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="PaddleSeg's Dataset, COCO instances, or image folders with lists",
    )
    parser.add_argument("--train", type=int, metavar="N", default=defaults.train, help="training scenes (%(default)s)")
    parser.add_argument("--val", type=int, metavar="N", default=defaults.val, help="held-out scenes (%(default)s)")
    parser.add_argument(
        "--size", type=int, metavar="S", default=defaults.size, help="height and width in pixels (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="K", default=defaults.seed, help="another seed, other scenes (%(default)s)"
    )
    parser.add_argument("--max-digits", type=int, metavar="D", help="most digits in a scene (4; imagenet: always 1)")
    parser.add_argument(
        "--workers", type=int, metavar="W", default=2, help="threads; they do not change the result (%(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace the demo data that DIR already holds")
    arguments = parser.parse_args(argv)

    settings = DemoSettings(
        arguments.format,
        train=arguments.train,
        val=arguments.val,
        size=arguments.size,
        seed=arguments.seed,
        max_digits=arguments.max_digits,
    )
    progress: partial[Iterable] = partial(tqdm, total=settings.train + settings.val, unit=" scenes")
    write_demo_data(arguments.folder, settings, force=arguments.force, workers=arguments.workers, progress=progress)
    scenes = f"{settings.train} training and {settings.val} held-out scenes"
    what = f"{len(CLASSES) - 1} classes, {settings.size} x {settings.size} pixels, seed {settings.seed}"
    print(f"{arguments.folder}: {scenes}, {what}, as {settings.format}")
    return 0
