"""Data and a configuration small enough for tests: ten digits of 40 pixels, a network of four blocks, 32 px."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paddle
import pytest
from paddle.amp import grad_scaler

from classification.config import Config
from classification.config_files import load_config
from classification.precision import build_scaler
from cyclemlp_backbones.digits import DemoSettings, write_demo_data

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "mlp_ratios": [2, 2, 2, 2]}


def write_data(folder: Path, *, train: int = 40, val: int = 13) -> Path:
    write_demo_data(folder, DemoSettings("imagenet", train=train, val=val, size=40))
    return folder


def settings(data: Path, output: Path, **changes: Any) -> list[tuple[str, Any]]:
    """Two epochs of five steps, everything random on; `changes` are section__key=value."""
    values: dict[str, Any] = {
        **{f"model.{key}": value for key, value in SIZE.items()},
        "model.num_classes": 10,
        "data.train_images": str(data / "train"),
        "data.train_list": str(data / "train.txt"),
        "data.val_images": str(data / "val"),
        "data.val_list": str(data / "val.txt"),
        "data.input_size": 32,
        "data.batch_size": 8,
        "data.workers": 0,
        "optimizer.lr": 0.05,
        "schedule.epochs": 2,
        "schedule.warmup_epochs": 0.4,
        "ema.decay": 0.9,
        "run.output": str(output),
        "run.device": "cpu",
        "run.log_every": 1,
    }
    values.update({key.replace("__", "."): value for key, value in changes.items()})
    return list(values.items())


def tiny_config(data: Path, output: Path, **changes: Any) -> Config:
    return load_config(None, settings(data, output, **changes))


def arguments(data: Path, output: Path, **changes: Any) -> list[str]:
    """The same as command-line arguments."""
    return [part for key, value in settings(data, output, **changes) for part in ("--set", f"{key}={value}")]


def environment() -> dict[str, str]:
    """One thread, so that sums are in the same order in every run."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_python(*command: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def enabled_scaler(monkeypatch: pytest.MonkeyPatch, scale: float, *, interval: int = 2000) -> paddle.amp.GradScaler:
    """Paddle's scaler at work on a CPU, where it switches itself off; its kernels are there."""
    place = SimpleNamespace(is_gpu_place=lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(grad_scaler, "_dygraph_tracer", lambda: SimpleNamespace(_expected_place=place))
        scaler = build_scaler(scale, interval=interval)
    monkeypatch.setattr(grad_scaler.amp_global_state(), "amp_dtype", "float16")  # as after auto_cast
    return scaler
