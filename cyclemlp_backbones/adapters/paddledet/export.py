"""PaddleDetection's models and preprocessing for `cyclemlp export`."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from typing import Any

from paddle import Tensor, nn
from paddle.static import InputSpec
from ppdet.core.workspace import create
from ppdet.data.source.category import get_categories

from cyclemlp_backbones.adapters.launch import config_errors
from cyclemlp_backbones.adapters.paddledet import register_paddledet
from cyclemlp_backbones.adapters.paddledet.launch import read_config
from cyclemlp_backbones.adapters.paddledet.rcnn import OpenRCNN
from cyclemlp_backbones.adapters.paddledet.suppression import Candidates, OneStage, head_of
from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.deploy.export import IMAGE, Exportable, variant_of
from cyclemlp_backbones.deploy.manifest import NMS, Preprocessing
from cyclemlp_backbones.deploy.networks import numbered, read_class_names
from cyclemlp_backbones.pictures import class_palette
from cyclemlp_backbones.weights.loading import load_model_weights

_log = logging.getLogger(__name__)

_INTERPOLATIONS = {0: "nearest", 1: "bilinear", 2: "bicubic"}
_PAIR = [None, 2]


class _Detector(nn.Layer):
    """A PaddleDetection model as a function of its three inputs: boxes [R, 6], how many each image has, masks."""

    def __init__(self, model: nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor) -> list[Tensor]:
        scale_factor = (
            scale_factor + 0 * im_shape
        )  # one-stage detectors read no im_shape, and Paddle saves no such input
        outputs = self.model({"image": image, "im_shape": im_shape, "scale_factor": scale_factor})
        return [outputs[name] for name in ("bbox", "bbox_num", "mask") if name in outputs]


def det_export(
    checkpoint: str,
    config_path: str,
    *,
    format: str,
    opts: Sequence[str] = (),
    class_names: str | None = None,
    nms: bool = False,
) -> Exportable:
    """A detector from the weights that training saved, and its configuration.

    `nms` puts suppression into an ONNX file of a one-stage detector too; Paddle's format and R-CNNs have it always.

    Raises ValueError for a configuration that cannot be exported, CheckpointError for weights that do not fit.
    """
    register_paddledet(repair=True)
    # An eval_size would keep RT-DETR's position embedding for images of that size alone.
    config = read_config(config_path, [*opts, "CycleMLP.pretrained=null", "eval_size=null"])
    with config_errors(config_path):
        model = create(config.architecture)
    load_model_weights(model, checkpoint)
    model.eval()
    if hasattr(model, "solov2_head"):
        raise ValueError(f"{config_path}: SOLOv2 gives masks without boxes, of one image at a time; it is not exported")
    backbone = getattr(model, "backbone", None)
    queries = getattr(getattr(model, "transformer", None), "num_queries", 0)
    classes, category_ids = _classes(config, class_names)
    common = {
        "task": "det",
        "architecture": config.architecture,
        "variant": variant_of(backbone) if isinstance(backbone, CycleNet) else None,
        "preprocessing": det_preprocessing(config, config_path, queries),
        "classes": classes,
        "category_ids": category_ids,
        "palette": class_palette(len(classes) + 1)[1:],
    }
    inputs = ("image", "im_shape", "scale_factor")
    spec = [IMAGE, *(InputSpec(_PAIR, "float32", name=name) for name in inputs[1:])]
    masks = ("mask",) if getattr(model, "with_mask", False) or hasattr(model, "mask_head") else ()
    outputs = ("bbox", "bbox_num", *masks)
    if format == "paddle" or queries:  # DINO and RT-DETR suppress nothing
        return Exportable(layer=_Detector(model), inputs=inputs, outputs=outputs, input_spec=spec, **common)
    rcnn, head = hasattr(model, "rpn_head"), head_of(model)
    if rcnn or (head and nms):
        layer, names = (OpenRCNN, ("proposals", "detections")) if rcnn else (OneStage, ("detections",))
        kept = [InputSpec([None] * 3, "float32", name=name) for name in names]
        return Exportable(
            layer=layer(_Detector(model)), inputs=inputs, outputs=outputs, input_spec=[*spec, kept], **common
        )
    if head is None:
        raise ValueError(
            f"{config_path}: {config.architecture} has no ONNX export, RetinaNet, GFL, FCOS, R-CNNs, DINO and "
            "RT-DETR have; export it with --format paddle"
        )
    settings = head.nms
    return Exportable(
        layer=Candidates(_Detector(model)),
        inputs=("image",),
        outputs=("boxes", "scores"),
        input_spec=[IMAGE],
        nms={name: float(getattr(settings, name)) for name in NMS},
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
            missing = f"TestDataset's annotations are not there, {path}" if path else "TestDataset has no annotations"
            _log.warning("%s: classes and category ids are numbers from 0; --class-names names the classes", missing)
            return numbered(count), tuple(range(count))
        ids, names = get_categories(config.metric, path)
    if ids is None or len(ids) != count:
        raise ValueError(f"{path} names {len(ids or ())} classes, num_classes is {count}")
    return tuple(str(names[ids[number]]) for number in range(count)), tuple(int(ids[number]) for number in range(count))


def det_preprocessing(config: Any, where: str, queries: int = 0) -> Preprocessing:
    """TestReader's transforms: Decode, at most one Resize, NormalizeImage, Permute; padding to a multiple.

    A transformer takes its `queries` from the positions of its maps, the first of which has stride 8.
    """
    # Whatever the reader says, a multiple of 32 is what the pyramid needs.
    settings: dict[str, Any] = {"pad_to": 32, "least": max(32, 8 * math.ceil(queries**0.5))}
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
