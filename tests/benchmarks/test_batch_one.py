"""What a forward of one image is made of, by a profiler's events; the document shows the stored figures."""

import pytest

from benchmarks import batch_one


def span(cat, name, start, duration):
    times = {"start_time": f"{start}.000 us", "end_time": f"{start + duration}.000 us"}
    return {"ph": "X", "cat": cat, "name": f"{name}[{duration} us]", "args": times}


def call(start, matmul, mean):
    """A forward whose first operator takes `matmul` microseconds and the second `mean`, which has another within it."""
    later = start + 300 + matmul
    return [
        span("Forward", "Net", start, 900 + matmul + mean),
        span("Forward", "Linear", start + 100, 200 + matmul),
        span("Operator", "matmul dygraph", start + 200, matmul),
        span("DygraphKernelLaunch", "matmul kernel launch", start + 300, matmul - 200),
        span("Operator", "mean dygraph", later, mean),
        span("Operator", "sum dygraph", later + 100, mean - 300),
        span("DygraphKernelLaunch", "sum kernel launch", later + 200, mean - 400),
    ]


def test_each_operators_quickest_turn_is_split_into_kernels_what_is_around_them_and_python():
    found = batch_one.split([{"ph": "M"}, *call(0, 800, 9000), *call(20000, 7000, 1000)])
    assert found["kernels"] == pytest.approx(0.6 + 0.6)
    assert found["operators"] == pytest.approx(0.2 + 0.4)
    assert found["python"] == pytest.approx(0.2 + 0.1 + 0.6)
    assert found["whole"] == pytest.approx(2.7)
    assert found["calls"] == 2
    assert found["by_operator"]["matmul"] == {"ms": pytest.approx(0.6), "calls": 1}


def test_the_profile_of_a_network_accounts_for_the_whole_call():
    call = batch_one.forward_calls("narrow")["dygraph"]
    call()
    found = batch_one.profile(call)
    assert found["calls"] > 500
    assert found["by_operator"]["conv2d"]["calls"] == 4
    assert min(found[part] for part in ("kernels", "operators", "python")) > 0
    assert found["kernels"] + found["operators"] + found["python"] == pytest.approx(found["whole"])


def test_the_document_shows_the_stored_figures():
    assert batch_one.PART.read(batch_one.DOCUMENT) == batch_one.tables()
