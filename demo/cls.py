"""Pretraining on digits, alone and with a teacher, and what the weights are worth to segmentation.

    python demo/cls.py --out output/demo-cls
    python demo/cls.py --smoke --out output/demo-cls-smoke
    python demo/cls.py --bench --out output/bench-distill      (one teacher, students with three seeds)

All results lie in the folder OUT: result.json has the figures.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from classification.config import Config
from classification.config_files import load_config
from cyclemlp_backbones.digits import DemoSettings
from demo import seg
from demo.steps import ROOT, Clock, DemoFailure, parser, run_demo, write_result, write_scenes

CONFIG = ROOT / "classification" / "configs" / "demo.yml"
SEG_CONFIG = Path("seg_configs/demo/semantic_fpn_cyclemlp_b0_digits.yml")
TEACHER = "resnet18"
TEACHER_BATCH = 32
"""It has one epoch, which larger batches would leave with too few steps."""
SEG_SIZE = 32
"""Of the scenes to segment, in pixels: as large as the images to classify, so that the digits are."""
SEEDS = 3
"""Of the benchmark."""


@dataclass(frozen=True)
class Lengths:
    """Images, epochs of the teacher and of each student, iterations of segmentation.

    A student below `least` percent of top-1, or pretrained weights that are worth less than `least_gain` of mIoU, are a
    failure.
    """

    train: int = 16000
    val: int = 1000
    teacher_epochs: int = 1
    student_epochs: int = 3
    seg_iterations: int = 300
    seg_scenes: int = 3000
    least: float = 90.0
    least_gain: float = 0.05


SMOKE = Lengths(3200, 100, 1, 1, 30, 200, least=15.0, least_gain=-1.0)
BENCH = replace(Lengths(), train=12800, student_epochs=1)
BENCH_CHANGES = {"data__batch_size": 32, "optimizer__lr_batch": 32, "augment__policy": None}
"""Of the configuration: a single epoch gets more steps from smaller batches, and nothing yet from augmentation."""


def settings(out: Path, data: Path, seed: int, **changes: Any) -> Config:
    """The demo's configuration with the folders of this run; `changes` are section__key=value."""
    values: dict[str, Any] = {"run.output": str(out), "run.seed": seed, "run.device": "cpu"}
    for split in ("train", "val"):
        values |= {f"data.{split}_images": str(data / split), f"data.{split}_list": str(data / f"{split}.txt")}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(str(CONFIG), values.items())


def train_teacher(config: Config, path: Path) -> float:
    """Trains a ResNet-18 of paddle.vision on the students' data and saves it; its held-out top-1 in percent."""
    import paddle

    from classification.augment import TrainTransform
    from classification.data import TrainDataset, read_samples, train_loader
    from classification.distributed import World
    from classification.losses import soft_target_cross_entropy
    from classification.metrics import eval_batches, evaluate
    from classification.mixup import smooth_one_hot
    from classification.schedule import Plan, learning_rate

    data, classes = config.data, config.model.num_classes
    train, val = read_samples(config, "train"), read_samples(config, "val")
    paddle.seed(config.run.seed)
    model = paddle.vision.models.resnet18(num_classes=classes)
    plan = Plan(len(train), config.schedule.epochs, data.batch_size, seed=config.run.seed)
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters(), weight_decay=0.05)
    dataset = TrainDataset(train, TrainTransform(config.augment, data), seed=config.run.seed)
    loader = train_loader(dataset, plan, rank=0, first_step=0, workers=data.workers)
    bar = tqdm(loader, total=plan.total_steps, desc="teacher", unit="it", mininterval=2)
    for step, (images, labels, _, _) in enumerate(bar):
        lr = learning_rate(step, total_steps=plan.total_steps, warmup_steps=20, peak=1e-3, warmup_lr=1e-4, min_lr=1e-5)
        optimizer.set_lr(lr)
        loss = soft_target_cross_entropy(model(images), smooth_one_hot(labels, classes, 0.0))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    paddle.save(model.state_dict(), str(path))
    return evaluate(model, eval_batches(val, config, World()), World()).top1


def train_student(config: Config) -> float:
    """Trains a student; its held-out top-1 in percent, after the last step."""
    from classification.trainer import Trainer

    shutil.rmtree(config.run.output, ignore_errors=True)
    return float(Trainer(config).run()["last"]["top1"])


def train_pair(
    out: Path, data: Path, teacher: Path, epochs: int, seed: int, clock: Clock, **changes: Any
) -> dict[str, float]:
    """Top-1 in percent of the student by itself and of the distilled one: same data, start, order and steps. `changes`
    are `settings`'."""
    both = partial(settings, data=data, seed=seed, schedule__epochs=epochs, **changes)
    result = {}
    with clock.phase(f"student, seed {seed}", "CycleMLP-B0 by itself"):
        result["student"] = train_student(both(out / "student"))
    with clock.phase(f"distilled student, seed {seed}", "CycleMLP-B0, the same steps, with the teacher"):
        distillation = {"distillation__type": "soft", "distillation__teacher_weights": str(teacher)}
        result["distilled"] = train_student(both(out / "distilled", **distillation))
    print("  top-1: " + ", ".join(f"{name} {value:.1f} %" for name, value in result.items()))
    return result


def segment(out: Path, data: Path, iterations: int, seed: int, weights: Path | None) -> float:
    """mIoU of PaddleSeg's trainer after so many iterations, from `weights` or from nothing."""
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    log.unlink(missing_ok=True)
    flags = ["--seed", str(seed), "--iters", str(iterations), "--log_iters", "50"]
    trained = seg.train(SEG_CONFIG, data, out / "seg", log, weights, *flags)
    shutil.copyfile(trained, out / "model.pdparams")
    return seg.evaluate(SEG_CONFIG, data, trained, log)[0]


def draw(out: Path, student: Config, title: str) -> None:
    """picture.png: the students' losses, and the distilled one's answers for held-out digits."""
    import numpy as np
    import paddle

    from classification.augment import EvalTransform
    from classification.data import EvalDataset, read_samples
    from classification.report import read_log
    from classification.student import build_student
    from cyclemlp_backbones import load_weights
    from demo.cls_picture import draw_students

    losses = {
        name: [(row["step"], row["task"]) for row in read_log(out / name / "log.jsonl") if row["event"] == "train"]
        for name in ("student", "distilled")
    }
    samples = read_samples(student, "val")
    dataset = EvalDataset(samples, EvalTransform(student.data, crop_pct=student.crop_pct))
    images = np.stack([dataset[index][0] for index in range(min(30, len(dataset)))])
    model = build_student(student.model)
    load_weights(model, out / "distilled" / "last.pdparams")
    model.eval()
    with paddle.no_grad():
        answers = model(paddle.to_tensor(images)).argmax(1).tolist()
    mean, std = (np.array(numbers).reshape(3, 1, 1) for numbers in (student.data.mean, student.data.std))
    pixels = np.rint((images * std + mean) * 255).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    draw_students(out / "picture.png", losses, pixels, samples.labels, answers, title=title)


def classify(lengths: Lengths, out: Path, seed: int, clock: Clock, **changes: Any) -> tuple[Path, float, Path]:
    """Data and a teacher: the folder, the teacher's top-1 in percent, and its weights. `changes` are `settings`'."""
    out.mkdir(parents=True, exist_ok=True)
    data, weights = out / "data", out / "teacher.pdparams"
    size = settings(out, data, seed).data.input_size
    with clock.phase("data", f"{lengths.train} training and {lengths.val} held-out images into {data}"):
        write_scenes(data, DemoSettings("imagenet", train=lengths.train, val=lengths.val, size=size, seed=seed))
    with clock.phase("teacher", f"{TEACHER} of paddle.vision.models"):
        changes |= {"schedule__epochs": lengths.teacher_epochs, "data__batch_size": TEACHER_BATCH}
        top1 = train_teacher(settings(out, data, seed, **changes), weights)
        print(f"  top-1: teacher {top1:.1f} %")
    return data, top1, weights


def run(lengths: Lengths, out: Path, seed: int) -> None:
    """The whole demo; raises DemoFailure if it learns nothing."""
    clock = Clock()
    data, teacher, teacher_weights = classify(lengths, out, seed, clock)
    top1 = {"teacher": teacher, **train_pair(out, data, teacher_weights, lengths.student_epochs, seed, clock)}
    best = max(("student", "distilled"), key=lambda name: top1[name])
    weights = out / best / "last.pdparams"
    miou = {}
    scenes = DemoSettings("seg", train=lengths.seg_scenes, val=240, size=SEG_SIZE, seed=seed, max_digits=seg.DIGITS)
    with clock.phase("segmentation data", f"{scenes.train} training and {scenes.val} held-out scenes"):
        write_scenes(out / "seg-data", scenes)
    schedule = seg.Schedule(scenes.train, scenes.val, scenes.size, (), least_gain=0.0, least_classes=0)
    for name, start in (("from-nothing", None), ("pretrained", weights)):
        with clock.phase(f"segmentation {name}", f"{lengths.seg_iterations} iterations of PaddleSeg's trainer"):
            miou[name] = segment(out / name, out / "seg-data", lengths.seg_iterations, seed, start)
            title = f"Semantic FPN, {name}, {lengths.seg_iterations} iterations: mIoU {miou[name]:.3f}"
            seg.draw(ROOT / SEG_CONFIG, out / name / "model.pdparams", schedule, seed, out / f"{name}.png", title)
    background = seg.all_background_miou(schedule, seed)
    answer = ", ".join(f"{name} {value:.1f} %" for name, value in top1.items())
    draw(out, settings(out, data, seed), f"held-out top-1: {answer}")
    result = {
        "top1": top1,
        "miou": {**miou, "background everywhere": round(background, 4)},
        "weights": str(weights),
        "lengths": asdict(lengths),
    }
    write_result(out, result, clock, "paddleseg")
    print(f"\ntop-1 on {lengths.val} held-out images: {answer}")
    print(
        f"mIoU after {lengths.seg_iterations} iterations: from nothing {miou['from-nothing']:.3f}, from the weights of "
        f"{best} {miou['pretrained']:.3f}; background everywhere would have {background:.3f}"
    )
    print(f"pictures {out / 'picture.png'}, {out / 'from-nothing.png'}, {out / 'pretrained.png'}")
    print(f"{clock.total / 60:.1f} minutes; figures {out / 'result.json'}")
    gain = miou["pretrained"] - miou["from-nothing"]
    if top1[best] < lengths.least or gain < lengths.least_gain:
        raise DemoFailure(
            f"the better student has {top1[best]:.1f} % and its weights add {gain:.3f} of mIoU; at least "
            f"{lengths.least} % and {lengths.least_gain} were expected"
        )


def bench(lengths: Lengths, out: Path, seeds: Sequence[int]) -> None:
    """The gain of distillation at equal steps over several seeds of the weights and the order of the data."""
    clock, rows = Clock(), []
    data, teacher, weights = classify(lengths, out, seeds[0], clock, **BENCH_CHANGES)
    for seed in seeds:
        folder = out / f"seed-{seed}"
        rows.append(train_pair(folder, data, weights, lengths.student_epochs, seed, clock, **BENCH_CHANGES))
    result = {"teacher": teacher, "seeds": list(seeds), **summary(rows), "lengths": asdict(lengths)}
    write_result(out, result, clock, "paddleseg")
    print(f"\nteacher {teacher:.1f} %; {lengths.student_epochs} x {lengths.train} images for each student")
    for seed, row, gain in zip(seeds, rows, result["gains"]):
        print(f"seed {seed}: student {row['student']:.1f} %, distilled {row['distilled']:.1f} %, gain {gain:+.1f}")
    print(
        f"gain of distillation: {result['mean_gain']:+.2f} points of top-1, standard deviation "
        f"{result['standard_deviation']:.2f} over {len(seeds)} seeds; {clock.total / 60:.1f} minutes; "
        f"figures {out / 'result.json'}"
    )


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Gains of the distilled over the plain students, their mean and sample standard deviation, in points of top-1."""
    gains = [row["distilled"] - row["student"] for row in rows]
    return {
        "top1": [dict(row) for row in rows],
        "gains": gains,
        "mean_gain": statistics.mean(gains),
        "standard_deviation": statistics.stdev(gains),
    }


def main() -> int:
    help_text = "folder of the results (output/demo-cls, output/bench-distill)"
    command = parser("Digits on photographs, classified and distilled with CycleMLP.", None, help_text)
    command.add_argument("--seed", type=int, default=0, help="of the data, the weights and the order (%(default)s)")
    command.add_argument("--bench", action="store_true", help="one teacher, students with three seeds")
    args = command.parse_args()
    out = (args.out or Path("output/bench-distill" if args.bench else "output/demo-cls")).resolve()
    from classification.report import configure_logging

    configure_logging()
    if args.bench:
        lengths = replace(SMOKE, student_epochs=1) if args.smoke else BENCH
        return run_demo(lambda: bench(lengths, out, range(args.seed, args.seed + SEEDS)))
    return run_demo(lambda: run(SMOKE if args.smoke else Lengths(), out, args.seed))


if __name__ == "__main__":
    sys.exit(main())
