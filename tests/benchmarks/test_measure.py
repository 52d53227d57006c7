"""Times in turns: who goes when, how often, and what the ratios are of."""

import pytest

from cyclemlp_backbones.timing import Ratio, Timing, describe_machine, measure, variables


class Clock:
    """Moves on when a call takes time, as the test says how much."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def call(self, name, seconds, log):
        def run():
            log.append(name)
            self.now += seconds

        return run


def test_each_gets_a_turn_a_round_and_the_first_place_goes_round():
    clock, log = Clock(), []
    calls = {name: clock.call(name, 1.0, log) for name in "abc"}
    times = measure(calls, rounds=4, warm_up=1, clock=clock)
    warm, turns = log[:6], "".join(log[6:])
    assert "".join(warm) == "aabbcc"
    assert turns == "abc" + "bca" + "cab" + "abc"
    assert {name: timing.seconds for name, timing in times.items()} == dict.fromkeys("abc", (1.0,) * 4)


def test_short_calls_are_repeated_within_a_turn_and_the_time_is_of_one():
    clock, log = Clock(), []
    times = measure({"short": clock.call("short", 0.01, log)}, rounds=2, least_seconds=0.1, warm_up=2, clock=clock)
    assert len(log) == 2 + 1 + 2 * 10
    assert times["short"].minimum == pytest.approx(0.01)


def test_ratio_of_minima_and_ratio_of_medians():
    ours, other = Timing((2.0, 8.0, 4.0)), Timing((10.0, 4.0, 5.0))
    ratio = Ratio.of(ours, other)
    assert (ratio.minima, ratio.medians) == (0.5, 0.8)


def test_progress_is_told_after_every_turn():
    seen = []
    measure({"a": int, "b": int}, rounds=2, least_seconds=0.0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("arguments", [{"calls": {}}, {"calls": {"a": int}, "rounds": 0}])
def test_nothing_to_measure_is_an_error(arguments):
    with pytest.raises(ValueError, match="at least one each"):
        measure(**arguments)


def test_the_environment_keeps_memory_only_where_asked():
    assert variables(3) == {"OMP_NUM_THREADS": "3", "MKL_DEBUG_CPU_TYPE": "5"}
    assert set(variables(3, keep_memory=True)) - set(variables(3)) == {
        "MALLOC_TRIM_THRESHOLD_",
        "MALLOC_MMAP_THRESHOLD_",
    }


def test_the_machine_is_described_with_what_figures_depend_on():
    machine = describe_machine()
    assert machine["paddlepaddle"][0].isdigit()
    assert machine["processor"]
    assert {"date", "commit", "cores", "threads", "python"} <= set(machine)
