import math

import numpy as np
import pytest

from classification.schedule import Plan, epoch_order, learning_rate

RECIPE = {"total_steps": 375_300, "warmup_steps": 6_255, "peak": 1e-3, "warmup_lr": 1e-6, "min_lr": 1e-5}
COSINE = 375_300 - 6_255  # 1251 steps an epoch, 300 epochs, 5 of warm-up


@pytest.mark.parametrize(
    ("name", "step", "rate"),
    [
        ("first", 0, 1e-6),
        ("second", 1, 1e-6 + 9.99e-4 / 6255),
        ("after one epoch", 1251, 1e-6 + 9.99e-4 / 5),
        ("middle of the warm-up", 3127.5, 5.005e-4),
        ("last of the warm-up", 6254, 1e-3 - 9.99e-4 / 6255),
        ("peak", 6255, 1e-3),
        ("first of the cosine", 6256, 1e-5 + 9.9e-4 * (1 + math.cos(math.pi / COSINE)) / 2),
        ("a quarter", 6255 + COSINE / 4, 1e-5 + 9.9e-4 * (1 + math.sqrt(0.5)) / 2),
        ("half", 6255 + COSINE / 2, 5.05e-4),
        ("three quarters", 6255 + COSINE * 3 / 4, 1e-5 + 9.9e-4 * (1 - math.sqrt(0.5)) / 2),
        ("last", 375_299, 1e-5 + 9.9e-4 * (1 - math.cos(math.pi / COSINE)) / 2),
        ("end", 375_300, 1e-5),
    ],
)
def test_the_recipes_learning_rate(name, step, rate):
    assert learning_rate(step, **RECIPE) == pytest.approx(rate, rel=1e-9)


def test_without_warm_up_and_with_a_peak_below_the_floor():
    assert learning_rate(0, **{**RECIPE, "warmup_steps": 0}) == 1e-3
    with pytest.raises(ValueError, match=r"peak learning rate is 5e-09.*schedule.min_lr"):
        learning_rate(0, **{**RECIPE, "peak": 5e-9})


def test_repeated_augmentation_shows_a_third_of_the_samples_three_times():
    order = epoch_order(300, 3, seed=0, epoch=4)
    indices, repetitions = order.T
    assert len(order) == 300
    assert len(set(indices)) == 100
    assert (np.bincount(indices, minlength=300)[list(set(indices))] == 3).all()
    assert (repetitions == np.tile([0, 1, 2], 100)).all()
    assert sorted(epoch_order(300, 1, seed=0, epoch=4)[:, 0]) == list(range(300))
    assert not np.array_equal(order, epoch_order(300, 3, seed=0, epoch=5))
    assert not np.array_equal(order, epoch_order(300, 3, seed=1, epoch=4))


def test_processes_and_micro_batches_share_out_the_global_batch():
    one = Plan(50, 2, 12, repeats=3)
    shared = Plan(50, 2, 3, accumulate=2, processes=2, repeats=3)
    assert one.global_batch == shared.global_batch == 12
    assert one.total_steps == shared.total_steps == 8
    whole = list(one.micro_batches(0, 0))
    parts = [list(shared.micro_batches(0, rank)) for rank in range(2)]
    for step in range(8):
        own = [parts[rank][2 * step] + parts[rank][2 * step + 1] for rank in range(2)]
        assert sorted(own[0] + own[1]) == sorted(whole[step])
        assert own[0] == whole[step][::2]  # neighbours, the repetitions, are on different processes
    assert list(one.micro_batches(5, 0)) == whole[5:]
    with pytest.raises(ValueError, match="50 samples, fewer than the global batch of 64"):
        Plan(50, 2, 64)
