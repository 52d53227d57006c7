"""`make gpu-check`: every stage runs on the CPU, narrow and short; what is wrong is seen; what is not there is said."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace

import paddle
import pytest

import benchmarks.gpu.__main__ as runner
from benchmarks.gpu import numerics, speed, table, training
from benchmarks.gpu.scale import PRECISIONS, SCALES, NotHere
from benchmarks.gpu.stages import STAGES
from benchmarks.toolkits import Steps
from cyclemlp_backbones import CycleFC, CycleNet, fast_cpu

CPU = SCALES["cpu"]
LACKING = {name for name, stage in STAGES.items() if stage.precision != "fp32"} | {"speed fp32 CINN"}


@pytest.mark.slow
def test_every_stage_runs_on_the_cpu_and_nothing_is_stored(tmp_path, monkeypatch, capfd):
    before = sorted(table.STORED.glob("*")), table.PART.read(table.DOCUMENT)
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--device", "cpu", "--out", str(tmp_path)])
    assert runner.main() == 0, capfd.readouterr().out
    stages = json.loads((tmp_path / "result.json").read_text())["stages"]
    assert {name for name, stage in stages.items() if stage["status"] == "not here"} == LACKING
    assert {name for name, stage in stages.items() if stage["status"] == "passed"} == set(STAGES) - LACKING
    assert {stages[f"training {head}"]["figures"]["mixed"] for head in ("retinanet", "classification fp16")} == {False}
    for cells in stages["speed fp32 eager"]["figures"].values():
        assert {name: cell["ms"] > 0 for name, cell in cells.items()} == {"b0": True, "resnet18": True, "deform": True}
    output = capfd.readouterr().out
    assert f"[{len(STAGES)}/{len(STAGES)}] " in output
    assert "about 0:00 left" in output
    assert "in float32: a CPU has no mixed precision" in output
    assert (sorted(table.STORED.glob("*")), table.PART.read(table.DOCUMENT)) == before


def test_half_precision_is_not_simulated_on_a_cpu():
    for name in ("fp16", "bf16", "tf32"):
        with pytest.raises(NotHere):
            numerics.check(CPU, name)
        with pytest.raises(NotHere):
            speed.check(CPU, name, "eager")


def test_a_wrong_network_exceeds_the_bounds_and_is_named(monkeypatch):
    monkeypatch.setattr(numerics, "golden_errors", lambda variant, context: {f"logits {variant}": float("nan")})
    monkeypatch.setattr(
        numerics, "gradient_errors", lambda context, use_recompute: ({"norms of gradients": 1.9e-3}, 5.0)
    )
    figures, failures = numerics.check(CPU, "fp32")
    assert figures["errors"]["layer"] < 1e-5
    assert failures == [
        "logits b1: error nan, at most 0.0001",
        "recompute: 5 MB at the peak, 5 without it",
    ]

    shift = CycleFC.shift
    monkeypatch.setattr(CycleFC, "shift", lambda layer, x: shift(layer, x) * (1 + 1e-3))
    monkeypatch.setattr(fast_cpu, "accelerate", lambda layer: layer)
    assert numerics.check(CPU, "fp32")[1][0].startswith("layer: error ")


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_bounds_are_two_to_four_times_what_rounding_every_layer_costs(name, monkeypatch):
    dtype, bound = PRECISIONS[name].dtype, PRECISIONS[name].bound

    def rounded(x):
        return x.astype(dtype).astype("float32")  # and its gradient

    def build(*arguments, **options):
        model = build_backbone(*arguments, **options)
        for layer in model.sublayers():
            if not layer.sublayers():
                layer.register_forward_post_hook(lambda layer, inputs, y: rounded(y))
        return model

    def fill(model):
        fill_parameters(model)
        for key, parameter in model.named_parameters():
            if "norm" not in key:
                parameter.set_value(rounded(parameter))

    build_backbone = numerics.build_backbone
    fill_parameters = numerics.fill_parameters
    monkeypatch.setattr(numerics, "build_backbone", build)
    monkeypatch.setattr(numerics, "fill_parameters", fill)
    monkeypatch.setattr(fast_cpu, "accelerate", lambda layer: layer)
    errors = numerics.golden_errors("b1", nullcontext) | numerics.gradient_errors(nullcontext, use_recompute=False)[0]
    assert 2 * errors["gradient of the image"] < bound
    assert bound / 4.5 < max(errors["features b1"], errors["gradient of the image"]) < bound / 2
    assert errors["norms of gradients"] < PRECISIONS[name].norm_bound / 2


def seen(losses):
    return Steps(losses=list(losses))


def test_training_is_judged_by_its_losses_and_its_scaler():
    assert training.judge(CPU, seen([3, 2, 2, 2, 2, 1]), scaled=True)[1] == []
    assert "does not fall" in training.judge(CPU, seen([2] * 6), scaled=False)[1][0]
    assert "not finite" in training.judge(CPU, seen([2, 1, float("nan"), 1, 1, 1]), scaled=False)[1][0]
    assert training.judge(CPU, seen([3, 2]), scaled=False)[1] == ["2 steps, 6 were asked for"]
    on_gpu = replace(CPU, device="gpu")
    assert "no loss was scaled" in training.judge(on_gpu, seen([3, 2, 2, 2, 2, 1]), scaled=True)[1][0]
    assert training.judge(on_gpu, seen([3, 2, 2, 2, 2, 1]), scaled=False)[1] == []


def test_a_network_that_fails_does_not_stop_the_others(monkeypatch):
    class Broken(paddle.nn.Linear):
        def __init__(self):
            super().__init__(1, 1)

        def forward(self, image):
            raise MemoryError("a trace\n----\nError Message Summary:\n-------------\nOut of memory\non GPU 0.")

    tiny = CycleNet((1, 1, 1, 1), (8, 8, 8, 8), (2, 2, 2, 2), num_classes=1000)
    monkeypatch.setattr(speed, "networks", lambda scale: {"b0": Broken, "resnet18": Broken, "deform": lambda: tiny})
    figures, failures = speed.check(replace(CPU, size=32), "fp32", "eager")
    reason = "MemoryError: Out of memory on GPU 0."
    assert failures == [f"forward, b0: {reason}", f"step, b0: {reason}"]  # of ours, not of what it is compared with
    assert figures["step"]["resnet18"] == {"failed": reason}
    assert figures["step"]["deform"]["images_per_second"] > 0


def test_a_stage_that_fails_or_dies_says_why_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    impossible = replace(CPU, golden=("b9",))
    found = runner.run_stages(["numerics fp32", "numerics fp16"], impossible, tmp_path)
    assert found["numerics fp32"]["status"] == "failed"
    assert "b9" in found["numerics fp32"]["reasons"][0]
    assert found["numerics fp16"]["status"] == "not here"
    assert "[1/2] numerics fp32: failed in " in capsys.readouterr().out
    monkeypatch.setattr(runner.sys, "executable", "/bin/false")
    died = runner.run_stage("numerics fp32", CPU, tmp_path)
    assert died["status"] == "failed"
    assert "status 1; see " in died["reasons"][0]


def test_without_a_gpu_the_check_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    assert runner.main() == 1
    assert "paddlepaddle-gpu" in capsys.readouterr().err


def test_the_document_shows_the_stored_checks_or_that_there_are_none():
    assert table.PART.read(table.DOCUMENT) == table.render(table.stored())
    assert table.render([]).startswith("not measured")


def check_of(device):
    cell = {"ms": 10.0, "images_per_second": 6400.0, "megabytes": 512.4}
    cells = {"b1": cell, "resnet50": {**cell, "ms": 8.0}, "deform": {"failed": "no such kernel"}}
    numbers = {
        "bound": 5e-3,
        "norm_bound": 5e-3,
        "errors": {"layer": 1e-4, "logits b1": 2e-3, "norms of gradients": 1e-3},
    }
    training = {"steps": 50, "first": 2.0, "last": 1.0, "scale": 1024.0, "mixed": True}
    stages = {
        "numerics fp16": runner.result("passed", **numbers),
        "training retinanet": runner.result("passed", **training),
        "two processes": runner.result("failed", ["one | two"]),
        "speed fp16 eager": runner.result("passed", forward=cells, step=cells),
    }
    machine = {"processor": "p", "threads": "1", "date": "d", "commit": "c", "device": device}
    scale = {"batch": 64, "size": 224, "variants": ["b1"], "resnet": 50}
    return {"machine": machine, "scale": scale, "stages": stages}


def test_the_table_of_a_device_has_errors_losses_scale_speed_and_reasons(tmp_path, monkeypatch):
    text = table.render([check_of("NVIDIA One"), check_of("NVIDIA Two")])
    assert "### NVIDIA One" in text
    assert "### NVIDIA Two" in text
    assert "| numerics fp16 | passed | logits b1: 2.0e-03 of 0.005; norms of gradients: 1.0e-03 of 0.005 |" in text
    assert "| training retinanet | passed | loss 2 -> 1 in 50 steps, loss scale 1024 |" in text
    assert "| two processes | failed | one / two |" in text
    assert "| b1 | 6400 (512) |" in text
    assert "| b1 on deform_conv2d | fails |" in text
    assert "| time of b1 to that of resnet50 | 1.25 |" in text


def test_a_device_gets_a_file_of_its_name(tmp_path, monkeypatch):
    document = tmp_path / "performance.md"
    document.write_text(f"{table.PART.begin}\n{table.PART.end}\n")
    monkeypatch.setattr(table, "STORED", tmp_path / "gpu")
    monkeypatch.setattr(table, "DOCUMENT", document)
    runner.store(check_of("NVIDIA H100 80GB HBM3"))
    assert [path.name for path in (tmp_path / "gpu").iterdir()] == ["nvidia-h100-80gb-hbm3.json"]
    assert "### NVIDIA H100 80GB HBM3" in document.read_text()
    assert table.stored() == [check_of("NVIDIA H100 80GB HBM3")]
