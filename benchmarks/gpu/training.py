"""Each trainer with mixed precision for some steps, and two processes of one batch against one."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.documents import ROOT
from benchmarks.gpu.scale import PRECISIONS, NotHere, Scale
from benchmarks.toolkits import Run, Steps, observed, train
from cyclemlp_backbones.digits import DemoSettings, write_demo_data

_SECONDS_FOR_TWO = 300


def toolkit(scale: Scale, head: str) -> tuple[dict[str, Any], list[str]]:
    """PaddleSeg's or PaddleDetection's trainer with our configuration of `head`."""
    batch = scale.train_batch
    run = Run(
        head, scale.trained, scale.steps, batch, scale.crop, 4 * batch, scale.device, amp=True, regions=scale.regions
    )  # four batches, again and again: the loss has to fall
    with tempfile.TemporaryDirectory() as folder:
        return judge(scale, train(run, Path(folder)), scaled=True)


def classification(scale: Scale, precision: str) -> tuple[dict[str, Any], list[str]]:
    """The pretraining program, on one digit a picture."""
    from classification.config_files import load_config
    from classification.trainer import Trainer

    batch = 4 * scale.train_batch
    with tempfile.TemporaryDirectory() as folder, observed() as steps:
        data = Path(folder) / "data"
        size = scale.size if scale.device == "gpu" else 32
        write_demo_data(data, DemoSettings("imagenet", train=4 * batch, val=10, size=size))
        changes: dict[str, Any] = {
            "model.variant": scale.trained, "model.num_classes": 10, "model.drop_path_rate": 0.0,
            "data.train_images": str(data / "train"), "data.train_list": str(data / "train.txt"),
            "data.input_size": size, "data.batch_size": batch, "data.workers": 0, "data.repeats": 1,
            "augment.policy": None, "augment.erase": 0.0, "mix.mixup": 0.0, "mix.cutmix": 0.0,
            "optimizer.lr": 1e-3, "optimizer.lr_batch": batch,
            "schedule.epochs": -(-scale.steps // 4), "schedule.warmup_epochs": 1,
            "amp.dtype": PRECISIONS[precision].dtype,
            "run.output": str(Path(folder) / "run"), "run.device": scale.device,
        }  # fmt: skip
        Trainer(load_config(str(ROOT / "classification/configs/cyclemlp_b1.yml"), changes.items())).run()
    return judge(scale, steps, scaled=precision == "fp16")


def judge(scale: Scale, seen: Steps, *, scaled: bool) -> tuple[dict[str, Any], list[str]]:
    """Losses at both ends and the loss scale; a failure where they are not finite or do not fall, or nothing scaled."""
    losses, some = seen.losses, max(1, scale.steps // 10)
    first, last = (round(mean(part), 4) for part in (losses[:some], losses[-some:]))
    figures = {"steps": len(losses), "first": first, "last": last, "scale": seen.scale, "mixed": scale.device == "gpu"}
    failures = []
    if len(losses) < scale.steps:
        failures.append(f"{len(losses)} steps, {scale.steps} were asked for")
    if not all(map(math.isfinite, losses)):
        failures.append(f"the loss is not finite: {losses}")
    elif last >= first:
        failures.append(f"the loss does not fall: {first} in the first {some} steps, {last} in the last")
    if scaled and scale.device == "gpu" and seen.scale is None:
        failures.append("no loss was scaled: mixed precision was not at work")
    return figures, failures


def two_processes(scale: Scale) -> tuple[dict[str, Any], list[str]]:
    """Gradients of two processes with an image each, averaged, against one process with both images."""
    import paddle

    if scale.device == "gpu" and paddle.device.cuda.device_count() < 2:
        raise NotHere(f"{paddle.device.cuda.device_count()} GPU; two processes need two")
    where = ["--devices", "0,1"] if scale.device == "gpu" else ["--nproc_per_node", "2"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "paddle.distributed.launch", "--log_dir", folder, *where]
        command += [str(Path(__file__).with_name("rank.py")), scale.device, scale.trained, f"{folder}/error"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        # In a session of its own: the launcher ends the whole group that it is in, and here the group ends with it.
        with subprocess.Popen(command, cwd=ROOT, env=environment, **quiet) as launch:
            try:
                status = launch.wait(_SECONDS_FOR_TWO)
            except subprocess.TimeoutExpired:
                os.killpg(launch.pid, signal.SIGKILL)
                raise
        result = Path(folder, "error")
        if status or not result.exists():
            logs = "".join(log.read_text(errors="replace")[-800:] for log in sorted(Path(folder).glob("workerlog.*")))
            raise RuntimeError(f"the launch ended with status {status}: {logs}")
        error = float(result.read_text())
    backend = "nccl" if scale.device == "gpu" else "gloo"
    failures = [] if error <= 1e-4 else [f"gradients differ by {error:.2e} of the largest, at most 1e-4"]
    return {"backend": backend, "error": error}, failures
