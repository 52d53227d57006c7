"""The table of detection heads in docs/support.md is made of stored measurements; what counts as working."""

from __future__ import annotations

import pytest

from benchmarks.detection_heads import (
    ACTIONS,
    HEADS,
    PART,
    StepFailure,
    check_eval,
    check_train,
    render,
    stored_results,
)
from tests.adapters.tiny_seg import REPOSITORY


def test_the_document_has_the_table_of_the_stored_results():
    assert PART.read(REPOSITORY / "docs" / "support.md") == render(stored_results())


def test_stored_results_are_of_both_paddles_and_every_step_of_every_head():
    results = stored_results()
    assert {version.split(".")[0] for version in results} == {"2", "3"}
    for result in results.values():
        assert {head: tuple(cells) for head, cells in result["heads"].items()} == dict.fromkeys(HEADS, ACTIONS)


def test_table_says_what_fails_and_what_has_limits():
    def result(export, what="equal"):
        cells = {action: {"works": True, "what": ""} for action in ACTIONS}
        return {"heads": {"retinanet": {**cells, "export": {"works": export, "what": what}}}}

    table = render({"2.6.2": result(False), "3.3.1": result(True), "10.0.0": result(True, "one image at a time")})
    assert table.splitlines()[2] == (
        "| RetinaNet | 10.0.0, 3.3.1, 2.6.2 | 10.0.0, 3.3.1, 2.6.2 | 10.0.0, 3.3.1, 2.6.2 "
        "| 10.0.0 (one image at a time); 3.3.1; 2.6.2 (fails) |"
    )


def test_a_command_that_ends_well_but_learnt_or_scored_nothing_does_not_count(monkeypatch, tmp_path):
    steps = "".join(f"loss: {value}\n" for value in ("1.5", "nan", *["1.0"] * 6))
    monkeypatch.setattr("benchmarks.detection_heads.call", lambda arguments, log: steps.replace("loss", " loss"))
    with pytest.raises(StepFailure, match="nan"):
        check_train("retinanet", tmp_path / "c.yml", tmp_path / "log")
    monkeypatch.setattr("benchmarks.detection_heads.call", lambda arguments, log: "")
    with pytest.raises(StepFailure, match="precisions of nothing"):
        check_eval("retinanet", tmp_path / "c.yml", tmp_path / "log")
