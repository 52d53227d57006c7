"""`cyclemlp predict`: what an exported model says of images."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from cyclemlp_backbones.checks import check_integer, visible
from cyclemlp_backbones.cli import parser as command_parser

_MAX_MODEL_PIXELS = (
    "refuse images that the model would take larger than this; default 16777216, and fewer where a segmentation "
    "model's classes make that more than 2 GiB"
)


def parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "predict",
        "Runs a folder that `cyclemlp export` wrote. Classes: results.csv, pictures with the best classes. "
        "Segmentation: masks/*.png of class numbers, overlays. Detection: detections.json and images.json in COCO's "
        "format, results.csv, overlays. The exit status is 1 if an image could not be read.",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder that `cyclemlp export` wrote")
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="images, and folders of images or video frames")
    parser.add_argument("--video", metavar="FILE", type=Path, help="a video instead; overlays become a video")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder of the results")
    parser.add_argument("--threads", type=int, help="CPU threads; default: OMP_NUM_THREADS, else all")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each image when it is done")
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="no overlays")
    parser.add_argument(
        "--coco-images", type=Path, metavar="FILE", help="det: COCO annotation file whose image ids to use"
    )
    for flags, kind, default, text in (
        ("--batch-size", int, 1, "images of equal size together"),
        ("--tile", int, None, "seg: side of overlapping tiles into which images are cut, without resizing them"),
        ("--overlap", int, 128, "seg: pixels that neighbouring tiles share"),
        ("--top", int, 5, "cls: classes per image"),
        ("--score-threshold", float, 0.05, "det: lowest score written"),
        ("--draw-threshold --threshold", float, 0.5, "det: lowest score drawn, which the picture names"),
        ("--max-pixels", int, 250_000_000, "refuse larger images"),
        ("--max-model-pixels", int, None, _MAX_MODEL_PIXELS),
    ):
        shown = "" if default is None else ", default %(default)s"
        parser.add_argument(*flags.split(), type=kind, default=default, metavar="N", help=text + shown)
    return parser


def main(argv: list[str]) -> int:
    args = parser().parse_intermixed_args(argv)  # images may stand behind the flags
    from tqdm import tqdm

    from cyclemlp_backbones.deploy.images import find_images
    from cyclemlp_backbones.deploy.predict import Options, predict_files
    from cyclemlp_backbones.deploy.results import coco_image_ids
    from cyclemlp_backbones.deploy.runtime import DeployedModel
    from cyclemlp_backbones.deploy.video import Video

    options = Options(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Options)})
    if args.threads is not None:
        check_integer("--threads", args.threads, 1)
    if bool(args.images) == (args.video is not None) or (args.video and args.coco_images):
        raise ValueError("give images, or one video by --video, which has no --coco-images")
    video = Video(args.video, most_pixels=args.max_pixels) if args.video else None
    files = find_images(args.images, out=args.out) if video is None else []
    model = DeployedModel(args.model, threads=args.threads)
    options.check(model.manifest)
    image_ids = coco_image_ids(files, args.coco_images) if args.coco_images else None
    done = failed = 0
    with tqdm(total=len(files) if video is None else video.count, unit="image", disable=None) as progress:
        found = video.frames() if video else files
        for result in predict_files(model, found, args.out, options, image_ids=image_ids, video=video):
            progress.update()
            done += 1
            if "error" in result:
                failed += 1
                progress.write(visible(f"left out {result['image']}: {result['error']}"), file=sys.stderr)
            if args.json:
                progress.write(json.dumps(result))
    what = "frames" if video else "images"
    print(visible(f"wrote the results of {done - failed} {what} to {args.out}"), file=sys.stderr if args.json else None)
    if failed:
        print(f"left out {failed} of {done} {what}, named above", file=sys.stderr)
    return 1 if failed else 0
