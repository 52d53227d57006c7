"""What a forward of one image is made of, by a profiler's events; the document shows the stored figures."""

import pytest

from benchmarks import batch_one


def span(cat, name, start, duration):
    return {"ph": "X", "cat": cat, "name": f"{name}[{duration} us]", "ts": start, "dur": duration}


def test_a_call_is_split_into_kernels_what_is_around_them_and_python():
    slow = [span("Forward", "Net", 0, 9000), span("Operator", "add dygraph", 10, 8000)]
    quick = [
        span("Forward", "Net", 10000, 4000),
        span("Forward", "Linear", 10100, 1000),
        span("Operator", "matmul dygraph", 10200, 800),
        span("DygraphKernelLaunch", "matmul kernel launch", 10300, 500),
        span("Operator", "mean dygraph", 12000, 1000),
        span("Operator", "sum dygraph", 12100, 600),  # within the mean
        span("DygraphKernelLaunch", "sum kernel launch", 12200, 400),
    ]
    found = batch_one.split([{"ph": "M"}, *quick, *slow])
    assert found["whole"] == pytest.approx(4.0)
    assert found["kernels"] == pytest.approx(0.9)
    assert found["operators"] == pytest.approx(0.9)
    assert found["python"] == pytest.approx(2.2)
    assert found["calls"] == 2
    assert found["by_operator"]["matmul"] == {"ms": pytest.approx(0.5), "calls": 1}


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
