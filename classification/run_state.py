"""Checkpoints of a run: one .safetensors file each, written whole or not at all, rotated, refused for another run.

Random choices need no state: they follow from the seed and the step.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import safetensors
from paddle import Tensor
from safetensors.numpy import save_file

from classification.config import Config
from classification.config_files import differing_keys
from cyclemlp_backbones import CheckpointError

FORMAT = "cyclemlp-pretraining-1"
_NAME = re.compile(r"step-(\d+)\.safetensors")
_ACCUMULATOR = re.compile(r"(?:fp32_master_\d+_)?(.+)_\d+")


@dataclass(frozen=True)
class Checkpoint:
    """`arrays` by "model/…", "ema/…", "optimizer/…", "master/…"; `meta` has the step, configuration and the rest."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.meta["step"])

    def part(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one part by their names in it."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for entry in folder.iterdir() if (match := _NAME.fullmatch(entry.name)))


def steps_to_delete(steps: Iterable[int], *, keep: int, best: int | None) -> list[int]:
    """All but the last `keep` and the best."""
    return [step for step in sorted(steps)[:-keep] if step != best]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int, best: int | None) -> Path:
    """Writes a checkpoint and then removes earlier ones that are no longer kept. Later ones, of a run that went on from
    an earlier step than it had come to, stay until it comes to them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, checkpoint.step)
    arrays = {name: np.ascontiguousarray(array) for name, array in checkpoint.arrays.items()}
    metadata = {"format": FORMAT, "meta": json.dumps(checkpoint.meta)}
    write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata=metadata))
    steps = [step for step in saved_steps(folder) if step <= checkpoint.step]
    for step in steps_to_delete(steps, keep=keep, best=best):
        checkpoint_path(folder, step).unlink(missing_ok=True)
    return path


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """`write(temporary)`, on the disk, and only then under its name."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file; CheckpointError for a file that is missing, damaged or something else."""
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}; run.resume takes auto or the path of a step-….safetensors"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: it is damaged, or no checkpoint ({error})") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no checkpoint of a training run; weights to start from go into model.pretrained"
        )
    return Checkpoint(arrays, json.loads(metadata["meta"]))


def find_resume(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint that `run.resume` means: None for a fresh start, which "auto" takes where there is none yet.

    Without `resume`, CheckpointError for a folder with checkpoints: those of two runs would be mixed up.
    """
    steps = saved_steps(folder)
    if resume is None:
        if steps:
            raise CheckpointError(
                f"{folder} has checkpoints up to step {steps[-1]} of an earlier run: go on with it (--resume auto), "
                "choose another run.output, or remove them"
            )
        return None
    if resume != "auto":
        return Path(resume)
    return checkpoint_path(folder, steps[-1]) if steps else None


def check_same_run(checkpoint: Checkpoint, config: Config, *, processes: int, samples: str, path: Path) -> None:
    """CheckpointError with the differing keys unless `config` continues the checkpoint's run."""
    lines = differing_keys(checkpoint.meta["config"], config)
    for key, now in (("processes", processes), ("training list", samples)):
        if checkpoint.meta[key] != now:
            lines.append(f"{key}: {checkpoint.meta[key]!r} in the checkpoint, {now!r} now")
    if lines:
        raise CheckpointError(
            f"{path} is of another run:\n  " + "\n  ".join(lines) + "\nset these as they were, or start in another "
            "run.output (weights alone to start from: model.pretrained)"
        )


def model_arrays(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays; half precision as float32, which holds it exactly."""
    return {name: _array(tensor) for name, tensor in state.items()}


def _array(tensor: Tensor) -> np.ndarray:
    half = tensor.dtype in (paddle.float16, paddle.bfloat16)
    return np.asarray((tensor.astype("float32") if half else tensor).numpy())


def optimizer_arrays(
    optimizer: paddle.optimizer.Optimizer, names: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The accumulators by "PARAMETER/KIND" and the master weights, where `names` are the model's names by Paddle's.

    Paddle's own names count layers within a process, and so change with what else was built before.
    """
    state = dict(optimizer.state_dict())
    master = {names[name]: _array(value) for name, value in state.pop("master_weights", {}).items()}
    state.pop("LR_Scheduler", None)
    accumulators = {}
    for key, value in state.items():
        name = max((name for name in names if key.startswith(f"{name}_")), key=len)
        match = _ACCUMULATOR.fullmatch(key.removeprefix(f"{name}_"))
        assert match is not None, key
        accumulators[f"{names[name]}/{match[1]}"] = _array(value)
    return accumulators, master


def restore_optimizer(
    optimizer: paddle.optimizer.Optimizer,
    names: Mapping[str, str],
    accumulators: Mapping[str, np.ndarray],
    master: Mapping[str, np.ndarray],
) -> None:
    """Gives a fresh optimizer the state that `optimizer_arrays` read; it is taken up at its first step."""
    paddle_names = {structured: name for name, structured in names.items()}
    state: dict[str, Any] = {}
    for key, array in accumulators.items():
        structured, _, kind = key.rpartition("/")
        middle = "_fp32_master_0" if structured in master else ""
        state[f"{paddle_names[structured]}{middle}_{kind}_0"] = paddle.to_tensor(array)
    if master:
        state["master_weights"] = {}
        for structured, array in master.items():
            tensor = paddle.to_tensor(array)
            tensor.name = f"{paddle_names[structured]}_fp32_master_0"
            state["master_weights"][paddle_names[structured]] = tensor
    optimizer.set_state_dict(state)
