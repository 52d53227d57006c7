import csv
import json
import re
import sys
import types

import pytest

from classification import report
from classification.config import RunConfig
from classification.report import Meter, RunLog, as_time, read_log
from classification.trainer import Trainer
from tests.classification.tiny import tiny_config


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(report.time, "perf_counter", lambda: now.seconds)
    return now


def test_the_meter_averages_and_measures(clock):
    meter = Meter()
    for loss, took, waited in ((2.0, 3.0, 1.0), (4.0, 5.0, 1.0)):
        clock.seconds += took
        meter.add({"loss": loss}, images=64, waited=waited)
    clock.seconds += 100
    meter.pause(100)  # an evaluation
    assert meter.summary(steps_left=10) == {
        "loss": 3.0,
        "images_per_second": 16.0,
        "data_wait_share": 0.25,
        "eta_seconds": 40.0,
    }
    clock.seconds += 2
    meter.add({"loss": 1.0}, images=64, waited=0.0)
    assert meter.summary(steps_left=0)["loss"] == 1.0  # each summary starts anew


def test_a_skipped_step_does_not_lower_the_average_loss(clock):
    meter = Meter()
    for values in ({"loss": 2.0}, {}, {"loss": 4.0}):
        clock.seconds += 1
        meter.add(values, images=8, waited=0.0)
    assert meter.summary(steps_left=0)["loss"] == 3.0


def test_times():
    assert [as_time(seconds) for seconds in (0, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]


def test_the_progress_line_has_the_logs_values(digits, tmp_path, caplog):
    with caplog.at_level("INFO"):
        Trainer(tiny_config(digits, tmp_path)).run(stop_at=3)
    row = [row for row in read_log(tmp_path / "log.jsonl") if row["event"] == "train"][-1]
    line = next(record.getMessage() for record in caplog.records if record.getMessage().startswith("step 3/10"))
    found = re.fullmatch(
        r"step 3/10 epoch 0.60 loss ([0-9.]+) task ([0-9.]+) lr ([0-9.e+-]+), ([0-9.]+) images/s, "
        r"([0-9]+) % waiting for data, ([0-9:]+) left",
        line,
    )
    assert found is not None, line
    loss, task, lr, speed, wait = map(float, found.groups()[:-1])
    assert (loss, task) == (round(row["loss"], 4), round(row["task"], 4))
    assert lr == pytest.approx(row["lr"], rel=1e-2)
    assert speed == pytest.approx(row["images_per_second"], abs=0.1)
    assert wait == pytest.approx(100 * row["data_wait_share"], abs=1)
    assert found[6] == as_time(row["eta_seconds"])


@pytest.mark.parametrize(
    ("key", "package", "kind"),
    [("visualdl", "visualdl", "LogWriter"), ("tensorboard", "tensorboardX", "SummaryWriter")],
)
def test_other_loggers_get_the_numbers_of_the_log(monkeypatch, tmp_path, key, package, kind):
    written = []

    class Writer:
        def __init__(self, logdir):
            written.append(logdir)

        def add_scalar(self, *scalar):
            written.append(scalar)

    monkeypatch.setitem(sys.modules, package, types.SimpleNamespace(**{kind: Writer}))
    run = RunConfig(**{key: True})
    log = RunLog(tmp_path, enabled=True, run=run)
    log.write("train", {"step": 7, "loss": 0.5, "note": "text"})
    log.write("broken", {"count": 1})  # has no step
    assert written == [str(tmp_path / key), ("train/loss", 0.5, 7)]
    assert [row["event"] for row in read_log(tmp_path / "log.jsonl")] == ["train", "broken"]
    RunLog(tmp_path, enabled=False, run=run).write("train", {"step": 8})
    assert len(written) == 2  # another process than the first
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"run.{key} is true: pip install {package}"):
        RunLog(tmp_path, enabled=True, run=run)


def test_weights_and_biases_gets_the_numbers_of_the_log(monkeypatch, tmp_path):
    written = []

    def init(*, dir, group):
        written.append((dir, group))
        return types.SimpleNamespace(log=lambda values, step: written.append((values, step)))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    RunLog(tmp_path, enabled=True, run=RunConfig(wandb=True)).write("train", {"step": 7, "loss": 0.5})
    assert written == [(str(tmp_path), tmp_path.name), ({"train/loss": 0.5}, 7)]


def test_weights_and_biases_itself_takes_them_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb = pytest.importorskip("wandb")
    log = RunLog(tmp_path, enabled=True, run=RunConfig(wandb=True))
    for step in (7, 8, 9):  # a step is told once the next one begins
        log.write("train", {"step": step, "loss": 1 / step})
        log.write("evaluation", {"step": step, "top1": 2 * step})
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert (summary["train/loss"], summary["evaluation/top1"]) == (1 / 8, 16)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"event": "train", "step": 1}) + '\n{"event": "tr')
    assert read_log(path) == [{"event": "train", "step": 1}]


def test_a_resumed_runs_first_line_is_not_joined_to_one_that_a_kill_cut_short(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"event": "start"}\n{"event": "tr')
    RunLog(tmp_path, enabled=True).write("start", {"step": 4})
    RunLog(tmp_path, enabled=True).write("train", {"step": 5})
    assert [row["event"] for row in read_log(tmp_path / "log.jsonl")] == ["start", "start", "train"]
    assert "\n\n" not in (tmp_path / "log.jsonl").read_text()


def test_summary_and_curves_are_written_while_the_run_lasts(digits, tmp_path):
    changes = {"run__save_every": 2}
    Trainer(tiny_config(digits, tmp_path, **changes)).run(stop_at=7)
    curves = (tmp_path / "curves.png").read_bytes()

    def summary():
        with (tmp_path / "summary.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    assert [row["step"] for row in summary()] == ["5"]
    Trainer(tiny_config(digits, tmp_path, **changes, run__resume="auto")).run()
    assert [row["step"] for row in summary()] == ["5", "10"]
    assert (tmp_path / "curves.png").read_bytes() != curves
    log = {(row["event"], row.get("step")): row for row in read_log(tmp_path / "log.jsonl")}
    for row in summary():
        step = int(row["step"])
        assert float(row["top1"]) == log["evaluation", step]["top1"]
        assert float(row["ema_loss"]) == log["evaluation", step]["ema_loss"]
        assert float(row["train_loss"]) == log["train", step]["loss"]
