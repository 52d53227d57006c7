"""The classification demo in miniature; `make demo-cls` runs it whole."""

import json

import numpy as np
import paddle
import pytest
from PIL import Image

from cyclemlp_backbones import build_classifier, load_weights, read_checkpoint
from demo import cls
from demo.cls_picture import draw_students
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


def test_the_picture_is_of_both_students_and_the_distilled_one_s_answers(bench, monkeypatch):
    out, drawn = bench / "seed-3", {}

    def record(path, losses, images, labels, answers, *, title):
        drawn.update(path=path, losses=losses, images=images, labels=labels, answers=answers, title=title)

    monkeypatch.setattr("demo.cls_picture.draw_students", record)
    config = cls.settings(out, bench / "data", 3)
    cls.draw(out, config, "title")
    assert (drawn["path"], drawn["title"]) == (out / "picture.png", "title")
    assert {name: [step for step, _ in points] for name, points in drawn["losses"].items()} == {
        "student": [2],
        "distilled": [2],
    }
    lines = [line.split() for line in (bench / "data" / "val.txt").read_text().splitlines()]
    assert [int(label) for _, label in lines] == list(drawn["labels"])
    for image, (name, _) in zip(drawn["images"], lines):
        scene = Image.open(bench / "data" / "val" / name)
        assert np.abs(image - np.asarray(scene.resize(image.shape[:2])).astype(int)).mean() < 12  # resized, cropped
    model = build_classifier("b0", num_classes=10)
    load_weights(model, out / "distilled" / "last.pdparams")
    model.eval()
    pixels = drawn["images"].transpose(0, 3, 1, 2) / 255 - np.reshape(config.data.mean, (3, 1, 1))
    with paddle.no_grad():
        logits = model(paddle.to_tensor((pixels / np.reshape(config.data.std, (3, 1, 1))).astype(np.float32)))
    assert drawn["answers"] == logits.argmax(1).tolist()


def test_a_wrong_answer_is_red_and_names_the_right_one(tmp_path):
    blue = np.full((2, 8, 8, 3), (0, 0, 255), np.uint8)

    def red(answers):
        losses = {"student": [(0, 2.0), (9, 1.0)], "distilled": [(0, 1.0), (9, 2.0)]}
        draw_students(tmp_path / "p.png", losses, blue, [3, 5], answers, title="t", columns=2)
        picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
        assert (picture == (0, 0, 255)).all(-1).mean() > 0.15  # both digits
        for curve in ((31, 119, 180), (255, 127, 14)):
            assert (np.abs(picture - curve).sum(-1) < 30).sum() > 50
        return ((picture[..., 0] > 200) & (picture[..., 1:].max(-1) < 60)).any(0)

    assert not red([3, 5]).any()
    columns = np.flatnonzero(red([3, 6]))
    assert len(columns) > 5
    assert columns.min() > 100  # above the second digit, in the right half


def test_weights_go_into_segmentation_and_too_little_learnt_is_a_failure(bench, monkeypatch, tmp_path, capsys):
    starts, pictures = [], []

    def segment(out, data, iterations, seed, weights):
        starts.append(weights)
        return 0.1 if weights is None else 0.13

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
