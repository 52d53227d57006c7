"""`make demo-det`: data, a start for the backbone, PaddleDetection's trainer for RetinaNet and for Mask R-CNN, held-out
evaluation and pictures, in one go.

    python demo/det.py --variant b0 --out output/demo-det
    python demo/det.py --smoke --out output/demo-det-smoke

The backbone begins with the weights that the classification or the segmentation demo left, if they are there and of the
same variant, else with a short classification warm-up. All results lie in the folder OUT: result.json has the figures.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cyclemlp_backbones.digits import DemoSettings, make_scene
from demo.det_picture import Found, draw_detections
from demo.steps import (
    ROOT,
    Clock,
    DemoFailure,
    det_data,
    det_schedule,
    parser,
    run_command,
    run_demo,
    write_result,
    write_scenes,
)
from demo.warmup import Phase, warm_up

DETECTORS = {"retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN"}
_PICTURED = 6  # scenes
_DRAWN = 0.4  # lowest score in the picture


@dataclass(frozen=True)
class Schedule:
    """Sizes and lengths of one run; training's length is in its configuration, unless `epochs` says otherwise.

    An average precision at an overlap of 0.5 below `least_precision` is a failure.
    """

    train_scenes: int
    val_scenes: int
    size: int
    warm_up: tuple[Phase, ...]
    least_precision: float
    epochs: int | None = None


SCHEDULES = {
    "b0": Schedule(2000, 240, 96, (Phase(48, 32, 400),), least_precision=0.3),
    "b1": Schedule(2000, 240, 96, (Phase(48, 32, 250),), least_precision=0.1),
}
SMOKE = Schedule(400, 40, 64, (Phase(48, 32, 50),), least_precision=0.0, epochs=3)


def read_precisions(output: str) -> dict[str, tuple[float, float]]:
    """Average precision, over overlaps of 0.5 to 0.95 and at 0.5, of "bbox" and "segm", from what evaluation prints."""
    precisions = {}
    for kind, table in re.findall(
        r"Evaluate annotation type \*(\w+)\*(.*?maxDets=100 \] = -?\d\.\d+\n.*?\n)", output, re.DOTALL
    ):
        whole, half = re.findall(r"Average Precision .*area=   all .* = (-?\d\.\d+)", table)[:2]
        precisions[kind] = float(whole), float(half)
    return precisions


def earlier_weights(variant: str, classification: Path, segmentation: Path) -> tuple[Path, str] | None:
    """The weights of `variant` that another demo left in its folder, and its name.

    The classification demo's come first: its digits are as big, in pixels, as those of the scenes here.
    """
    for name, folder in (("classification", classification), ("segmentation", segmentation)):
        try:
            result = json.loads((folder / "result.json").read_text())
        except (OSError, ValueError):  # not there, or not written to its end
            continue
        if name == "classification":  # it trains b0 only, and says which of its students is the best
            weights, theirs = Path(result.get("weights", "")), "b0"
        else:
            weights, theirs = folder / "model.pdparams", result.get("variant")
        if theirs == variant and weights.is_file():
            return weights, f"the {name} demo"
    return None


def start_weights(
    variant: str, schedule: Schedule, out: Path, classification: Path, segmentation: Path, seed: int
) -> tuple[Path, str]:
    """The file that the backbone begins with, and where it is from."""
    earlier = earlier_weights(variant, classification, segmentation)
    if earlier is not None:
        print(f"  from {earlier[1]}: {earlier[0]}")
        return earlier
    classifier = out / "classifier.pdparams"
    print(f"  no weights of {variant} in {classification} or {segmentation}:")
    print("  a classifier of single digits, training split only")
    accuracy = warm_up(variant, schedule.warm_up, classifier, seed=seed)
    print(f"  {accuracy:.1%} of 400 held-out digits right; weights: {classifier}")
    return classifier, "a classification warm-up"


def read_detections(folder: Path) -> list[list[Found]]:
    """What `cyclemlp det infer --save_results` wrote, per image, the best first to be drawn last."""
    from pycocotools import mask as mask_util

    boxes = json.loads((folder / "bbox.json").read_text())
    masks: Sequence[dict] = [{}] * len(boxes)
    if (folder / "mask.json").is_file():
        masks = json.loads((folder / "mask.json").read_text())
    found: list[list[Found]] = [[] for _ in range(_PICTURED)]
    for box, mask in sorted(zip(boxes, masks), key=lambda pair: pair[0]["score"]):
        if box["score"] >= _DRAWN:
            pixels = mask_util.decode(mask["segmentation"]).astype(bool) if mask else None
            found[box["image_id"]].append(Found(box["category_id"], box["bbox"], pixels, box["score"]))
    return found


def draw(detector: str, config: list[str], out: Path, schedule: Schedule, seed: int, log: Path, title: str) -> Path:
    """The picture of the first held-out scenes, with truth and detections."""
    images, results = out / f"{detector}-scenes", out / f"{detector}-detected"
    for folder in (images, results):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    for index in range(_PICTURED):
        shutil.copy(out / "data" / "val" / f"{index:06d}.png", images)
    arguments = ["--infer_dir", str(images), "--output_dir", str(results), "--save_results", "True"]
    run_command(["det", "infer", "-c", *config, *arguments, "--draw_threshold", str(_DRAWN)], log, show=r"error")
    scenes = [make_scene("val", index, size=schedule.size, seed=seed) for index in range(_PICTURED)]
    with_masks = detector == "mask_rcnn"
    truths = [
        [Found(digit.class_id, digit.box, digit.mask if with_masks else None) for digit in scene.digits]
        for scene in scenes
    ]
    picture = out / f"{detector}.png"
    draw_detections(picture, [scene.image for scene in scenes], truths, read_detections(results), title=title)
    return picture


def train_and_evaluate(
    detector: str, variant: str, schedule: Schedule, out: Path, start: Path, seed: int, clock: Clock
) -> dict[str, float]:
    """One detector; the figures that it reached."""
    log = out / f"{detector}.log"
    log.unlink(missing_ok=True)
    file = ROOT / "det_configs" / "demo" / f"{detector}_cyclemlp_{variant}_digits.yml"
    weights = out / detector / "model_final.pdparams"
    config = [str(file.relative_to(ROOT)), "-o", *det_data(out / "data"), f"weights={weights}"]
    named = f"{DETECTORS[detector]} on CycleMLP-{variant.upper()}"
    with clock.phase(f"{detector} training", f"PaddleDetection's trainer, {named}"):
        options = [f"save_dir={out / detector}", f"CycleMLP.pretrained={start}"]
        if schedule.epochs is not None:
            options += det_schedule(schedule.epochs, 5)
        run_command(["det", "train", "-c", *config, *options], log, show=r"eta: ")
        shutil.copyfile(out / detector / file.stem / "model_final.pdparams", weights)
    with clock.phase(f"{detector} evaluation", f"{schedule.val_scenes} held-out scenes"):
        folder = out / f"{detector}-predictions"
        output = run_command(
            ["det", "eval", "-c", *config, "--output_eval", str(folder)],
            log,
            show=r"annotation type|Average Precision .*area=   all",
        )
        precisions = read_precisions(output)
        if not precisions:
            raise DemoFailure(f"{DETECTORS[detector]} found no box at all; see {log}")
    title = f"{named} on held-out scenes: " + ", ".join(
        f"{kind} AP {whole:.3f}, AP50 {half:.3f}" for kind, (whole, half) in precisions.items()
    )
    with clock.phase(f"{detector} picture", "boxes, labels" + (" and masks" if detector == "mask_rcnn" else "")):
        picture = draw(detector, config, out, schedule, seed, log, title)
        print(f"  {picture}")
    return {f"{kind}_{name}": value for kind, pair in precisions.items() for name, value in zip(("ap", "ap50"), pair)}


def check_precisions(detector: str, figures: Mapping[str, float], schedule: Schedule, out: Path) -> None:
    """Raises DemoFailure if the detector learnt too little."""
    for name, value in figures.items():
        kind, _, measure = name.partition("_")
        if measure == "ap50" and value < schedule.least_precision:
            raise DemoFailure(
                f"{DETECTORS[detector]}: AP50 of {kind} is {value:.3f}, "
                f"at least {schedule.least_precision} was expected; see {out / f'{detector}.log'}"
            )


def run(
    variant: str,
    schedule: Schedule,
    detectors: Sequence[str],
    out: Path,
    classification: Path,
    segmentation: Path,
    seed: int,
) -> None:
    """The whole demo; raises DemoFailure if it goes wrong or learns too little."""
    clock = Clock()
    out.mkdir(parents=True, exist_ok=True)
    data = out / "data"
    settings = DemoSettings("coco", train=schedule.train_scenes, val=schedule.val_scenes, size=schedule.size, seed=seed)
    with clock.phase("data", f"{settings.train} training and {settings.val} held-out scenes into {data}"):
        write_scenes(data, settings)
    with clock.phase("start", f"weights for CycleMLP-{variant.upper()}"):
        start, origin = start_weights(variant, schedule, out, classification, segmentation, seed)
    result: dict[str, object] = {"variant": variant, "start": origin, "held_out_scenes": settings.val}
    reached: dict[str, dict[str, float]] = {}
    for detector in detectors:
        result[detector] = reached[detector] = train_and_evaluate(detector, variant, schedule, out, start, seed, clock)
        write_result(out, result, clock, "paddledet")
        check_precisions(detector, reached[detector], schedule, out)
    print(f"\nfigures  {out / 'result.json'}")
    for detector in detectors:
        seconds = sum(value for name, value in clock.seconds.items() if name.startswith(f"{detector} "))
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in reached[detector].items())
        print(f"{DETECTORS[detector]} on CycleMLP-{variant.upper()}: {figures}, in {seconds / 60:.1f} min")
        print(f"picture  {out / detector}.png")


def main() -> int:
    command = parser("Digits on photographs, detected with CycleMLP and PaddleDetection.", "output/demo-det")
    command.add_argument("--variant", choices=SCHEDULES, default="b0", help="size of the backbone (%(default)s)")
    command.add_argument("--detector", choices=DETECTORS, nargs="+", default=list(DETECTORS), help="default: both")
    for name, folder in (("classification", "output/demo-cls"), ("segmentation", "output/demo")):
        help_text = f"results of the {name} demo, whose weights are used if they are there (%(default)s)"
        command.add_argument(f"--{name}", type=Path, default=Path(folder), help=help_text)
    command.add_argument("--seed", type=int, default=0, help="of the data and the warm-up (%(default)s)")
    args = command.parse_args()
    schedule = SMOKE if args.smoke else SCHEDULES[args.variant]
    detectors = list(dict.fromkeys(args.detector))
    folders = [path.resolve() for path in (args.out, args.classification, args.segmentation)]
    return run_demo(lambda: run(args.variant, schedule, detectors, *folders, args.seed))


if __name__ == "__main__":
    sys.exit(main())
