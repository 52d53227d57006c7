"""How fast the data and the training step are, each without the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import paddle

from .augment import TrainTransform
from .config import Config
from .data import TrainDataset, read_samples, train_loader
from .losses import training_losses
from .mixup import smooth_one_hot
from .optim import build_optimizer, take_step
from .precision import Precision
from .schedule import Plan
from .student import build_student

WARM_UP = 3


def measure_speed(config: Config, *, steps: int) -> dict[str, float | str]:
    """Images per second of the training step on random images and, with `data.train_images`, of reading alone; of one
    process, after some steps that do not count."""
    result: dict[str, float | str] = {"device": paddle.get_device(), "batch_size": config.data.batch_size}
    result["training_images_per_second"] = _training_speed(config, steps)
    if config.data.train_images:
        result["reading_images_per_second"] = _reading_speed(config, steps)
        result["workers"] = config.data.workers
    return result


def _training_speed(config: Config, steps: int) -> float:
    batch, size, classes = config.data.batch_size, config.data.input_size, config.model.num_classes
    precision = Precision(config.amp)
    model = build_student(config.model)
    model, optimizer = precision.decorate(model, build_optimizer(model, config.optimizer))
    parameters = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    images, labels = paddle.randn([batch, 3, size, size]), paddle.randint(0, classes, [batch])
    targets = smooth_one_hot(labels, classes, config.mix.smoothing)
    alone = replace(config.distillation, type="none")
    model.train()

    def step() -> None:
        with precision.autocast():
            logits = model(images)
        precision.scaler.scale(training_losses(logits, targets, None, alone)["loss"]).backward()
        take_step(optimizer, parameters, precision.scaler)

    return _per_second(step, batch, steps)


def _reading_speed(config: Config, steps: int) -> float:
    data = config.data
    samples = read_samples(config, "train")
    batch = min(data.batch_size, len(samples))
    epochs = -(-(WARM_UP + steps) // (len(samples) // batch))
    plan = Plan(len(samples), epochs, batch, repeats=data.repeats, seed=config.run.seed)
    dataset = TrainDataset(samples, TrainTransform(config.augment, data), seed=config.run.seed)
    loader = train_loader(dataset, plan, rank=0, first_step=0, workers=data.workers)
    return _per_second(lambda: next(loader), batch, steps)


def _per_second(step: Callable[[], object], images: int, steps: int) -> float:
    for _ in range(WARM_UP):
        step()
    since = time.perf_counter()
    for _ in range(steps):
        step()
    return round(images * steps / (time.perf_counter() - since), 2)
