"""`make demo`: data, warm-up, PaddleSeg's trainer, held-out evaluation and a picture, in one go.

    python demo/seg.py --variant b0 --out output/demo
    python demo/seg.py --smoke --out output/demo-smoke

The schedule is in iterations. All results lie in the folder OUT: result.json has the figures.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cyclemlp_backbones.digits import CLASSES, DemoSettings, make_scene
from demo.picture import draw_picture
from demo.steps import ROOT, Clock, DemoFailure, parser, run_command, run_demo, seg_data, write_result, write_scenes
from demo.warmup import Phase, warm_up


@dataclass(frozen=True)
class Schedule:
    """Sizes and lengths of one run; training's length is in its configuration, unless `iterations` says otherwise.

    Less than `least_gain` of mIoU over a prediction that is background everywhere, or fewer than `least_classes` digits
    with an IoU above 0.05, is a failure.
    """

    train_scenes: int
    val_scenes: int
    size: int
    warm_up: tuple[Phase, ...]
    least_gain: float
    least_classes: int
    iterations: int | None = None


DIGITS = 1
"""Most digits of a scene: one fills most of it, as in the warm-up; smaller ones were not learnt in this time."""

SCHEDULES = {
    "b0": Schedule(3000, 240, 64, (Phase(64, 32, 400),), least_gain=0.2, least_classes=8),
    "b1": Schedule(3000, 240, 64, (Phase(64, 32, 200),), least_gain=0.05, least_classes=3),
}
SMOKE = Schedule(600, 40, 64, (Phase(64, 32, 150),), least_gain=0.02, least_classes=2, iterations=150)


def read_evaluation(output: str) -> tuple[float, list[float]]:
    """mIoU and the IoU of every class, from what PaddleSeg's evaluation prints."""
    miou = re.search(r"mIoU: ([0-9.]+)", output)
    ious = re.search(r"Class IoU:\s*\[([^]]*)\]", output)
    if miou is None or ious is None:
        raise DemoFailure("PaddleSeg's evaluation printed no mIoU and class IoU")
    return float(miou.group(1)), [float(value) for value in ious.group(1).split()]


def train(config: Path, data: Path, out: Path, log: Path, start: Path | None, *flags: str) -> Path:
    """PaddleSeg's trainer on the scenes in `data`, its checkpoints into `out`; the last weights."""
    shutil.rmtree(out, ignore_errors=True)
    options = [*seg_data(data), *([] if start is None else [f"model.backbone.pretrained={start}"])]
    command = ["seg", "train", "--config", str(config), "--device", "cpu", "--save_dir", str(out), *flags]
    run_command([*command, "--opts", *options], log, show=r"\[TRAIN\]")
    return max(out.glob("iter_*/model.pdparams"), key=lambda path: int(path.parent.name[5:]))


def evaluate(config: Path, data: Path, weights: Path, log: Path) -> tuple[float, list[float]]:
    """mIoU on the held-out scenes in `data`, and the IoU of every class."""
    command = ["seg", "val", "--config", str(config), "--device", "cpu", "--model_path", str(weights)]
    return read_evaluation(run_command([*command, "--opts", *seg_data(data)], log, show="mIoU:"))


def all_background_miou(schedule: Schedule, seed: int) -> float:
    """mIoU on the held-out split of a prediction that is background everywhere."""
    shares = [
        (make_scene("val", index, size=schedule.size, seed=seed, max_digits=DIGITS).class_map == 0).mean()
        for index in range(schedule.val_scenes)
    ]
    return float(sum(shares)) / len(shares) / len(CLASSES)


def draw(config: Path, weights: Path, schedule: Schedule, seed: int, path: Path, title: str) -> None:
    """The picture of the first six held-out scenes, with what the trained model says."""
    import numpy as np
    import paddle
    from paddleseg.cvlibs import Config, SegBuilder

    from cyclemlp_backbones.adapters.paddleseg import register_paddleseg

    register_paddleseg(repair=True)
    model = SegBuilder(Config(str(config))).model
    model.set_state_dict(paddle.load(str(weights)))
    model.eval()
    scenes = [make_scene("val", index, size=schedule.size, seed=seed, max_digits=DIGITS) for index in range(6)]
    images = np.stack([scene.image for scene in scenes])
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1))[0]
    predictions = logits.argmax(1).numpy()
    draw_picture(path, images, [scene.class_map for scene in scenes], predictions, title=title)


def run(variant: str, schedule: Schedule, out: Path, seed: int) -> None:
    """The whole demo; raises DemoFailure if it goes wrong or learns nothing."""
    clock = Clock()
    out.mkdir(parents=True, exist_ok=True)
    data, log, picture = out / "data", out / "log.txt", out / "picture.png"
    log.unlink(missing_ok=True)
    config = ROOT / "seg_configs" / "demo" / f"semantic_fpn_cyclemlp_{variant}_digits.yml"

    settings = DemoSettings(
        "seg",
        train=schedule.train_scenes,
        val=schedule.val_scenes,
        size=schedule.size,
        seed=seed,
        max_digits=DIGITS,
    )
    with clock.phase("data", f"{settings.train} training and {settings.val} held-out scenes into {data}"):
        write_scenes(data, settings)

    classifier = out / "classifier.pdparams"
    with clock.phase("warm-up", f"CycleMLP-{variant.upper()} classifies single digits, training split only"):
        accuracy = warm_up(variant, schedule.warm_up, classifier, seed=seed)
        print(f"  {accuracy:.1%} of 400 held-out digits right; weights: {classifier}")

    relative, weights = config.relative_to(ROOT), out / "model.pdparams"
    with clock.phase("training", f"PaddleSeg's trainer, Semantic FPN on CycleMLP-{variant.upper()}"):
        flags = [] if schedule.iterations is None else ["--iters", str(schedule.iterations)]
        flags += ["--seed", str(seed), "--log_iters", "20"]
        shutil.copyfile(train(relative, data, out / "seg", log, classifier, *flags), weights)

    with clock.phase("evaluation", f"{settings.val} held-out scenes: other digits, other parts of the photographs"):
        miou, class_ious = evaluate(relative, data, weights, log)
        background = all_background_miou(schedule, seed)
        print("  IoU: " + ", ".join(f"{name} {iou:.2f}" for name, iou in zip(CLASSES, class_ious)))
        print(f"  background everywhere would have mIoU {background:.3f}")

    with clock.phase("picture", str(picture)):
        title = f"CycleMLP-{variant.upper()} Semantic FPN on held-out scenes: mIoU {miou:.3f}"
        draw(config, weights, schedule, seed, picture, title)

    result = {
        "variant": variant,
        "miou": miou,
        "class_iou": dict(zip(CLASSES, class_ious)),
        "all_background_miou": round(background, 4),
        "warm_up_accuracy": accuracy,
        "held_out_scenes": settings.val,
    }
    write_result(out, result, clock, "paddleseg")

    found = sum(iou > 0.05 for iou in class_ious[1:])
    if miou < background + schedule.least_gain or found < schedule.least_classes:
        raise DemoFailure(
            f"mIoU {miou:.3f}, where background everywhere has {background:.3f}, and {found} of 10 digits found; "
            f"at least {background + schedule.least_gain:.3f} and {schedule.least_classes} were expected: see {log}"
        )
    print(f"\nweights  {weights}\nlog      {log}\npicture  {picture}\nfigures  {out / 'result.json'}")
    minutes, seconds = divmod(round(clock.total), 60)
    print(
        f"mIoU {miou:.3f} on {settings.val} held-out scenes ({len(CLASSES)} classes), {variant.upper()}, "
        f"{minutes} min {seconds:02d} s"
    )


def main() -> int:
    command = parser("Digits on photographs, segmented with CycleMLP and PaddleSeg.", "output/demo")
    command.add_argument("--variant", choices=SCHEDULES, default="b0", help="size of the backbone (%(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the data, the weights and the order (%(default)s)")
    args = command.parse_args()
    schedule = SMOKE if args.smoke else SCHEDULES[args.variant]
    return run_demo(lambda: run(args.variant, schedule, args.out.resolve(), args.seed))


if __name__ == "__main__":
    sys.exit(main())
