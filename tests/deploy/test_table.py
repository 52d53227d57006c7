"""The tables of docs/deployment.md are made of stored measurements, and what counts as equal in them."""

import math

import numpy as np
import pytest

from benchmarks.deployment import RUNTIMES, best_first, difference, finds, rows_of
from benchmarks.deployment_table import (
    DOCUMENT,
    EQUALITY,
    INT8,
    OPENVINO,
    OPENVINO_PART,
    QUANTISED,
    equality_part,
    quantised_table,
    read,
    stored_file,
    table,
)

MACHINE = {"processor": "P", "threads": "2", "python": "3.11", "date": "today", "commit": "c"}


def test_the_document_has_the_tables_of_the_stored_results():
    assert EQUALITY.read(DOCUMENT) == equality_part()
    assert INT8.read(DOCUMENT) == quantised_table(read(QUANTISED))
    assert OPENVINO_PART.read(DOCUMENT) == table(read(OPENVINO))


def test_stored_results_are_of_every_model_and_runtime():
    found = {(row["model"], row["runtime"]) for row in read(stored_file("3"))["rows"]}
    assert found == {*rows_of(RUNTIMES)}


def test_the_table_says_what_differs_and_what_does_not_run():
    times = {"side": 224, "milliseconds": {"deployed": 30, "dygraph": 40}}
    rows = [
        {"model": "a", "runtime": "onnx", "differences": {"1x32x32": 1e-6, "3x33x45": 2e-6}, **times},
        {"model": "a", "runtime": "paddle", "differences": {"1x32x32": 1e-6, "3x33x45": math.inf}, **times},
        {"model": "a", "runtime": "paddle", "differences": {"1x32x32": 0.0}, "failures": {"3x32x32": "E"}, **times},
        {"model": "UPerNet b1", "runtime": "paddle", "failure": "Error: a|b (at some.cc:1)"},
    ]
    lines = table({"machine": MACHINE, "rounds": 5, "seconds": 9, "rows": rows}).splitlines()
    assert lines[2] == "| a | ONNX | ONNX Runtime | yes (2e-06) | yes | yes | 30 ms at 224 | 40 ms | 0.75 |"
    assert lines[3].startswith("| a | Paddle | Paddle, oneDNN off | **no** (inf) | **no** | **no** |")
    assert "| yes (0e+00) | **no**, one image at a time | yes |" in lines[4]
    assert "does not run: `Error: a/b` |" in lines[5]
    assert len({line.count("|") for line in lines[:6]}) == 1


def test_a_difference_is_a_share_of_the_largest_value_and_of_one_at_least():
    boxes, scores = np.array([[[0.0, 0, 100, 200], [5, 5, 50, 50]]]), np.array([[[0.5], [0.25]]])
    assert difference([boxes + 0.02, scores], [boxes, scores], unordered=False) == pytest.approx(0.02 / 200)
    assert difference([scores + 0.1], [scores], unordered=False) == pytest.approx(0.1)
    assert difference([boxes[:, :1]], [boxes], unordered=False) == math.inf
    masks = np.eye(4, dtype=np.int32)[None]
    assert difference([boxes, 1 - masks], [boxes, masks], unordered=False) == 1
    assert difference([masks & (np.arange(4) > 0)], [masks], unordered=False) == 1 / 16
    swapped = [boxes[:, ::-1], scores[:, ::-1]]
    assert difference(swapped, [boxes, scores], unordered=True) == 0
    assert difference(swapped, [boxes, scores], unordered=False) > 0.1
    assert difference([boxes, scores[:, ::-1]], [boxes, scores], unordered=True) > 0.1


def test_a_detectors_rows_are_compared_from_the_best_of_each_image():
    rows = np.array([[0, 0.2, 1], [0, 0.9, 2], [0, 0.5, 3], [0, 0.1, 4], [0, 0.7, 5]])
    boxes, counts, masks = best_first([rows, np.array([2, 3]), np.arange(5)])
    assert boxes[:, 2].tolist() == [2, 1, 5, 3, 4]
    assert counts.tolist() == [2, 3]
    assert masks.tolist() == [1, 0, 4, 2, 3]


def test_a_detector_that_finds_nothing_is_not_compared():
    one, names = np.array([[3, 0.6, 0, 0, 9, 9]]), ("bbox", "bbox_num")
    assert finds([one, np.array([1])], names)
    for nothing in (np.zeros([1, 6]), np.full([1, 6], -1.0), np.zeros([0, 6])):
        assert not finds([nothing, np.array([1])], names)
    assert finds([np.zeros([1, 4])], ("logits",))
