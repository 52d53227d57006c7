"""The chain's comparison: equal time, rates chosen by training data, the table's arithmetic, going on, a short run."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from demo import chain_run
from demo.chain import (
    DOCUMENT,
    PART,
    SMOKE,
    STORED,
    Experiment,
    Scale,
    chosen_rate,
    chosen_steps,
    main,
    render,
    summary,
)
from demo.chain_run import BACKBONES, TASKS, Run, ap50, batches, examples, normalise, step_seconds

MACHINE = {"processor": "P", "threads": "1", "date": "D", "commit": "C"}
RUN = Run("classify", "cyclemlp_b0", 1e-3, 0, 20, "held-out", 10)


def left(run, score, seconds=4.0):
    return {
        "run": asdict(run),
        "score": score,
        "seconds": seconds,
        "wall_seconds": 9.0,
        "parameters": 3_000_000,
        "curve": [{"seconds": seconds, "loss": 1.0}],
    }


def test_every_backbone_gets_the_steps_that_fill_the_same_time():
    costs = {"slow": 0.6, "fast": 0.09}
    steps = {name: chosen_steps(45, cost) for name, cost in costs.items()}
    assert steps == {"slow": 75, "fast": 500}
    assert all(45 - cost < steps[name] * cost <= 45 for name, cost in costs.items())
    assert chosen_steps(0.1, 5) == 1


def test_a_rate_is_chosen_by_scenes_held_out_of_the_training_data_and_by_no_others():
    results = [left(replace(RUN, rate=rate), score) for rate, score in ((3e-4, 0.2), (1e-3, 0.5), (3e-3, 0.5))]
    assert chosen_rate(results) == 1e-3
    with pytest.raises(ValueError, match="not by: test"):
        chosen_rate([*results, left(replace(RUN, scored_on="test"), 0.9)])


@pytest.mark.parametrize("task", TASKS)
def test_held_out_scenes_are_of_the_training_split_and_in_no_training(task, monkeypatch):
    made = []
    monkeypatch.setattr(chain_run, "TRAIN_SCENES", 5)
    scene = chain_run.make_scene
    monkeypatch.setattr(
        chain_run,
        "make_scene",
        lambda split, index, **options: made.append((split, index)) or scene(split, index, **options),
    )
    for part, count in (("train", 5), ("held-out", 3), ("test", 2)):
        assert len(examples(task, part, count).images) == count
    assert made == [("train", index) for index in range(8)] + [("val", 0), ("val", 1)]


def test_an_epoch_has_every_scene_with_its_target(monkeypatch):
    monkeypatch.setattr(chain_run, "BATCH_SIZE", 3)
    data = examples("classify", "train", 6)
    found = batches(data, np.random.default_rng(0))
    epoch = [(image, target) for _ in range(2) for image, target in zip(*next(found))]
    own = list(zip(normalise(data.images), data.targets))
    places = [next(n for n, (source, _) in enumerate(own) if (source == image).all()) for image, _ in epoch]
    assert sorted(places) == list(range(6))
    assert [own[place][1] for place in places] == [target for _, target in epoch]


def test_ap50_is_cocos():
    truth = [
        (np.array([[0, 0, 10, 10]], np.float32), np.array([3])),
        (np.array([[5, 5, 25, 25]], np.float32), np.array([4])),
    ]
    right = [(0, 3, 0.9, 0, 0, 10, 10), (1, 4, 0.8, 5, 5, 25, 25)]
    assert ap50(right, truth, 32) == pytest.approx(1)
    assert ap50([right[0], (1, 4, 0.8, 15, 15, 35, 35)], truth, 32) == pytest.approx(0.5)
    assert ap50([(0, -1, 0, 0, 0, 0, 0)], truth, 32) == 0


def test_a_row_has_the_seeds_mean_and_sample_deviation():
    searched = [left(replace(RUN, rate=rate), score) for rate, score in ((3e-4, 0.25), (1e-3, 0.5))]
    trained = [
        left(replace(RUN, seed=seed, scored_on="test"), score, 43 + seed) for seed, score in enumerate((0.5, 0.6, 0.7))
    ]
    row = summary(searched, trained)
    assert row["mean"] == pytest.approx(0.6)
    assert row["deviation"] == pytest.approx(0.1)
    text = render({"machine": MACHINE, "scale": asdict(Scale()), "rows": [row]})
    assert (
        "| pretraining, top-1 | CycleMLP-B0 | 3.0 M | 20 | 44 | 0.250 | *0.500* | **0.600** ± 0.100 |"
        in text.splitlines()
    )
    assert "took 43 to 45 s of CPU" in text


def test_the_document_shows_the_stored_result_and_each_rate_is_the_best_of_the_held_out_scenes():
    result = json.loads(STORED.read_text())
    assert PART.read(DOCUMENT) == render(result)
    for row in result["rows"]:
        assert row["held_out"][f"{row['rate']:g}"] == max(row["held_out"].values())
        assert (
            abs(np.mean(row["seconds"]) / np.mean([np.mean(other["seconds"]) for other in result["rows"]]) - 1) < 0.25
        )


@pytest.fixture
def trained(monkeypatch):
    """In place of training: runs get a score that is best at 1e-3 and grows with the seed, and are recorded."""
    recorded = []

    def call(self, request, name):
        if "measure" in request:
            costs = {backbone: 0.01 * (number + 1) for number, backbone in enumerate(BACKBONES)}
            measured = {"machine": MACHINE, "seconds": dict.fromkeys(TASKS, costs)}
            (self.folder / "measured.json").write_text(json.dumps(measured))
        for values in request.get("runs", ()):
            run = Run(**values)
            recorded.append(run)
            (self.folder / f"{run.key}.json").write_text(json.dumps(left(run, (run.rate == 1e-3) / 2 + run.seed / 1e4)))

    monkeypatch.setattr(Experiment, "call", call)
    return recorded


def test_the_chain_gives_all_the_same_time_and_goes_on_where_it_ended(trained, tmp_path):
    scale = Scale(seconds=2)
    result = Experiment(list(BACKBONES), scale, tmp_path).run()
    assert len({run.key for run in trained}) == len(trained) == len(TASKS) * len(BACKBONES) * 6
    costs = dict(zip(BACKBONES, (0.01, 0.02, 0.03, 0.04)))
    for run in trained:
        searched = run.scored_on == "held-out"
        assert run.steps == int((1 if searched else 2) / costs[run.backbone])
        assert run.seed in ([100] if searched else [0, 1, 2])
        assert searched or run.rate == 1e-3
        assert (run.start is None) == (run.task == "classify")
        if run.start:  # from the same backbone's pretraining with the same seed: the search has weights of its own
            start = next(other for other in trained if other.key == run.start)
            same = ("backbone", "scored_on", "seed")
            assert [getattr(start, name) for name in same] == [getattr(run, name) for name in same]
            assert (start.task, start.rate) == ("classify", 1e-3)
    assert [(row["task"], row["backbone"]) for row in result["rows"]] == [(t, b) for t in TASKS for b in BACKBONES]

    before = len(trained)
    assert Experiment(list(BACKBONES), scale, tmp_path).run() == result
    assert len(trained) == before
    lost = trained[-1]
    (tmp_path / f"{lost.key}.json").unlink()
    assert Experiment(list(BACKBONES), scale, tmp_path).run() == result
    assert trained[before:] == [lost]


def test_a_run_from_other_weights_does_not_count(trained, tmp_path):
    run = replace(RUN, task="detect", start="one")
    experiment = Experiment([], SMOKE, tmp_path)
    experiment.complete({"group": [run]})
    assert len(experiment.results([run])) == 1
    assert experiment.results([replace(run, start="other")]) == []


def test_a_backbone_that_comes_later_is_timed_in_relation_to_one_that_is_there(monkeypatch):
    monkeypatch.setattr(chain_run, "Trainer", lambda task, name, *rest: SimpleNamespace(step=name))
    seconds = {"old": 0.4, "new": 0.8}
    monkeypatch.setattr(
        chain_run, "measure", lambda calls, **_: {name: SimpleNamespace(minimum=seconds[name]) for name in calls}
    )
    assert step_seconds("classify", ["old", "new"], 1) == seconds
    assert step_seconds("classify", ["new"], 1, {"old": 0.2}) == {"new": pytest.approx(0.4)}


@pytest.mark.slow
def test_a_short_run_trains_all_stages(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["chain.py", "--smoke", "--backbones", "cyclemlp_b0", "--out", str(tmp_path)])
    assert main() == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["machine"]["threads"] == "1"
    assert [row["task"] for row in result["rows"]] == list(TASKS)
    for row in result["rows"]:
        assert all(0 <= score <= 1 for score in (*row["scores"], *row["held_out"].values()))
        assert all(
            curve[-1]["seconds"] == pytest.approx(s, abs=0.01) for curve, s in zip(row["curves"], row["seconds"])
        )
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert (tmp_path / "result.md").read_text() == render(result) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_pretrained_weights_reach_every_task_whole(backbone, tmp_path):
    import paddle

    first = chain_run.Trainer("classify", backbone, 1e-3, 2, 0)
    first.step()
    paddle.save(first.backbone.state_dict(), str(tmp_path / "start.pdparams"))
    for task in ("segment", "detect"):
        later = chain_run.Trainer(task, backbone, 1e-3, 2, 1, tmp_path / "start.pdparams")
        state = later.backbone.state_dict()
        assert all(bool((state[name] == value).all()) for name, value in first.backbone.state_dict().items())
        frozen = [name for name, value in later.model.named_parameters() if value.stop_gradient]
        assert all(name.endswith(("._mean", "._variance")) for name in frozen)  # of batch normalisation
        assert np.isfinite(later.step())
