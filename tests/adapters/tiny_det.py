"""Tiny scenes in COCO's format, PaddleDetection configurations of small detectors, and processes to run them in.

PaddleDetection's configuration is global to a process, so each test that needs one has a process of its own. They are
forked from a server that has imported PaddleDetection and done nothing else: a fork of a process that has computed with
Paddle's threads hangs.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from cyclemlp_backbones.digits import DemoSettings, write_demo_data
from tests.adapters.tiny_seg import REPOSITORY

NUM_CLASSES = 10
SIZE = 64
DETECTORS = ("retinanet", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn")
# Configurations of what the wheel has not, or, GFL, does not train on Paddle 3: tests/toolkits trains them.
OF_CHECKOUTS = tuple(
    f"{head}_coco".format(variant)
    for head in ("gfl_cyclemlp_{}_fpn_1x", "dino_cyclemlp_{}_4scale_1x", "rtdetr_cyclemlp_{}_3x")
    for variant in ("b1", "b2")
)
NORMALIZE = {"NormalizeImage": {"is_scale": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["cyclemlp_backbones", "paddle", "ppdet.engine", "ppdet.slim", "sklearn.datasets"])


def in_process(function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)`, a function of a test module, in a new process; its result or its exception."""
    with ProcessPoolExecutor(1, mp_context=_PROCESSES) as pool:
        return pool.submit(function, *arguments).result(timeout=300)


def cyclemlp(*arguments: object, cwd: Path, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """`cyclemlp arguments` in a new process: exit status, and all it prints."""
    return in_process(_cyclemlp, [str(argument) for argument in arguments], str(cwd), dict(environment or {}))


def _cyclemlp(arguments: list[str], cwd: str, environment: dict[str, str]) -> tuple[int, str]:
    from cyclemlp_backbones.cli import main

    os.chdir(cwd)
    os.environ.update(environment)
    output = Path(cwd) / f"output-{os.getpid()}.txt"
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    status: Any = 0
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    except Exception:
        import traceback

        traceback.print_exc()
        status = "exception"
    sys.stdout.flush()
    sys.stderr.flush()
    return status, output.read_text()


def write_data(folder: Path, *, train: int = 4, val: int = 2) -> None:
    write_demo_data(folder, DemoSettings("coco", train=train, val=val, size=SIZE, max_digits=2))


def dataset(folder: Path, split: str) -> dict[str, Any]:
    return {"dataset_dir": str(folder), "image_dir": split, "anno_path": f"annotations/instances_{split}.json"}


def reader(flip: bool) -> dict[str, Any]:
    resize = {"Resize": {"target_size": [SIZE, SIZE], "interp": 1, "keep_ratio": True}}
    flips = [{"RandomFlip": {"prob": 1.0}}] if flip else []
    return {"sample_transforms": [{"Decode": {}}, resize, *flips, NORMALIZE, {"Permute": {}}]}


def merge(some: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in others.items():
        if isinstance(value, Mapping) and isinstance(some.get(key), dict):
            merge(some[key], value)
        else:
            some[key] = value
    return some


def write_config(folder: Path, detector: str, **changes: Any) -> Path:
    """folder/DETECTOR.yml: our configuration's parts for `detector`, narrow, on b0, two epochs on folder's data."""
    base = REPOSITORY / "det_configs" / "_base_"
    masks = "mask" in detector
    parts = ("runtime", "coco_instance" if masks else "coco_detection", "reader", "optimizer_1x")
    config: dict[str, Any] = {
        "_BASE_": [str(base / f"{part}.yml") for part in (*parts, f"{detector}_cyclemlp_fpn")],
        "num_classes": NUM_CLASSES,
        "use_gpu": False,
        "save_dir": str(folder / "out"),
        "worker_num": 0,
        "log_iter": 1,
        "epoch": 2,
        "LearningRate": {
            "base_lr": 0.001,
            "schedulers": [
                {"name": "PiecewiseDecay", "gamma": 0.1, "milestones": [10]},
                {"name": "LinearWarmup", "start_factor": 0.5, "steps": 1},
            ],
        },
        "CycleMLP": {"arch": "b0", "pretrained": None, "drop_path_rate": 0.0},
        "FPN": {"out_channel": 32},
        "TrainDataset": dataset(folder, "train"),
        "EvalDataset": dataset(folder, "val"),
        "TestDataset": {"dataset_dir": str(folder), "anno_path": "annotations/instances_val.json"},
        "TrainReader": {**reader(flip=True), "use_shared_memory": False},
        "EvalReader": reader(flip=False),
        "TestReader": reader(flip=False),
    }
    if detector == "retinanet":
        config["RetinaHead"] = {"conv_feat": {"feat_in": 32, "feat_out": 32, "num_convs": 1}}
    elif detector == "gfl":
        config["GFLHead"] = {"conv_feat": {"feat_in": 32, "feat_out": 32, "num_convs": 1}, "feat_in_chan": 32}
    elif detector == "fcos":  # whose last layers take 256 channels
        config["FCOSHead"] = {"fcos_feat": {"feat_in": 32, "num_convs": 1}}
    else:
        config["RPNHead"] = {"train_proposal": {"post_nms_top_n": 100}, "test_proposal": {"post_nms_top_n": 50}}
        config["BBoxAssigner"] = {"batch_size_per_im": 32}
        config["CascadeTwoFCHead" if detector.startswith("cascade") else "TwoFCHead"] = {"out_channel": 32}
    if masks:
        config["MaskFeat"] = {"num_convs": 1, "out_channel": 32}
    path = folder / f"{detector}.yml"
    path.write_text(yaml.safe_dump(merge(config, changes)))
    return path


def write_shipped(folder: Path, name: str, **changes: Any) -> Path:
    """folder/NAME.yml: det_configs/NAME.yml with nothing changed but data, sizes of images, and what costs time."""
    path = REPOSITORY / "det_configs" / f"{name}.yml"
    reader: dict[str, Any] = {}
    for part in yaml.safe_load(path.read_text())["_BASE_"]:
        merge(reader, yaml.safe_load((path.parent / part).read_text()).get("TrainReader", {}))
    config = {
        "_BASE_": [str(path)],
        "num_classes": NUM_CLASSES,
        "use_gpu": False,
        "save_dir": str(folder / "out"),
        "worker_num": 0,
        "log_iter": 1,
        "epoch": 1,
        "CycleMLP": {"pretrained": None},
        "TrainDataset": dataset(folder, "train"),
        "TrainReader": {**_small(reader), "batch_size": 2, "use_shared_memory": False},
    }
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(merge(config, changes)))
    return path


def _small(value: Any, sizes: bool = False) -> Any:
    """A reader whose images have sides of SIZE."""
    if isinstance(value, dict):
        return {
            key: _small(part, key in ("target_size", "short_side_sizes", "min_size", "max_size"))
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [_small(part, sizes) for part in value]
    return SIZE if sizes else value
