"""Runs of `make compare-chain`, in a process with one thread: each trains a backbone for one task and scores it.

    python demo/chain_run.py '{"runs": [{…}, …]}'    (the fields of Run; chain.py makes them)
    python demo/chain_run.py '{"measure": {…}}'      (seconds of a step of every backbone)

Loop and data are the same for all backbones and tasks; heads, losses and metrics are the toolkits' own.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from classification.schedule import learning_rate
from cyclemlp_backbones.digits import CLASSES, Scene, make_scene
from cyclemlp_backbones.files import write_atomically
from cyclemlp_backbones.timing import describe_machine, measure
from demo.steps import ROOT, write_json

RETINANET = ROOT / "det_configs" / "demo" / "retinanet_cyclemlp_b0_digits.yml"
ANCHORS = "RetinaHead.anchor_generator.octave_base_scale=3.0"  # 24 pixels and more: digits have 20 to 30
NARROW = {"fpn_channels": 64, "head_channels": 64}  # as in the demos: wide heads would cost more than the backbones
SIZE, BATCH_SIZE = 32, 16
TRAIN_SCENES = 6000
CURVE_POINTS = 20
DATA_SEED = 0

TASKS = {
    "classify": ("pretraining", "top-1"),
    "segment": ("segmentation", "mIoU"),
    "detect": ("detection", "AP50"),
}
"""Title and metric; all are of the same scenes of one digit: which it is, its pixels, its box."""

BACKBONES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "cyclemlp_b1": ("CycleMLP-B1", "CycleMLP_B1", {"drop_path_rate": 0.0}),
    "resnet50_vd": ("ResNet-50-vd", "ResNet50_vd", {"output_stride": 32}),
    "mit_b0": ("MiT-B0", "MixVisionTransformer_B0", {}),
    "cyclemlp_b0": ("CycleMLP-B0", "CycleMLP_B0", {"drop_path_rate": 0.0}),
}
"""Title, name in PaddleSeg's registry, and arguments."""


@dataclass(frozen=True)
class Run:
    """What is trained, for how many steps, and which scenes score it: "held-out" ones of the training split or those
    of the "test" split, which has other digits and other parts of the photographs. `start` names the run whose backbone
    it begins with."""

    task: str
    backbone: str
    rate: float
    seed: int
    steps: int
    scored_on: str
    scenes: int
    start: str | None = None

    @property
    def key(self) -> str:
        """The name of its files; only a run with another `start` may have the same."""
        numbers = f"rate-{self.rate:g}-seed-{self.seed}-steps-{self.steps}"
        return f"{self.task}-{self.backbone}-{numbers}-{self.scored_on}-{self.scenes}"


@dataclass(frozen=True)
class Examples:
    """Images uint8 [N, S, S, 3], and of each scene what a task asks for: a class [N], a map of classes [N, S, S], or
    boxes float32 [k, 4] (x0, y0, x1, y1) and classes [k] in a list."""

    images: np.ndarray
    targets: Any


def _target(task: str, scene: Scene) -> Any:
    if task == "classify":
        return scene.digits[0].value
    if task == "segment":
        return scene.class_map
    boxes = np.array([digit.box for digit in scene.digits], np.float32)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), np.array([d.value for d in scene.digits])


@functools.cache
def examples(task: str, part: str, count: int) -> Examples:
    """The first `count` of a part: "train" (TRAIN_SCENES at most), "held-out" (the training split's scenes after
    those), or "test"."""
    first = TRAIN_SCENES if part == "held-out" else 0
    split = "val" if part == "test" else "train"
    scenes = [make_scene(split, i, size=SIZE, seed=DATA_SEED, max_digits=1) for i in range(first, first + count)]
    targets = [_target(task, scene) for scene in scenes]
    return Examples(np.stack([s.image for s in scenes]), targets if task == "detect" else np.array(targets, np.int64))


def batches(data: Examples, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, Any]]:
    """Images float32 [B, 3, S, S] in -1..1 and targets, without end; an epoch's rest is dropped. Scenes are taken as
    they are: the generator is the augmentation, and few are seen twice."""
    while True:
        order = rng.permutation(len(data.images))
        for first in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            chosen = order[first : first + BATCH_SIZE]
            listed = isinstance(data.targets, list)
            yield (
                normalise(data.images[chosen]),
                [data.targets[index] for index in chosen] if listed else data.targets[chosen],
            )


def normalise(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1


def build_backbone(name: str) -> Any:
    """From PaddleSeg's registry, where ours are too; random weights, no stochastic depth."""
    from paddleseg.cvlibs import manager

    from cyclemlp_backbones.adapters.paddleseg import register_paddleseg

    register_paddleseg(repair=True)
    _, registered, arguments = BACKBONES[name]
    backbone = manager.BACKBONES[registered](**arguments)
    if hasattr(backbone, "reset_drop_path"):
        backbone.reset_drop_path(0.0)
    return backbone


def build_classifier(backbone: Any) -> tuple[Any, Callable]:
    import paddle.nn as nn
    import paddle.nn.functional as F

    class Classifier(nn.Layer):
        """Image [N, 3, H, W] -> logits [N, 10] of the pooled last map."""

        def __init__(self):
            super().__init__()
            self.backbone = backbone
            # Small weights: maps without a norm, as a ResNet's, would make large logits of Paddle's default ones.
            self.head = nn.Linear(backbone.feat_channels[-1], 10, weight_attr=nn.initializer.Normal(std=0.01))

        def forward(self, image):
            return self.head(self.backbone(image)[-1].mean([2, 3]))

    return Classifier(), lambda model, images, targets: F.cross_entropy(model(images), targets)


def build_segmenter(backbone: Any) -> tuple[Any, Callable]:
    from paddleseg.models.losses import CrossEntropyLoss

    from cyclemlp_backbones.heads.semantic_fpn import SemanticFPN

    entropy = CrossEntropyLoss()
    model = SemanticFPN(len(CLASSES), backbone, **NARROW)
    return model, lambda model, images, targets: entropy(model(images)[0], targets)


def build_detector(backbone: Any) -> tuple[Any, Callable]:
    """PaddleDetection's RetinaNet of the demo's configuration on any backbone that lists its `feat_channels`."""
    import paddle
    import paddle.nn as nn

    from cyclemlp_backbones.adapters.paddledet import register_paddledet
    from cyclemlp_backbones.adapters.paddledet.launch import read_config

    register_paddledet(repair=True)
    from ppdet.core.workspace import create
    from ppdet.modeling.architectures import RetinaNet
    from ppdet.modeling.shape_spec import ShapeSpec

    class Body(nn.Layer):
        """`inputs["image"]` [N, 3, H, W] -> the maps of strides 8, 16 and 32."""

        def __init__(self):
            super().__init__()
            self.maps = backbone

        def forward(self, inputs):
            return self.maps(inputs["image"])[1:]

    read_config(str(RETINANET), [ANCHORS])
    shapes = [ShapeSpec(channels=c, stride=s) for c, s in zip(backbone.feat_channels[1:], (8, 16, 32))]
    neck = create("FPN", input_shape=shapes)
    model = RetinaNet(Body(), neck, create("RetinaHead"))

    def loss(model: Any, images: Any, targets: Sequence[tuple[np.ndarray, np.ndarray]]) -> Any:
        boxes, classes = zip(*targets)
        truth = {"gt_bbox": list(map(paddle.to_tensor, boxes)), "gt_class": list(map(paddle.to_tensor, classes))}
        return model({**_detector_inputs(images), **truth})["loss"]

    return model, loss


def _detector_inputs(images: Any) -> dict[str, Any]:
    import paddle

    count, _, height, width = images.shape
    shape = paddle.to_tensor(np.array([[height, width]] * count, np.float32))
    return {"image": images, "im_shape": shape, "scale_factor": paddle.ones([count, 2])}


BUILDERS = {"classify": build_classifier, "segment": build_segmenter, "detect": build_detector}


class Trainer:
    """A backbone with the task's head; `step()` is one update. AdamW, without weight decay on norms and biases, linear
    warm-up over a tenth of `steps`, cosine to 0. Everything random follows from `seed`."""

    def __init__(self, task: str, backbone: str, rate: float, steps: int, seed: int, start: Path | None = None):
        import paddle

        paddle.seed(seed)
        np.random.seed(seed)
        self.task, self.rate, self.steps, self.done = task, rate, steps, 0
        self.backbone = build_backbone(backbone)
        if start is not None:
            state = paddle.load(str(start))
            assert state.keys() == self.backbone.state_dict().keys()
            self.backbone.set_state_dict(state)
        self.model, self.loss = BUILDERS[task](self.backbone)
        self.batches = batches(examples(task, "train", TRAIN_SCENES), np.random.default_rng(seed))
        decayed = {p.name for p in self.model.parameters() if p.ndim > 1}
        self.optimizer = paddle.optimizer.AdamW(
            rate,
            beta2=0.99,
            weight_decay=0.05,
            parameters=self.model.parameters(),
            apply_decay_param_fun=lambda name: name in decayed,
        )

    def step(self) -> float:
        """The loss of the next batch, before the update."""
        import paddle

        warm_up = max(1, self.steps // 10)
        self.optimizer.set_lr(
            learning_rate(
                self.done, total_steps=self.steps, warmup_steps=warm_up, peak=self.rate, warmup_lr=0.0, min_lr=0.0
            )
        )
        self.model.train()
        images, targets = next(self.batches)
        targets = targets if isinstance(targets, list) else paddle.to_tensor(targets)
        loss = self.loss(self.model, paddle.to_tensor(images), targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        self.done += 1
        return float(loss)

    def score(self, data: Examples, batch_size: int = 100) -> float:
        """The task's metric, 0 to 1."""
        import paddle

        self.model.eval()
        with paddle.no_grad():
            parts = [
                paddle.to_tensor(normalise(data.images[first : first + batch_size]))
                for first in range(0, len(data.images), batch_size)
            ]
            if self.task == "detect":
                return box_ap50(self.model, parts, data.targets, data.images.shape[1])
            if self.task == "segment":
                return mean_iou(paddle.concat([self.model(part)[0].argmax(1) for part in parts]), data.targets)
            found = np.concatenate([self.model(part).argmax(1).numpy() for part in parts])
            return float((found == data.targets).mean())


def mean_iou(predictions: Any, truth: np.ndarray) -> float:
    """PaddleSeg's mIoU of maps of classes [N, H, W]."""
    import paddle
    from paddleseg.utils import metrics

    areas = metrics.calculate_area(predictions, paddle.to_tensor(truth), len(CLASSES))
    return float(metrics.mean_iou(*areas)[1])


def box_ap50(model: Any, parts: Sequence[Any], truth: Sequence[tuple[np.ndarray, np.ndarray]], size: int) -> float:
    """COCO's average precision at an overlap of 0.5 of what a detector of PaddleDetection finds."""
    found, first = [], 0
    for part in parts:
        output = model(_detector_inputs(part))
        numbers = output["bbox_num"].numpy()
        images = np.repeat(np.arange(first, first + len(numbers)), numbers)
        found += [(image, *row) for image, row in zip(images, output["bbox"].numpy().tolist())]
        first += len(numbers)
    return ap50(found, truth, size)


def ap50(found: Sequence[tuple], truth: Sequence[tuple[np.ndarray, np.ndarray]], size: int) -> float:
    """By pycocotools; `found` are (image, class, score, x0, y0, x1, y1)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations: list[dict[str, Any]] = []
    for image, (boxes, classes) in enumerate(truth):
        for (x0, y0, x1, y1), value in zip(boxes.tolist(), classes.tolist()):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": value, **box})
    results = [
        {"image_id": int(i), "category_id": int(c), "score": score, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for i, c, score, x0, y0, x1, y1 in found
        if c >= 0  # a row of -1 stands for no box at all
    ]
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        gold = COCO()
        images = [{"id": image, "height": size, "width": size} for image in range(len(truth))]
        gold.dataset = {"images": images, "categories": [{"id": k} for k in range(10)], "annotations": annotations}
        gold.createIndex()
        evaluation = COCOeval(gold, gold.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Trains and scores; what is measured, with the backbone's weights beside it in `folder` if others begin with them.

    `seconds` are this process's CPU time in its steps, data included and scoring excluded; `wall_seconds` what the
    clock on the wall said of the same steps; `curve` the mean loss of every twentieth of the steps, before the updates.
    """
    import paddle

    start = None if run.start is None else folder / f"{run.start}.pdparams"
    trainer = Trainer(run.task, run.backbone, run.rate, run.steps, run.seed, start)
    seconds, wall, losses = [0.0], 0.0, []
    for _ in range(run.steps):
        cpu, clock = time.process_time(), time.perf_counter()
        losses.append(trainer.step())
        seconds.append(seconds[-1] + time.process_time() - cpu)
        wall += time.perf_counter() - clock
    score = trainer.score(examples(run.task, run.scored_on, run.scenes))
    if run.task == "classify":
        state = trainer.backbone.state_dict()
        write_atomically(folder / f"{run.key}.pdparams", lambda path: paddle.save(state, str(path)))
    parts = np.array_split(np.arange(run.steps), min(CURVE_POINTS, run.steps))
    return {
        "run": asdict(run),
        "score": round(score, 4),
        "seconds": round(seconds[-1], 2),
        "wall_seconds": round(wall, 2),
        "parameters": sum(p.size for p in trainer.backbone.parameters() if not p.stop_gradient),
        "curve": [
            {"seconds": round(seconds[part[-1] + 1], 2), "loss": round(float(np.mean([losses[i] for i in part])), 4)}
            for part in parts
        ],
    }


def step_seconds(
    task: str, backbones: Sequence[str], rounds: int, known: Mapping[str, float] | None = None
) -> dict[str, float]:
    """CPU seconds of a step of `backbones`: the least of `rounds` in turns. Where others are `known`, the first of them
    takes its turns too, and the times are put in relation to its known one: the machine may have been faster then."""
    reference = next(iter(known or {}), backbones[0])
    names = dict.fromkeys([reference, *backbones])
    calls = {name: Trainer(task, name, 1e-4, 1000, 0).step for name in names}
    found = measure(calls, rounds=rounds, least_seconds=0.3, clock=time.process_time)
    scale = known[reference] / found[reference].minimum if known else 1.0
    return {name: scale * found[name].minimum for name in backbones}


def main(request: Mapping[str, Any]) -> None:
    folder = Path(request["folder"])
    if "measure" in request:
        path = folder / "measured.json"
        empty = {"machine": describe_machine(), "seconds": {task: {} for task in TASKS}}
        measured = json.loads(path.read_text()) if path.is_file() else empty
        for task, known in measured["seconds"].items():
            known |= step_seconds(task, **request["measure"], known=dict(known))
        write_atomically(path, lambda path: write_json(path, measured))
        return
    for values in request["runs"]:
        run = Run(**values)
        result = train(run, folder)
        write_atomically(folder / f"{run.key}.json", lambda path, result=result: write_json(path, result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
