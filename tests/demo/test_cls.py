"""The classification demo in miniature; `make demo-cls` runs it whole."""

import json

import pytest

from cyclemlp_backbones import read_checkpoint
from demo import cls
from demo.steps import DemoFailure

TINY = cls.Lengths(64, 20, 1, 1, 2, 20, least=0.0, least_gain=-1.0)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    cls.bench(TINY, out, (3, 4))
    return out


def test_the_gains_mean_and_spread():
    rows = [{"student": 80.0, "distilled": 83.0}, {"student": 82.0, "distilled": 81.0}]
    result = cls.summary([*rows, {"student": 80.0, "distilled": 81.0}])
    assert result["gains"] == [3.0, -1.0, 1.0]
    assert result["mean_gain"] == 1.0
    assert result["standard_deviation"] == 2.0


def test_the_benchmark_trains_one_teacher_and_a_pair_for_each_seed(bench):
    result = json.loads((bench / "result.json").read_text())
    assert result["seeds"] == [3, 4]
    assert [row.keys() for row in result["top1"]] == [{"student", "distilled"}] * 2
    assert result["gains"] == [row["distilled"] - row["student"] for row in result["top1"]]
    assert [path.name for path in bench.rglob("teacher.pdparams")] == ["teacher.pdparams"]
    for seed in (3, 4):
        reports = [
            json.loads((bench / f"seed-{seed}" / name / "report.json").read_text()) for name in ("student", "distilled")
        ]
        assert [report["steps"] for report in reports] == [2, 2]
    first, second = (read_checkpoint(bench / f"seed-{seed}" / "student" / "last.pdparams") for seed in (3, 4))
    assert (first["head.weight"] != second["head.weight"]).any()


def test_the_pair_differs_by_the_teacher_alone(bench):
    configs = [(bench / "seed-3" / name / "config.yml").read_text().splitlines() for name in ("student", "distilled")]
    differing = {line.split(":")[0].strip() for pair in zip(*configs) if len(set(pair)) > 1 for line in pair}
    assert differing == {"type", "teacher_weights", "output"}


def test_the_picture(bench):
    out = bench / "seed-3"
    cls.draw(out, cls.settings(out, bench / "data", 3), "title")
    assert (out / "picture.png").stat().st_size > 10_000


def test_weights_go_into_segmentation_and_too_little_learnt_is_a_failure(bench, monkeypatch, tmp_path, capsys):
    starts, pictures = [], []

    def segment(out, data, iterations, seed, weights):
        starts.append(weights)
        return (0.1 if weights is None else 0.13), []

    monkeypatch.setattr(cls, "segment", segment)
    monkeypatch.setattr(cls.seg, "draw", lambda *arguments: pictures.append(arguments[4].name))
    monkeypatch.setattr(
        cls, "classify", lambda lengths, out, seed, clock: (bench / "data", 50.0, bench / "teacher.pdparams")
    )
    monkeypatch.setattr(cls, "train_pair", lambda *_: {"student": 91.0, "distilled": 95.0})
    monkeypatch.setattr(cls, "draw", lambda *_: None)
    cls.run(cls.replace(TINY, least=94.0, least_gain=0.02), tmp_path, 0)
    assert starts == [None, tmp_path / "distilled" / "last.pdparams"]
    assert pictures == ["from-nothing.png", "pretrained.png"]
    assert "from nothing 0.100, from the weights of distilled 0.130" in capsys.readouterr().out
    for least, least_gain in ((96.0, 0.02), (94.0, 0.05)):
        with pytest.raises(DemoFailure, match=r"95.0 % and its weights add 0.030"):
            cls.run(cls.replace(TINY, least=least, least_gain=least_gain), tmp_path, 0)
    assert json.loads((tmp_path / "result.json").read_text())["miou"]["pretrained"] == 0.13
