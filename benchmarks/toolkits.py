"""The toolkits' own trainers with our full-size configurations on the demo's scenes, and what is in a step.

A trainer runs within this process, as `cyclemlp seg train` and `cyclemlp det train` run it, one a process: a toolkit's
configuration is global.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from benchmarks.documents import ROOT
from cyclemlp_backbones.digits import CLASSES, DemoSettings, is_complete, write_demo_data

SHIPPED = {
    "semantic_fpn": "seg_configs/semantic_fpn/semantic_fpn_cyclemlp_b1_ade20k_512x512_40k.yml",
    "retinanet": "det_configs/retinanet_cyclemlp_b1_fpn_1x_coco.yml",
    "mask_rcnn": "det_configs/mask_rcnn_cyclemlp_b1_fpn_1x_coco.yml",
}
"""The configuration of each head that is run here."""

RESNET = "resnet50"
_LEVELS = {"retinanet": [1, 2, 3], "mask_rcnn": [0, 1, 2, 3]}
PARTS = ("data", "backbone", "heads", "loss", "backward", "optimizer", "rest")
"""Of a step: waiting for a batch, the backbone's forward, the rest of the model's, losses, all gradients, update and
clearing; `rest` is what the trainer does between them: reading values, logging, learning rate."""


@dataclass(frozen=True)
class Run:
    """`steps` of training a head on a backbone, "b0" to "b5" or "resnet50": `batch` crops of `crop` x `crop` pixels.

    `regions` of a picture are what Mask R-CNN trains on, 512 as shipped.
    """

    head: str
    backbone: str
    steps: int
    batch: int = 2
    crop: int = 512
    images: int = 16
    device: str = "cpu"
    amp: bool = False
    regions: int = 512

    @property
    def segments(self) -> bool:
        return self.head == "semantic_fpn"


def write_data(run: Run, folder: Path) -> Path:
    """The scenes of a run, a quarter larger than its crops; their folder below `folder`, where they may be already."""
    kind = "seg" if run.segments else "coco"
    settings = DemoSettings(kind, train=run.images, val=1, size=run.crop * 5 // 4)
    data = folder / kind
    if not is_complete(data, settings):
        write_demo_data(data, settings, force=True)
    return data


def write_config(run: Run, data: Path, folder: Path) -> Path:
    """The head's configuration with other data, crops, backbone and length; all else is as it is shipped."""
    base = ROOT / SHIPPED[run.head]
    changes = _seg_changes(run, data) if run.segments else _det_changes(run, data)
    changes["_base_" if run.segments else "_BASE_"] = str(base) if run.segments else [str(base)]
    path = folder / f"{run.head}_{run.backbone}.yml"
    path.write_text(yaml.safe_dump(changes))
    return path


def _seg_changes(run: Run, data: Path) -> dict[str, Any]:
    transforms = yaml.safe_load((ROOT / "seg_configs/_base_/ade20k.yml").read_text())["train_dataset"]["transforms"]
    for transform in transforms:
        transform.update({"crop_size": [run.crop] * 2} if "crop_size" in transform else {})
    own: dict[str, Any] = {"type": f"CycleMLP_{run.backbone.upper()}", "pretrained": None}
    if run.backbone == RESNET:
        own = {"_inherited_": False, "type": "ResNet50_vd", "output_stride": 32, "pretrained": None}
    shared = {"_inherited_": False, "type": "Dataset", "dataset_root": str(data), "num_classes": len(CLASSES)}
    return {
        "train_dataset": {**shared, "mode": "train", "train_path": f"{data}/train.txt", "transforms": transforms},
        "val_dataset": {**shared, "mode": "val", "val_path": f"{data}/val.txt", "transforms": [{"type": "Normalize"}]},
        "model": {"backbone": own},
        "batch_size": run.batch,
        "iters": run.steps,
    }


def _det_changes(run: Run, data: Path) -> dict[str, Any]:
    reader = yaml.safe_load((ROOT / "det_configs/_base_/reader.yml").read_text())["TrainReader"]
    for transform in reader["sample_transforms"]:
        if "RandomResize" in transform:
            transform["RandomResize"]["target_size"] = [[run.crop, run.crop]]
    epochs = -(-run.steps // (run.images // run.batch))
    changes: dict[str, Any] = {
        "num_classes": len(CLASSES) - 1,
        "use_gpu": run.device == "gpu",
        "worker_num": 0,
        "log_iter": 10,
        "epoch": epochs,
        "snapshot_epoch": epochs,
        "save_dir": str(data / "out"),
        "CycleMLP": {"pretrained": None, "arch": run.backbone},
        "TrainDataset": {
            "dataset_dir": str(data),
            "image_dir": "train",
            "anno_path": "annotations/instances_train.json",
        },
        "TrainReader": {**reader, "batch_size": run.batch, "use_shared_memory": False},
        "LearningRate": {
            "schedulers": [
                {"name": "CosineDecay", "max_epochs": epochs},
                {"name": "LinearWarmup", "start_factor": 0.1, "steps": max(1, run.steps // 10)},
            ]
        },
    }
    if run.head == "mask_rcnn":
        changes["BBoxAssigner"] = {"batch_size_per_im": run.regions}
        changes["RPNHead"] = {"train_proposal": {"post_nms_top_n": 4 * run.regions}}
    if run.backbone == RESNET:
        del changes["CycleMLP"]
        changes[{"retinanet": "RetinaNet", "mask_rcnn": "MaskRCNN"}[run.head]] = {"backbone": "ResNet"}
        changes["ResNet"] = {"depth": 50, "norm_type": "bn", "freeze_at": 0, "return_idx": _LEVELS[run.head]}
    return changes


def command(run: Run, config: Path, out: Path) -> list[str]:
    """What `cyclemlp` gets."""
    if run.segments:
        amp = ["--precision", "fp16"] if run.amp else []
        saving = ["--save_dir", str(out), "--save_interval", str(run.steps)]
        return ["seg", "train", "--config", str(config), "--device", run.device, "--seed", "0", *saving, *amp]
    return ["det", "train", "-c", str(config), "--enable_ce", "true", *(["--amp"] if run.amp else [])]


@dataclass
class Steps:
    """What `observed` saw: of each whole step the loss, seconds by `PARTS`, and those of all processors: "processor",
    of which "system" are the kernel's; processor seconds of reading, in a thread beside; the scalers that were made."""

    parts: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    reading: float = 0.0
    scalers: list[Any] = field(default_factory=list)
    _current: str = "rest"
    _since: float = 0.0
    _spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _model: Any = None
    _times: os.times_result = field(default_factory=os.times)

    @property
    def scale(self) -> float | None:
        """The loss scale at the end; None where no scaler is at work, as on a CPU."""
        states = [state for scaler in self.scalers if (state := scaler.state_dict())]
        return float(states[-1]["scale"][0]) if states else None

    def _switch(self, part: str) -> str:
        now, before = time.perf_counter(), self._current
        self._spent[before] += now - self._since
        self._current, self._since = part, now
        return before

    def _next_step(self) -> None:
        self._switch("rest")
        before, self._times = self._times, os.times()
        system = self._times.system - before.system
        if self._spent["backward"]:
            processor = system + self._times.user - before.user
            self.parts.append({part: self._spent[part] for part in PARTS} | {"processor": processor, "system": system})
        self._spent.clear()
        self._model = None

    @contextlib.contextmanager
    def _within(self, part: str) -> Iterator[None]:
        before = self._switch(part)
        try:
            yield
        finally:
            self._switch(before)

    def timed(self, part: str, function: Callable) -> Callable:
        """`function`, whose time counts as `part`, and no longer as what it is called in."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if part == "data":
                self._next_step()
            if part == "backward":
                scale = self.scale or 1.0
                self.losses.append(float(args[0]) / scale)
            with self._within(part):
                return function(*args, **kwargs)

        return call

    def layer(self, function: Callable) -> Callable:
        """`Layer.__call__`: the first one of a step is the whole model's, in which its backbone's counts by itself."""

        @wraps(function)
        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            if self._current == "rest":
                part = "loss" if self._model is not None else "heads"
                self._model = self._model or layer
            elif self._current == "heads" and layer is getattr(self._model, "backbone", None):
                part = "backbone"
            else:
                return function(layer, *args, **kwargs)
            with self._within(part):
                return function(layer, *args, **kwargs)

        return call

    def read(self, function: Callable) -> Callable:
        @wraps(function)
        def fetch(*args: Any, **kwargs: Any) -> Any:
            before = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.reading += time.thread_time() - before

        return fetch


@contextlib.contextmanager
def observed() -> Iterator[Steps]:
    """Watches the trainer that runs inside, whichever it is, through Paddle's own classes."""
    import paddle
    from paddle.io.dataloader import dataloader_iter, fetcher

    steps, scaler = Steps(), paddle.amp.GradScaler

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        steps.scalers.append(self)

    init = scaler.__init__
    with contextlib.ExitStack() as stack:

        def put(owner: Any, name: str, wrap: Callable[[Callable], Callable]) -> None:
            stack.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name))))

        put(scaler, "__init__", lambda function: made)
        for iterator in (dataloader_iter._DataLoaderIterSingleProcess, dataloader_iter._DataLoaderIterMultiProcess):
            put(iterator, "__next__", lambda function: steps.timed("data", function))
        put(fetcher._MapDatasetFetcher, "fetch", steps.read)
        put(paddle.nn.Layer, "__call__", steps.layer)
        put(paddle.nn.Layer, "clear_gradients", lambda function: steps.timed("optimizer", function))
        put(paddle.Tensor, "backward", lambda function: steps.timed("backward", function))
        for kind in (paddle.optimizer.Optimizer, paddle.optimizer.Adam, paddle.optimizer.AdamW):
            put(kind, "step", lambda function: steps.timed("optimizer", function))
        put(paddle.optimizer.Optimizer, "clear_grad", lambda function: steps.timed("optimizer", function))
        yield steps


def train(run: Run, folder: Path) -> Steps:
    """Trains in this process. RuntimeError where the trainer did not come to its end."""
    from cyclemlp_backbones import cli

    data = write_data(run, folder)
    config = write_config(run, data, folder)
    with observed() as steps:
        if run.head in _LEVELS:
            _time_losses(steps)
        status = cli.main(command(run, config, folder / "out"))
    if status:
        raise RuntimeError(f"cyclemlp {' '.join(command(run, config, folder / 'out'))}: status {status}")
    return steps


def _time_losses(steps: Steps) -> None:
    """PaddleDetection's heads compute their losses within the model."""
    from cyclemlp_backbones.adapters.launch import importing

    with importing("PaddleDetection", "ppdet", "det"):
        from ppdet.modeling.heads import BBoxHead, MaskHead, RetinaHead
        from ppdet.modeling.proposal_generator.rpn_head import RPNHead

    for kind in (RetinaHead, BBoxHead, MaskHead, RPNHead):
        kind.get_loss = steps.timed("loss", kind.get_loss)
