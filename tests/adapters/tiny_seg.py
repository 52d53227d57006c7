"""A tiny segmentation data set, its PaddleSeg configuration, and the command as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

NUM_CLASSES = 3
SIZE = 64
REPOSITORY = Path(__file__).resolve().parents[2]

SEMANTIC_FPN = {"type": "SemanticFPN", "dropout_ratio": 0.0}
BACKBONE = {"type": "CycleMLP_B0", "drop_path_rate": 0.0}


def write_data(folder: Path, *, images: int = 4, same_image: bool = False) -> None:
    """`images` pictures with labels, and list.txt; with `same_image` only the labels differ."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    noise = random.randint(0, 256, (SIZE, SIZE, 3))
    lines = []
    for index in range(images):
        label = np.zeros((SIZE, SIZE), np.uint8)
        label[:, 10 + 6 * index :] = 1
        label[SIZE - 4 * (index + 1) :] = 2
        image = noise if same_image else 80 * label[..., None] + random.randint(0, 40, (SIZE, SIZE, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{index}.png")
        Image.fromarray(label).save(folder / f"{index}_label.png")
        lines.append(f"{index}.png {index}_label.png\n")
    (folder / "list.txt").write_text("".join(lines))


def write_config(folder: Path, model: Mapping[str, Any], **changes: Any) -> Path:
    """folder/config.yml, which trains `model` (without its backbone and num_classes) on folder's data."""
    dataset = {
        "type": "Dataset",
        "dataset_root": str(folder),
        "num_classes": NUM_CLASSES,
        "transforms": [{"type": "Normalize"}],
    }
    config = {
        "batch_size": 2,
        "iters": 4,
        "train_dataset": {**dataset, "mode": "train", "train_path": str(folder / "list.txt")},
        "val_dataset": {**dataset, "mode": "val", "val_path": str(folder / "list.txt")},
        "optimizer": {"type": "AdamW", "weight_decay": 0.0001},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.001, "end_lr": 0, "power": 0.9},
        "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": [1]},
        "model": {"num_classes": NUM_CLASSES, "backbone": dict(BACKBONE), **model},
        **changes,
    }
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def python(*arguments: object, cwd: Path, timeout: int = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python arguments`, as in a user's shell, with this checkout's package."""
    search = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": search, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def cyclemlp(*arguments: object, cwd: Path, timeout: int = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """`cyclemlp arguments`."""
    return python("-m", "cyclemlp_backbones", *arguments, cwd=cwd, timeout=timeout, **environment)
