"""Whole runs on a tiny network: exact resuming, refusals, broken images, losses that are not finite, fine-tuning."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from classification.config import ModelConfig
from classification.distributed import World
from classification.inference import evaluate_weights
from classification.precision import Precision, loss_scale
from classification.report import read_log
from classification.run_state import read_run_state, saved_steps, steps_to_delete
from classification.student import build_student
from classification.trainer import NonFiniteLossError, Trainer
from cyclemlp_backbones import CheckpointError, CycleNet, load_weights, write_checkpoint
from cyclemlp_backbones import read_checkpoint as weights
from tests.classification.tiny import ROOT, arguments, enabled_scaler, environment, run_python, tiny_config
from tests.reference import GOLDEN

RESUMED = {"run__save_every": 2, "optimizer__accumulate": 2, "data__batch_size": 4}


def equal(some, others):
    return some.keys() == others.keys() and all(np.array_equal(some[name], others[name]) for name in some)


def log_rows(folder, event):
    return [row for row in read_log(folder / "log.jsonl") if row["event"] == event]


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(tiny_config(digits, folder, **RESUMED)).run()
    return folder


def test_a_run_leaves_configuration_environment_log_curves_and_weights(whole):
    names = {entry.name for entry in whole.iterdir()}
    assert names == {
        "best.pdparams", "checkpoints", "config.yml", "curves.png", "environment.json", "last.pdparams",
        "last_ema.pdparams", "log.jsonl", "report.json", "run.lock", "summary.csv",
    }  # fmt: skip
    rows = log_rows(whole, "train")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert {"loss", "task", "lr", "grad_norm", "images_per_second", "data_wait_share", "eta_seconds"} <= rows[0].keys()
    assert [row["images"] for row in log_rows(whole, "evaluation")] == [13, 13]
    assert json.loads((whole / "report.json").read_text())["steps"] == 10
    assert not equal(weights(whole / "last.pdparams"), weights(whole / "last_ema.pdparams"))


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_bits(digits, tmp_path):
    """Processes with one thread, so that sums are in the same order."""
    quiet = {"cwd": ROOT, "env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    program = [sys.executable, "-m", "classification", "train"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen([*program, *arguments(digits, whole, **RESUMED)], **quiet) as uninterrupted:
        command = [*program, *arguments(digits, killed, **RESUMED), "--resume", "auto"]
        for step in (3, 6):  # in the first and in the second epoch, at no run state
            with subprocess.Popen(command, **quiet) as process:
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline:
                    rows = log_rows(killed, "train") if (killed / "log.jsonl").exists() else []
                    if rows and rows[-1]["step"] >= step:
                        break
                    time.sleep(0.002)
                process.send_signal(signal.SIGKILL)
                assert process.wait() in (-signal.SIGKILL, 0)
        run = run_python(*command[1:])
        assert run.returncode == 0, run.stderr
        assert uninterrupted.wait(timeout=60) == 0
    for name in ("last.pdparams", "last_ema.pdparams", "best.pdparams"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    ends = [read_run_state(folder / "checkpoints" / "step-00000010.safetensors") for folder in (killed, whole)]
    assert equal(ends[0].arrays, ends[1].arrays)
    assert [entry.name for entry in killed.rglob("*.tmp")] == []


@pytest.mark.slow
def test_an_interrupt_says_how_to_go_on(digits, tmp_path):
    options = arguments(digits, tmp_path, **RESUMED, schedule__epochs=10000)
    command = [sys.executable, "-m", "classification", "train", *options]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not list(tmp_path.glob("checkpoints/step-*.safetensors")):
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "interrupted; the same command with --resume auto goes on from the last run state" in errors
    assert "Traceback" not in errors


def test_a_step_after_resuming_leaves_what_the_uninterrupted_run_has(digits, tmp_path):
    """Of every step, and so of a run that is left at any: weights, average, optimizer, and what else a state holds."""
    changes = {**RESUMED, "run__save_every": 1, "run__keep": 100}

    def state(folder, step):
        return folder / "checkpoints" / f"step-{step:08d}.safetensors"

    Trainer(tiny_config(digits, tmp_path / "whole", **changes)).run()
    for step in range(1, 10):
        start = state(tmp_path / "whole", step)
        Trainer(tiny_config(digits, tmp_path / str(step), **changes, run__resume=str(start))).run(stop_at=step + 1)
        resumed, whole = (read_run_state(state(tmp_path / name, step + 1)) for name in (str(step), "whole"))
        assert equal(resumed.arrays, whole.arrays), step
        assert {**resumed.meta, "config": None} == {**whole.meta, "config": None}


def test_a_run_state_of_another_configuration_is_refused(digits, whole, tmp_path):
    path = whole / "checkpoints" / "step-00000010.safetensors"
    changed = {**RESUMED, "mix__mixup": 0.3, "schedule__epochs": 3, "run__resume": str(path)}
    differing = r"(?s)mix.mixup: 0.8 in the run state, 0.3 now.*schedule.epochs: 2"
    with pytest.raises(CheckpointError, match=differing) as refused:
        Trainer(tiny_config(digits, tmp_path, **changed))
    assert "run.output" not in str(refused.value).split("set these")[0]
    shorter = tmp_path / "shorter.txt"
    shorter.write_text("".join((digits / "train.txt").read_text().splitlines(keepends=True)[:-1]))
    changed = {**RESUMED, "run__resume": str(path), "data__train_list": str(shorter)}
    with pytest.raises(CheckpointError, match="training list: '40 images"):
        Trainer(tiny_config(digits, tmp_path, **changed))
    path = tmp_path / "cut.safetensors"
    path.write_bytes((whole / "checkpoints" / "step-00000010.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        read_run_state(path)


def test_rotation_keeps_the_last_and_the_best(digits, tmp_path):
    assert steps_to_delete([2, 4, 6, 8], keep=2, best=4) == [2]
    assert steps_to_delete([2, 4], keep=3, best=None) == []
    Trainer(tiny_config(digits, tmp_path, run__save_every=1, run__keep=2)).run()
    report = json.loads((tmp_path / "report.json").read_text())
    assert saved_steps(tmp_path / "checkpoints") == sorted({9, 10} | {report["best"]["step"]})


def test_a_run_that_goes_on_from_an_earlier_step_keeps_what_it_writes(digits, tmp_path):
    Trainer(tiny_config(digits, tmp_path, **RESUMED, run__keep=9)).run()
    folder = tmp_path / "checkpoints"
    start = {**RESUMED, "run__keep": 1, "run__resume": str(folder / "step-00000002.safetensors")}
    Trainer(tiny_config(digits, tmp_path, **start)).run(stop_at=5)
    assert {5, 6, 8, 10} <= set(saved_steps(folder))  # the one that it has just written, and those to come


def test_a_fresh_run_does_not_mix_its_run_states_with_an_earlier_ones(digits, whole):
    with pytest.raises(CheckpointError, match=r"up to step 10 of an earlier run.*--resume auto.*another run.output"):
        Trainer(tiny_config(digits, whole, **RESUMED))


def test_a_run_goes_on_with_the_same_list_in_another_place(digits, whole, tmp_path):
    (tmp_path / "moved.txt").write_text((digits / "train.txt").read_text())
    start = str(whole / "checkpoints" / "step-00000010.safetensors")
    changes = {**RESUMED, "run__resume": start, "data__train_list": str(tmp_path / "moved.txt")}
    assert Trainer(tiny_config(digits, tmp_path, **changes)).step == 10


def test_a_loss_that_is_not_finite_stops_the_run_or_is_skipped(digits, tmp_path):
    def diverging(folder, **changes):
        trainer = Trainer(tiny_config(digits, folder, **changes))
        trainer.model.register_forward_post_hook(
            lambda layer, _, logits: logits * float("nan") if layer.training and trainer.step in (2, 4) else logits
        )
        return trainer

    with pytest.raises(NonFiniteLossError, match=r"step 2: the loss is not finite.*learning rate"):
        diverging(tmp_path / "stops").run()
    described = json.loads((tmp_path / "stops" / "nonfinite-step-00000002-process-0.json").read_text())
    assert described["step"] == 2
    assert len(described["forwards"][0]["images"]) == 8
    assert diverging(tmp_path / "skips", run__skip_nonfinite=2).run()["skipped_steps"] == 2
    assert all(np.isfinite(value).all() for value in weights(tmp_path / "skips" / "last.pdparams").values())


def test_broken_images_fail_the_run_past_their_share(digits, tmp_path):
    import shutil

    shutil.copytree(digits / "train", tmp_path / "train")
    first = (digits / "train.txt").read_text().split()[0]
    (tmp_path / "train" / first).write_bytes(b"broken")
    changes = {"data__train_images": str(tmp_path / "train"), "data__repeats": 1, "run__output": str(tmp_path / "run")}
    with pytest.raises(ValueError, match=f"1 of 40 images cannot be read.*{first}"):
        Trainer(tiny_config(digits, tmp_path / "run", **changes)).run()
    trainer = Trainer(tiny_config(digits, tmp_path / "run", **changes, data__max_broken=0.05))
    assert trainer.run()["broken_images"] == 1
    assert log_rows(tmp_path / "run", "broken")[-1]["count"] == 1


def test_fine_tuning_at_another_class_count_replaces_the_head_on_purpose(digits, whole, tmp_path, caplog):
    start = str(whole / "last.pdparams")
    same = Trainer(tiny_config(digits, tmp_path / "same", model__pretrained=start))
    assert equal({name: value.numpy() for name, value in same.model.state_dict().items()}, weights(start))
    changes = {"model__pretrained": start, "model__num_classes": 12, "data__input_size": 48}
    with caplog.at_level("INFO"):
        tuned = Trainer(tiny_config(digits, tmp_path / "tuned", **changes))
    assert "the head is replaced: 12 classes" in caplog.text
    assert np.array_equal(tuned.model.norm.weight.numpy(), weights(start)["norm.weight"])
    assert tuned.run()["head_replaced"] is True
    resumed = {"run__resume": str(tmp_path / "tuned" / "checkpoints" / "step-00000010.safetensors"), **changes}
    assert Trainer(tiny_config(digits, tmp_path / "resumed", **resumed)).run()["head_replaced"] is True
    fresh = Trainer(tiny_config(digits, tmp_path / "fresh", model__pretrained=start, model__replace_head=True))
    assert not np.array_equal(fresh.model.head.weight.numpy(), weights(start)["head.weight"])
    assert same.head_replaced is False


def test_training_adapts_a_stem_of_other_channels_and_evaluation_refuses_what_does_not_fit(digits, whole, tmp_path):
    arrays = weights(whole / "last.pdparams")
    stem = arrays["patch_embed.proj.weight"]  # (O, 3, K, K)
    write_checkpoint(tmp_path / "gray.pdparams", {**arrays, "patch_embed.proj.weight": stem.sum(1, keepdims=True)})
    config = tiny_config(digits, tmp_path / "run", model__pretrained=str(tmp_path / "gray.pdparams"))
    adapted = Trainer(config).model.patch_embed.proj.weight.numpy()
    assert np.allclose(adapted.sum(1), stem.sum(1), atol=1e-5)  # a gray picture in RGB gives what it gave
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight"):
        evaluate_weights(config, World())
    classes = {"model__pretrained": str(whole / "last.pdparams"), "model__num_classes": 12}
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        evaluate_weights(tiny_config(digits, tmp_path / "run", **classes), World())


def test_recompute_ends_with_the_same_weights(digits, tmp_path):
    for name, recompute in (("plain", False), ("recompute", True)):
        Trainer(tiny_config(digits, tmp_path / name, model__use_recompute=recompute)).run()
    plain, recomputed = (weights(tmp_path / name / "last.pdparams") for name in ("plain", "recompute"))
    assert max(np.abs(plain[name] - recomputed[name]).max() for name in plain) < 1e-5


def test_weights_go_into_the_backbone(whole):
    backbone = CycleNet([1, 1, 1, 1], [8, 16, 24, 32], [2, 2, 2, 2])
    report = load_weights(backbone, whole / "best.pdparams")
    assert {"norm.weight", "head.weight"} <= set(report.skipped)


def test_mixed_precision_is_left_out_on_a_cpu_and_said(digits, tmp_path, caplog):
    with caplog.at_level("INFO"):
        precision = Precision(tiny_config(digits, tmp_path, amp__dtype="float16", amp__level="O2").amp)
    assert (precision.dtype, precision.half_weights, loss_scale(precision.scaler)) == ("none", False, 1.0)
    assert "amp.dtype float16 is left out" in caplog.text


def test_a_finished_run_that_is_resumed_keeps_its_report(digits, whole, tmp_path):
    path = str(whole / "checkpoints" / "step-00000010.safetensors")
    report = Trainer(tiny_config(digits, tmp_path, **RESUMED, run__resume=path)).run()
    finished = json.loads((whole / "report.json").read_text())
    assert [report[key] for key in ("steps", "last", "best")] == [finished[key] for key in ("steps", "last", "best")]
    assert report["last"]["images"] == 13
    assert (tmp_path / "last.pdparams").read_bytes() == (whole / "last.pdparams").read_bytes()


def test_processes_that_would_resume_at_different_steps_are_refused(digits, tmp_path, monkeypatch):
    """As on two nodes without a file system that both see."""
    trainer = Trainer(tiny_config(digits, tmp_path))
    trainer.world = World(0, 2)
    monkeypatch.setattr(World, "gather", lambda self, value: [500, value])
    with pytest.raises(ValueError, match=r"different steps, \[500, 0\].*file system that all nodes share"):
        trainer._check_same_step()


def test_infinite_gradients_stop_a_run_whose_loss_scale_is_at_its_end(digits, tmp_path, caplog, monkeypatch):
    trainer = Trainer(tiny_config(digits, tmp_path))
    trainer.scaler = enabled_scaler(monkeypatch, 2.0)
    trainer.model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with caplog.at_level("INFO"), pytest.raises(NonFiniteLossError, match="step 1: a gradient is not finite"):
        trainer.run()
    assert "step 0: infinite gradients, loss scale 2 -> 1" in caplog.text


def test_published_weights_are_those_of_the_variant(digits, tmp_path, monkeypatch):
    asked = []

    def locate(pretrained, variant):
        asked.append((pretrained, variant))
        return GOLDEN / "tiny_zip.pth"  # as the authors publish theirs

    monkeypatch.setattr("classification.student.locate_weights", locate)
    size = {"model__depths": [1, 1, 2, 1], "model__mlp_ratios": [4, 4, 4, 4], "model__variant": "b2"}
    trainer = Trainer(tiny_config(digits, tmp_path, **size, model__pretrained="published"))
    assert asked == [(True, "b2")]
    assert np.array_equal(trainer.model.head.weight.numpy().T, weights(GOLDEN / "tiny_zip.pth")["head.weight"])


def test_the_average_moves_once_an_optimizer_step(digits, tmp_path, monkeypatch):
    trainer = Trainer(tiny_config(digits, tmp_path, **RESUMED))  # two micro-batches a step
    moved = []
    update = trainer.average.update
    monkeypatch.setattr(trainer.average, "update", lambda weights: moved.append(trainer.step) or update(weights))
    trainer.run()
    assert moved == list(range(10))


def test_the_configuration_reaches_the_network():
    model = build_student(ModelConfig(variant="b0", num_classes=7, drop_path_rate=0.2, use_recompute=True))
    assert model.head.weight.shape[1] == 7
    blocks = [layer for layer in model.sublayers() if type(layer).__name__ == "CycleBlock"]
    rates = [block.drop_path_rate for block in blocks]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.2)
    assert all(block.use_recompute for block in blocks)
