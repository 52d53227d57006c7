"""The demo's classification warm-up: a CycleMLP classifier of single digits on photographs, training split only."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F
from tqdm import tqdm

from cyclemlp_backbones import CycleNet, build_classifier
from cyclemlp_backbones.digits import make_scene

_LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Phase:
    """`iterations` steps with batches of `batch_size` images of `size` x `size` pixels."""

    size: int
    batch_size: int
    iterations: int


def warm_up(variant: str, phases: tuple[Phase, ...], path: str | os.PathLike, *, seed: int = 0) -> float:
    """Trains a classifier of the ten digits, small images first, and saves it to `path` (.pdparams).

    One AdamW run with linear warm-up and cosine decay over all phases. Returns its accuracy on held-out images, 0 to 1.
    """
    paddle.seed(seed)
    model = build_classifier(variant, num_classes=10, drop_path_rate=0.0)
    total = sum(phase.iterations for phase in phases)
    cosine = paddle.optimizer.lr.CosineAnnealingDecay(_LEARNING_RATE, total)
    schedule = paddle.optimizer.lr.LinearWarmup(cosine, max(1, total // 20), 0.0, _LEARNING_RATE)
    optimizer = paddle.optimizer.AdamW(schedule, beta2=0.99, weight_decay=0.05, parameters=model.parameters())
    first = 0  # every step sees new scenes: the generator is the augmentation
    with tqdm(total=total, desc="warm-up", unit="it", mininterval=2) as bar:
        for phase in phases:
            for _ in range(phase.iterations):
                images, values = _batch("train", first, phase.batch_size, phase.size, seed)
                loss = F.cross_entropy(model(images), values)
                loss.backward()
                optimizer.step()
                optimizer.clear_grad()
                schedule.step()
                first += phase.batch_size
                bar.update()
                if bar.n % 10 == 0:
                    bar.set_postfix(loss=f"{float(loss):.2f}", refresh=False)
    paddle.save(model.state_dict(), str(path))
    return accuracy(model, phases[-1].size, seed=seed)


def accuracy(model: CycleNet, size: int, *, images: int = 400, seed: int = 0) -> float:
    """Share of the first held-out `images` that `model` names rightly."""
    model.eval()
    right = 0
    with paddle.no_grad():
        for first in range(0, images, 100):
            batch, values = _batch("val", first, 100, size, seed)
            right += int((model(batch).argmax(1) == values).sum())
    return right / images


def _batch(split: str, first: int, count: int, size: int, seed: int) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Images [count, 3, size, size] scaled to -1..1, as the configuration's Normalize does, and values [count]."""
    scenes = [make_scene(split, index, size=size, seed=seed, max_digits=1) for index in range(first, first + count)]
    images = np.stack([scene.image for scene in scenes]).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    return paddle.to_tensor(images), paddle.to_tensor(np.array([scene.digits[0].value for scene in scenes]))
