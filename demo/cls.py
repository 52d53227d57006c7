"""Pretraining on digits, alone and with a teacher, and what the weights are worth to segmentation.

    python demo/cls.py --out output/demo-cls
    python demo/cls.py --smoke --out output/demo-cls-smoke
    python demo/cls.py --bench --out output/bench-distill      (students only, three seeds)

All results lie in the folder OUT: result.json has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

# Read once by the matrix library when it loads: one thread and a slow path on AMD processors are the defaults.
os.environ.setdefault("OMP_NUM_THREADS", str(min(8, os.cpu_count() or 1)))
os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from classification.config import Config  # noqa: E402
from classification.config_files import load_config  # noqa: E402
from cyclemlp_backbones.demo import DemoSettings, is_complete, write_demo_data  # noqa: E402
from demo.seg import read_evaluation  # noqa: E402
from demo.steps import Clock, DemoFailure, run_command  # noqa: E402

CONFIG = ROOT / "classification" / "configs" / "demo.yml"
SEG_CONFIG = "seg_configs/demo/semantic_fpn_cyclemlp_b0_digits.yml"
TEACHER = "resnet18"
SIZE = 48
"""Of the images to classify, in pixels: a ResNet-18 on 64 takes most of the ten minutes."""


@dataclass(frozen=True)
class Lengths:
    """Images, epochs of teacher and students, iterations of segmentation; top-1 below `least` percent is a failure."""

    train: int = 6400
    val: int = 500
    teacher_epochs: int = 2
    student_epochs: int = 3
    seg_iterations: int = 250
    seg_scenes: int = 2000
    least: float = 80.0


SMOKE = Lengths(1200, 100, 2, 2, 60, 300, least=25.0)


def settings(out: Path, data: Path, seed: int, **changes: Any) -> Config:
    """The demo's configuration with the folders of this run."""
    values: dict[str, Any] = {"run.output": str(out), "run.seed": seed, "run.device": "cpu"}
    for split in ("train", "val"):
        values |= {f"data.{split}_images": str(data / split), f"data.{split}_list": str(data / f"{split}.txt")}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(str(CONFIG), values.items())


def train_teacher(config: Config, path: Path) -> float:
    """Trains a ResNet-18 of paddle.vision on the same batches and saves it; its held-out top-1 in percent."""
    import paddle

    from classification.augment import EvalTransform, TrainTransform
    from classification.data import EvalDataset, TrainDataset, eval_loader, read_samples, train_loader
    from classification.distributed import World
    from classification.losses import soft_target_cross_entropy
    from classification.metrics import evaluate
    from classification.mixup import smooth_one_hot
    from classification.schedule import Plan, learning_rate

    data, classes = config.data, config.model.num_classes
    read = partial(read_samples, num_classes=classes, class_map=None)
    train = read(data.train_images, data.train_list, what="train")
    val = read(data.val_images, data.val_list, what="val")
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
    batches = eval_loader(EvalDataset(val, EvalTransform(data, crop_pct=config.crop_pct)), batch_size=100, workers=0)
    return evaluate(model, batches, World()).top1


def train_student(config: Config) -> float:
    """Trains a student; its held-out top-1 in percent, after the last step."""
    from classification.trainer import Trainer

    shutil.rmtree(config.run.output, ignore_errors=True)
    return float(Trainer(config).run()["last"]["top1"])


def segment(out: Path, data: Path, lengths: Lengths, seed: int, weights: Path | None) -> float:
    """mIoU of PaddleSeg's trainer after a fixed number of iterations, from `weights` or from nothing."""
    options = [
        f"{split}_dataset.{key}={value}"
        for split in ("train", "val")
        for key, value in (("dataset_root", data), (f"{split}_path", data / f"{split}.txt"))
    ]
    if weights is not None:
        options.append(f"model.backbone.pretrained={weights}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log, iterations = out / "log.txt", str(lengths.seg_iterations)
    common = ["--config", SEG_CONFIG, "--device", "cpu"]
    train = ["train", *common, "--save_dir", str(out), "--seed", str(seed), "--iters", iterations, "--log_iters", "50"]
    run_command(["seg", *train, "--opts", *options], log, show=r"\[TRAIN\]")
    model = out / f"iter_{iterations}" / "model.pdparams"
    arguments = ["seg", "val", *common, "--model_path", str(model), "--opts", *options[:4]]
    output = run_command(arguments, log, show="mIoU:")
    return read_evaluation(output)[0]


def write_data(folder: Path, wanted: DemoSettings) -> None:
    if is_complete(folder, wanted):
        print("  already there")
        return
    progress = partial(tqdm, total=wanted.train + wanted.val, unit=" scenes", mininterval=2)
    write_demo_data(folder, wanted, force=True, progress=progress)


def students(out: Path, data: Path, lengths: Lengths, seed: int, clock: Clock) -> dict[str, float]:
    """Top-1 in percent of the teacher, the student alone, and the distilled student, at equal steps."""
    epochs = {"schedule__epochs": lengths.student_epochs}
    teacher_weights = out / "teacher.pdparams"
    result = {}
    with clock.phase(f"teacher, seed {seed}", TEACHER):
        result["teacher"] = train_teacher(
            settings(out, data, seed, schedule__epochs=lengths.teacher_epochs), teacher_weights
        )
    with clock.phase(f"student, seed {seed}", "CycleMLP-B0 by itself"):
        result["student"] = train_student(settings(out / "student", data, seed, **epochs))
    with clock.phase(f"distilled student, seed {seed}", "CycleMLP-B0, the same steps, with the teacher"):
        distillation = {"distillation__type": "soft", "distillation__teacher_weights": str(teacher_weights)}
        result["distilled"] = train_student(settings(out / "distilled", data, seed, **epochs, **distillation))
    print("  top-1: " + ", ".join(f"{name} {value:.1f} %" for name, value in result.items()))
    return result


def run(lengths: Lengths, out: Path, seed: int) -> None:
    """The whole demo; raises DemoFailure if it learns nothing."""
    clock = Clock()
    out.mkdir(parents=True, exist_ok=True)
    data, seg_data = out / "data", out / "seg-data"
    with clock.phase("data", f"{lengths.train} training and {lengths.val} held-out images into {data}"):
        write_data(data, DemoSettings("imagenet", train=lengths.train, val=lengths.val, size=SIZE, seed=seed))
        wanted = DemoSettings("seg", train=lengths.seg_scenes, val=200, size=64, seed=seed, max_digits=1)
        write_data(seg_data, wanted)
    accuracies = students(out, data, lengths, seed, clock)
    best = "distilled" if accuracies["distilled"] >= accuracies["student"] else "student"
    weights = out / best / "last.pdparams"
    miou = {}
    for name, start in (("from nothing", None), ("pretrained", weights)):
        with clock.phase(f"segmentation {name}", f"{lengths.seg_iterations} iterations of PaddleSeg's trainer"):
            miou[name] = segment(out / name.replace(" ", "-"), seg_data, lengths, seed, start)
    result = {
        "top1": accuracies,
        "miou": miou,
        "weights": str(weights),
        "lengths": asdict(lengths),
        "seconds": {**clock.seconds, "total": round(clock.total, 1)},
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\ntop-1: " + ", ".join(f"{name} {value:.1f} %" for name, value in accuracies.items()))
    print(
        f"mIoU after {lengths.seg_iterations} iterations: from nothing {miou['from nothing']:.3f}, "
        f"from the {best} weights {miou['pretrained']:.3f}"
    )
    print(f"{clock.total / 60:.1f} minutes; figures {out / 'result.json'}")
    if max(accuracies["student"], accuracies["distilled"]) < lengths.least:
        raise DemoFailure(f"the better student has {max(accuracies.values()):.1f} %; {lengths.least} % were expected")


def bench(lengths: Lengths, out: Path, seeds: tuple[int, ...]) -> None:
    """The gain of distillation at equal steps, over several seeds of data, weights and order."""
    clock, rows = Clock(), []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        with clock.phase(f"data, seed {seed}", str(folder)):
            wanted = DemoSettings("imagenet", train=lengths.train, val=lengths.val, size=SIZE, seed=seed)
            write_data(folder / "data", wanted)
        rows.append(students(folder, folder / "data", lengths, seed, clock))
    gains = [row["distilled"] - row["student"] for row in rows]
    result = {"seeds": seeds, "top1": rows, "gains": gains, "mean_gain": sum(gains) / len(gains)}
    (out / "result.json").write_text(json.dumps({**result, "seconds": clock.seconds}, indent=1) + "\n")
    print(f"\ngain of distillation, points of top-1: {', '.join(f'{gain:+.1f}' for gain in gains)}; ", end="")
    print(f"mean {result['mean_gain']:+.2f}; figures {out / 'result.json'}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Digits on photographs, classified and distilled with CycleMLP.")
    parser.add_argument("--out", type=Path, default=Path("output/demo-cls"), help="folder of the results (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the weights and the order (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="all steps, much shortened; fails if nothing is learnt")
    parser.add_argument("--bench", action="store_true", help="students only, with three seeds")
    arguments = parser.parse_args()
    lengths = SMOKE if arguments.smoke else Lengths()
    from classification.report import configure_logging

    configure_logging()
    try:
        if arguments.bench:
            seeds = tuple(range(arguments.seed, arguments.seed + 3))
            bench(replace(lengths, least=0.0), arguments.out.resolve(), seeds)
        else:
            run(lengths, arguments.out.resolve(), arguments.seed)
    except (DemoFailure, OSError, ValueError, ImportError) as error:
        print(f"\ndemo: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
