"""PaddleSeg's models and preprocessing for `cyclemlp export`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import paddle
from paddle import Tensor, nn
from paddleseg.cvlibs import SegBuilder

from cyclemlp_backbones.adapters.paddleseg import register_paddleseg
from cyclemlp_backbones.adapters.paddleseg.launch import leave_out_pretrained, read_config, seg_errors
from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.deploy.export import IMAGE, Exportable, variant_of
from cyclemlp_backbones.deploy.manifest import Preprocessing
from cyclemlp_backbones.deploy.networks import numbered, read_class_names
from cyclemlp_backbones.pictures import class_palette
from cyclemlp_backbones.weights.loading import load_model_weights

_INTERPOLATIONS = {"NEAREST": "nearest", "LINEAR": "bilinear", "CUBIC": "bicubic"}


class _FirstOutput(nn.Layer):
    """A PaddleSeg model's logits [N, classes, H, W], without its auxiliary heads."""

    def __init__(self, model: nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)[0]


def seg_export(
    checkpoint: str, config_path: str, *, opts: Sequence[str] = (), class_names: str | None = None
) -> Exportable:
    """A segmentation model from the weights that training saved, and its configuration: logits at the image's size.

    Raises ValueError for a configuration that PaddleSeg does not take or a transform that cannot be exported,
    CheckpointError for weights that do not fit.
    """
    register_paddleseg(repair=True)
    os.environ["PADDLESEG_EXPORT_STAGE"] = "True"  # PaddleSeg's layers then leave SyncBatchNorm out
    config = read_config(config_path, opts)
    with seg_errors(config_path):
        leave_out_pretrained(config)
        model = SegBuilder(config).model
        transforms = config.val_dataset_cfg.get("transforms") or []
    load_model_weights(model, checkpoint)
    model.eval()
    with paddle.no_grad():
        num_classes = model(paddle.zeros([1, 3, 64, 64]))[0].shape[1]  # a configuration may leave it to its data set
    backbone = getattr(model, "backbone", None)
    return Exportable(
        layer=_FirstOutput(model),
        task="seg",
        architecture=type(model).__name__,
        variant=variant_of(backbone) if isinstance(backbone, CycleNet) else None,
        inputs=("image",),
        outputs=("logits",),
        input_spec=[IMAGE],
        preprocessing=seg_preprocessing(transforms, config_path),
        classes=read_class_names(class_names, num_classes) if class_names else numbered(num_classes),
        palette=class_palette(num_classes),
    )


def seg_preprocessing(transforms: Sequence[Mapping[str, Any]], where: str) -> Preprocessing:
    """The transforms of a validation set: at most one Resize or ResizeByShort, and Normalize."""
    settings: dict[str, Any] = {}
    for transform in transforms:
        kind = transform["type"]
        if kind == "Normalize" and "mean" not in settings:
            mean, std = (tuple(transform.get(key, (0.5, 0.5, 0.5))) for key in ("mean", "std"))
            settings.update(mean=mean * 3 if len(mean) == 1 else mean, std=std * 3 if len(std) == 1 else std)
        elif kind == "Resize" and "resize" not in settings:
            settings.update(_resize(transform, where))
        elif kind == "ResizeByShort" and "resize" not in settings and isinstance(transform["short_size"], int):
            longest = transform.get("max_size")
            settings.update(resize="within" if longest else "short")
            settings["size"] = (transform["short_size"], int(longest)) if longest else (transform["short_size"],)
        else:
            raise ValueError(
                f"{where}: val_dataset's transform {dict(transform)} cannot be exported; one of Resize and "
                "ResizeByShort, and one Normalize can"
            )
    if "mean" not in settings:
        raise ValueError(f"{where}: val_dataset's transforms have no Normalize; the exported model needs one")
    return Preprocessing(**settings)


def _resize(transform: Mapping[str, Any], where: str) -> dict[str, Any]:
    width, height = transform.get("target_size", (512, 512))
    interpolation = _INTERPOLATIONS.get(transform.get("interp", "LINEAR"))
    if interpolation is None or transform.get("size_divisor"):
        raise ValueError(
            f"{where}: val_dataset's {dict(transform)} cannot be exported; "
            f"it takes interp {', '.join(_INTERPOLATIONS)} and no size_divisor"
        )
    if transform.get("keep_ratio"):
        return {"resize": "within", "size": (min(width, height), max(width, height)), "interpolation": interpolation}
    return {"resize": "exact", "size": (height, width), "interpolation": interpolation}
