"""PaddleDetection's models and preprocessing for `cyclemlp export`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.static import InputSpec
from ppdet.core.workspace import create
from ppdet.data.source.category import get_categories

from cyclemlp_backbones.adapters.launch import config_errors
from cyclemlp_backbones.adapters.paddledet import register_paddledet
from cyclemlp_backbones.adapters.paddledet.launch import read_config
from cyclemlp_backbones.adapters.paddledet.rcnn import OpenRCNN, decode
from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.deploy.export import IMAGE, Exportable, variant_of
from cyclemlp_backbones.deploy.manifest import Preprocessing
from cyclemlp_backbones.deploy.networks import numbered, read_class_names
from cyclemlp_backbones.pictures import class_palette
from cyclemlp_backbones.weights.loading import load_model_weights

_INTERPOLATIONS = {0: "nearest", 1: "bilinear", 2: "bicubic"}
_PAIR = [None, 2]


class _Detector(nn.Layer):
    """A PaddleDetection model as a function of its three inputs: boxes [R, 6], how many each image has, masks."""

    def __init__(self, model: nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor) -> list[Tensor]:
        outputs = self.model({"image": image, "im_shape": im_shape, "scale_factor": scale_factor})
        return [outputs[name] for name in ("bbox", "bbox_num", "mask") if name in outputs]


class RetinaNetCandidates(nn.Layer):
    """RetinaNet without non-maximum suppression, and without a loop over the images of a batch, for ONNX.

    image [N, 3, H, W] -> boxes [N, R, 4] (x1, y1, x2, y2 in the image's pixels) and scores [N, R, classes], of the
    `nms_pre` best candidates of each level.
    """

    def __init__(self, model: nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> list[Tensor]:
        head = self.model.head
        logits, deltas = head(self.model.neck(self.model.backbone({"image": image})))
        boxes, scores = [], []
        for anchors, score, delta in zip(head.anchor_generator(logits), logits, deltas):
            score = F.sigmoid(score.transpose([0, 2, 3, 1]).reshape([0, -1, head.num_classes]))
            delta = delta.transpose([0, 2, 3, 1]).reshape([0, -1, 4])
            candidates = paddle.shape(score)[1:2].astype("int64")
            most = paddle.minimum(candidates, paddle.full([1], head.nms_pre, "int64"))
            _, best = paddle.topk(score.max(axis=2), most, axis=1)
            best = best.unsqueeze(2)
            scores.append(paddle.take_along_axis(score, best, axis=1, broadcast=True))
            anchors = anchors.unsqueeze(0) + paddle.zeros_like(
                delta
            )  # ONNX gathers from as many images as it chooses for
            chosen = paddle.take_along_axis(anchors, best, axis=1, broadcast=True)
            delta = paddle.take_along_axis(delta, best, axis=1, broadcast=True)
            boxes.append(decode(delta / paddle.to_tensor(head.weights, "float32"), chosen))
        return [paddle.concat(boxes, axis=1), paddle.concat(scores, axis=1)]


def det_export(
    checkpoint: str,
    config_path: str,
    *,
    format: str,
    opts: Sequence[str] = (),
    class_names: str | None = None,
) -> Exportable:
    """A detector from the weights that training saved, and its configuration.

    Raises ValueError for a configuration that cannot be exported, CheckpointError for weights that do not fit.
    """
    register_paddledet(repair=True)
    config = read_config(config_path, [*opts, "CycleMLP.pretrained=null"])
    with config_errors(config_path):
        model = create(config.architecture)
    load_model_weights(model, checkpoint)
    model.eval()
    backbone = getattr(model, "backbone", None)
    classes, category_ids = _classes(config, class_names)
    common = {
        "task": "det",
        "architecture": config.architecture,
        "variant": variant_of(backbone) if isinstance(backbone, CycleNet) else None,
        "preprocessing": det_preprocessing(config, config_path),
        "classes": classes,
        "category_ids": category_ids,
        "palette": class_palette(len(classes) + 1)[1:],
    }
    inputs = ("image", "im_shape", "scale_factor")
    spec = [IMAGE, *(InputSpec(_PAIR, "float32", name=name) for name in inputs[1:])]
    masks = ("mask",) if getattr(model, "with_mask", False) or hasattr(model, "mask_head") else ()
    outputs = ("bbox", "bbox_num", *masks)
    if format == "paddle":
        return Exportable(layer=_Detector(model), inputs=inputs, outputs=outputs, input_spec=spec, **common)
    if hasattr(model, "rpn_head"):
        spec += [InputSpec([None] * 3, "float32", name=name) for name in ("proposals", "detections")]
        return Exportable(layer=OpenRCNN(_Detector(model)), inputs=inputs, outputs=outputs, input_spec=spec, **common)
    if config.architecture != "RetinaNet":
        raise ValueError(
            f"{config_path}: {config.architecture} has no ONNX export, RetinaNet and R-CNNs have; export it with "
            "--format paddle"
        )
    nms = model.head.nms
    return Exportable(
        layer=RetinaNetCandidates(model),
        inputs=("image",),
        outputs=("boxes", "scores"),
        input_spec=[IMAGE],
        nms={
            name: float(getattr(nms, name)) for name in ("score_threshold", "nms_threshold", "nms_top_k", "keep_top_k")
        },
        **common,
    )


def _classes(config: Any, class_names: str | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category ids, from a file of names or TestDataset's annotations, else numbers."""
    count = config.num_classes
    if class_names:
        return read_class_names(class_names, count), tuple(range(count))
    with config_errors("TestDataset"):
        dataset = create("TestDataset")()
        path = dataset.get_anno() if hasattr(dataset, "get_anno") else None
        if not path or not os.path.isfile(path):
            return numbered(count), tuple(range(count))
        ids, names = get_categories(config.metric, path)
    if ids is None or len(ids) != count:
        raise ValueError(f"{path} names {len(ids or ())} classes, num_classes is {count}")
    return tuple(str(names[ids[number]]) for number in range(count)), tuple(int(ids[number]) for number in range(count))


def det_preprocessing(config: Any, where: str) -> Preprocessing:
    """TestReader's transforms: Decode, at most one Resize, NormalizeImage, Permute; padding to a multiple."""
    settings: dict[str, Any] = {"pad_to": 32}  # what the pyramid needs, whatever the reader says
    for step in config.TestReader["sample_transforms"]:
        ((kind, options),) = step.items()
        if kind == "Resize" and "resize" not in settings:
            target = options["target_size"]
            low, high = (target, target) if isinstance(target, int) else target
            settings["interpolation"] = _INTERPOLATIONS.get(options.get("interp", 1))
            keep = options.get("keep_ratio", True)
            settings["resize"] = "within" if keep else "exact"
            settings["size"] = (min(low, high), max(low, high)) if keep else (low, high)
        elif kind == "NormalizeImage" and options.get("is_scale", True):
            settings.update(mean=tuple(options["mean"]), std=tuple(options["std"]))
        elif kind not in ("Decode", "Permute"):
            raise ValueError(
                f"{where}: TestReader's {kind} {dict(options or {})} cannot be exported; Decode, one Resize, "
                "NormalizeImage with is_scale, and Permute can"
            )
    if "mean" not in settings or settings.get("interpolation", "bilinear") is None:
        raise ValueError(f"{where}: TestReader needs NormalizeImage, and interp 0, 1 or 2 in Resize")
    return Preprocessing(**settings)
