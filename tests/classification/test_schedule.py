import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from classification.schedule import Plan, epoch_order, integer_seed, learning_rate
from tests.properties import examples

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


def test_a_peak_may_equal_the_floor_but_not_lie_below_the_start_of_a_warm_up():
    level = {**RECIPE, "peak": 1e-5, "warmup_lr": 1e-5}
    assert {learning_rate(step, **level) for step in (0, 99, 6255, 7000, 375_300)} == {1e-5}
    below = {**RECIPE, "peak": 1e-4, "warmup_lr": 2e-4}
    with pytest.raises(ValueError, match=r"peak learning rate is 0.0001.*schedule.warmup_lr \(0.0002\)"):
        learning_rate(0, **below)
    assert learning_rate(0, **{**below, "warmup_steps": 0}) == 1e-4


RATES = st.floats(1e-9, 1)


@examples
@given(total=st.integers(1, 300), warmup=st.integers(0, 299), rates=st.tuples(RATES, RATES, RATES))
def test_the_learning_rate_climbs_to_the_peak_and_falls_to_the_floor_without_a_jump(total, warmup, rates):
    low, middle, peak = sorted(rates)
    assume(warmup < total)
    for warmup_lr, min_lr in ((low, middle), (middle, low)):
        schedule = {"total_steps": total, "warmup_steps": warmup, "peak": peak}
        found = [learning_rate(n, **schedule, warmup_lr=warmup_lr, min_lr=min_lr) for n in range(total + 3)]
        assert found[warmup] == pytest.approx(peak)
        assert found[total:] == pytest.approx([min_lr] * 3)
        climb, fall = np.diff(found[: warmup + 1]), np.diff(found[warmup:])
        rounding = 1e-12 * peak
        assert (climb >= -rounding).all()
        assert (fall <= rounding).all()
        assert all(warmup_lr - rounding <= rate <= peak + rounding for rate in found[:warmup])
        assert all(min_lr - rounding <= rate <= peak + rounding for rate in found[warmup:])
        if warmup:
            assert climb == pytest.approx(np.full(warmup, (peak - warmup_lr) / warmup), rel=1e-6, abs=rounding)
            assert found[0] == warmup_lr
        assert -fall.min() <= (peak - min_lr) * math.pi / 2 / (total - warmup) + rounding  # a cosine's steepest


def test_seeds_of_other_choices_are_others_and_stay_the_same():
    seeds = {
        integer_seed(seed, purpose, *more) for seed in (0, 1) for purpose in (1, 2) for more in ((), (0, 3), (3, 0))
    }
    assert len(seeds) == 12
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert integer_seed(7, 4, 12, 0, 1) == 836220373


@examples
@given(st.data())
def test_every_process_gets_its_part_of_the_epochs_order(data):
    """Each epoch's micro-batches, put together again, are the beginning of its order; resuming changes nothing."""
    batch, accumulate, processes, repeats = (data.draw(st.integers(1, most)) for most in (4, 3, 3, 3))
    samples = batch * accumulate * processes * data.draw(st.integers(1, 4)) + data.draw(st.integers(0, 3))
    epochs, seed = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 9))
    plan = Plan(samples, epochs, batch, accumulate, processes, repeats, seed)
    ranks = [list(plan.micro_batches(0, rank)) for rank in range(processes)]
    assert {len(batches) for batches in ranks} == {plan.total_steps * accumulate}
    assert {len(keys) for batches in ranks for keys in batches} == {batch}
    flat = [[key for keys in batches for key in keys] for batches in ranks]
    together = [key for keys in zip(*flat) for key in keys]
    used = plan.steps_per_epoch * plan.global_batch
    for epoch in range(epochs):
        order = epoch_order(samples, repeats, seed=seed, epoch=epoch)[:used].tolist()
        assert together[epoch * used : (epoch + 1) * used] == [(epoch, *key) for key in order]
    step = data.draw(st.integers(0, plan.total_steps))
    assert list(plan.micro_batches(step, 0)) == ranks[0][step * accumulate :]
    assert samples - used < plan.global_batch


def test_a_plan_is_of_one_process_without_repetitions_unless_it_says_so():
    assert Plan(50, 2, 12) == Plan(50, 2, 12, accumulate=1, processes=1, repeats=1, seed=0)


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
