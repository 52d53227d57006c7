"""The learning rate, the order of samples and all random choices, as functions of the step and the seed alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ORDER, SAMPLE, MIX, FORWARD = range(1, 5)
"""What a choice is for: the order of an epoch, one sample's augmentation, mixup, a forward pass (drop path)."""


def generator(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    """A fresh generator for the choice that `purpose` and `numbers` (epoch, index, step, rank …) name."""
    return np.random.default_rng([seed, purpose, *numbers])


def integer_seed(seed: int, purpose: int, *numbers: int) -> int:
    """A 32-bit seed for a library's own generator."""
    return int(np.random.SeedSequence([seed, purpose, *numbers]).generate_state(1)[0])


def learning_rate(
    step: int, *, total_steps: int, warmup_steps: int, peak: float, warmup_lr: float, min_lr: float
) -> float:
    """The rate of step 0 … `total_steps` - 1: linear from `warmup_lr` to `peak`, which step `warmup_steps` has, then a
    cosine that would reach `min_lr` at `total_steps`. A `peak` below `min_lr` or `warmup_lr` is a ValueError."""
    if peak < min_lr or (warmup_steps and peak < warmup_lr):
        raise ValueError(
            f"the peak learning rate is {peak:g} (optimizer.lr scaled by the global batch), below schedule.min_lr "
            f"({min_lr:g}) or schedule.warmup_lr ({warmup_lr:g}); lower these, or raise optimizer.lr"
        )
    if step < warmup_steps:
        return warmup_lr + (peak - warmup_lr) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return min_lr + (peak - min_lr) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def epoch_order(length: int, repeats: int, *, seed: int, epoch: int) -> np.ndarray:
    """The samples of an epoch in order, int array [length, 2] of (index, repetition).

    Repeated augmentation (Hoffer et al., 2020; Touvron et al., 2021): the shuffled samples, each `repeats` times in a
    row, cut to the length of an epoch.
    """
    shuffled = generator(seed, ORDER, epoch).permutation(length)
    order = np.stack([np.repeat(shuffled, repeats), np.tile(np.arange(repeats), length)], axis=1)
    return order[:length]


@dataclass(frozen=True)
class Plan:
    """How the samples of a run fall on steps, micro-batches and processes.

    A step takes the next `batch_size * accumulate * processes` samples; process `r` gets every `processes`-th of them,
    from the `r`-th on, so that repetitions of a sample go to different processes. What is left of an epoch is dropped.
    """

    samples: int
    epochs: int
    batch_size: int
    accumulate: int = 1
    processes: int = 1
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"the list has {self.samples} samples, fewer than the global batch of {self.global_batch} "
                f"(data.batch_size {self.batch_size} x optimizer.accumulate {self.accumulate} x "
                f"{self.processes} processes); lower it"
            )

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulate * self.processes

    @property
    def steps_per_epoch(self) -> int:
        return self.samples // self.global_batch

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def micro_batches(self, first_step: int, rank: int) -> Iterator[list[tuple[int, int, int]]]:
        """From `first_step` on, the samples of each micro-batch of process `rank`: keys (epoch, index, repetition)."""
        epoch, order = -1, np.empty((0, 2), np.int64)
        for step in range(first_step, self.total_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = epoch_order(self.samples, self.repeats, seed=self.seed, epoch=epoch)
            start = step % self.steps_per_epoch * self.global_batch
            own = order[start : start + self.global_batch][rank :: self.processes]
            for position in range(0, len(own), self.batch_size):
                chosen = own[position : position + self.batch_size]
                yield [(epoch, int(index), int(repetition)) for index, repetition in chosen]
