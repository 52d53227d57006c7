import csv
import io
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from classification import commands, inference
from classification.config import Config
from classification.config_files import as_tree
from classification.distributed import World
from classification.trainer import Trainer
from cyclemlp_backbones.checks import dataclass_from
from cyclemlp_backbones.files import sha256
from tests.classification.tiny import arguments, run_python, tiny_config

CARDS = Path(__file__).resolve().parents[2] / "docs" / "models"


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, Trainer(tiny_config(digits, folder)).run()


def output(capsys, *argv):
    code = commands.main(list(map(str, argv)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_eval_repeats_what_training_measured(trained, digits, tmp_path, capsys):
    folder, report = trained
    code, out, _ = output(
        capsys, "eval", *arguments(digits, tmp_path), "--weights", folder / "last.pdparams", "--batch-size", 4
    )
    assert code == 0
    result = json.loads(out)
    assert (result["top1"], result["top5"], result["images"]) == (report["last"]["top1"], report["last"]["top5"], 13)
    assert result["loss"] == pytest.approx(report["last"]["loss"], rel=1e-5)
    code, _, err = output(capsys, "eval", *arguments(digits, tmp_path))
    assert code == 1
    assert "--weights FILE" in err


def test_eval_stores_its_result_and_how_it_came_in_a_card(trained, digits, tmp_path, capsys, monkeypatch):
    folder, report = trained
    card = tmp_path / "b1.yml"
    card.write_text((CARDS / "b1.yml").read_text())
    weights = folder / "last.pdparams"
    command = ["eval", *arguments(digits, tmp_path), "--weights", weights, "--batch-size", 4, "--store", card]
    code, _, err = output(capsys, *command)
    assert (code, yaml.safe_load(card.read_text())["imagenet_top1"]["here"]) == (1, None)
    assert "a card has that of ImageNet's 50,000" in err
    monkeypatch.setattr(inference, "IMAGENET_VAL", 13)
    for _ in range(2):  # the second in place of the first
        assert output(capsys, *command)[0] == 0
    stored = yaml.safe_load(card.read_text())
    before = yaml.safe_load((CARDS / "b1.yml").read_text())
    by = stored.pop("measured_here")
    assert stored.pop("imagenet_top1") == {**before.pop("imagenet_top1"), "here": round(report["last"]["top1"], 3)}
    assert stored == before
    assert (by["weights"], by["images"]) == ({"file": "last.pdparams", "sha256": sha256(weights)}, 13)
    assert by["command"] == ["cyclemlp", "cls", *map(str, command)]
    assert {"commit", "started", "device", "versions"} <= by.keys()
    card.write_text(card.read_text().replace("variant: b1", "variant: b2"))
    assert "is of b2, the result of b1" in output(capsys, *command)[2]


def test_predict_writes_the_likeliest_classes_and_names_unreadable_images(trained, digits, tmp_path, capsys):
    folder, _ = trained
    for number in range(3):
        name = (digits / "val.txt").read_text().splitlines()[number].split()[0]
        Image.open(digits / "val" / name).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / "test.txt").write_text("2.png\nbroken.png\n0.png\n")
    test = {"data__val_images": str(tmp_path), "data__val_list": str(tmp_path / "test.txt")}
    options = [*arguments(digits, tmp_path, **test), "--weights", folder / "best.pdparams"]
    code, out, _ = output(capsys, "predict", *options, "--top", 10)
    assert code == 0
    rows = list(csv.reader(io.StringIO(out)))
    assert [row[0] for row in rows] == ["name", "2.png", "broken.png", "0.png"]
    assert rows[2][1] == "unreadable"
    assert sorted(map(int, rows[1][1::2])) == list(range(10))
    shares = list(map(float, rows[1][2::2]))
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert shares == sorted(shares, reverse=True)


def test_predict_runs_on_the_device_that_is_asked_for_and_once_among_several(
    trained, digits, tmp_path, capsys, monkeypatch
):
    folder, _ = trained
    joined = []

    def join(device, *, distributed):
        joined.append((device, distributed))
        return World(rank=len(joined) - 1, size=2)

    monkeypatch.setattr("classification.distributed.join", join)
    options = [*arguments(digits, tmp_path), "--weights", folder / "best.pdparams"]
    lines = [len(output(capsys, "predict", *options)[1].splitlines()) for _ in range(2)]
    assert joined == [("cpu", True)] * 2
    assert lines == [14, 0]


@pytest.mark.slow
def test_the_scripts_are_the_same_doors(trained, digits, tmp_path):
    folder, report = trained
    run = run_python(
        "classification/eval.py", *arguments(digits, tmp_path), "--model-pretrained", folder / "last.pdparams",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["top1"] == report["last"]["top1"]


def test_benchmark_measures_reading_and_training(digits, tmp_path, capsys):
    code, out, _ = output(capsys, "benchmark", *arguments(digits, tmp_path), "--steps", 2)
    assert code == 0
    result = json.loads(out)
    assert result["training_images_per_second"] > 0
    assert result["reading_images_per_second"] > 0


def test_mistakes_end_with_one_line(digits, tmp_path, capsys):
    assert output(capsys)[0] == 2
    assert output(capsys, "tarin")[0] == 2
    code, _, err = output(capsys, "train", *arguments(digits, tmp_path), "--set", "mix.mixup=-1")
    assert (code, err) == (1, "classification train: error: mix.mixup is -1.0; it takes a value of at least 0\n")
    code, _, err = output(capsys, "train", *arguments(digits, tmp_path), "--resume", tmp_path / "no.safetensors")
    assert code == 1
    assert "there is no run state" in err


def test_help_lists_every_setting_and_config_prints_them_all(capsys):
    for command in ("train", "eval", "predict", "config"):
        with pytest.raises(SystemExit):
            commands.main([command, "--help"])
        text = capsys.readouterr().out
        for section, keys in as_tree(Config()).items():
            assert all(f"  {section}.{key} = {json.dumps(value)}\n" in text for key, value in keys.items())
    assert '`direction`: "forward" is KL(teacher || student)' in text  # and what they mean
    assert "EXIF orientation, transparent ones put on white" in text
    code, out, _ = output(capsys, "config", "--config", "cyclemlp_b3.yml", "--lr", 1e-3)
    assert code == 0
    assert dataclass_from(Config, yaml.safe_load(out)) == commands.train_config(
        ["--config", "cyclemlp_b3.yml", "--lr", "1e-3"]
    )
