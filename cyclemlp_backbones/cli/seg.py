"""`cyclemlp seg`: PaddleSeg's training, evaluation, prediction and export with our backbones registered."""

from __future__ import annotations

from collections.abc import Sequence

from cyclemlp_backbones.cli.toolkit import Flag, Toolkit, flag, switch, truth

_DEVICES = ("cpu", "gpu", "xpu", "npu", "mlu")
_CONFIG = [
    flag("--config", "configuration file, YAML", required=True),
    flag(
        "--opts",
        "override the configuration, for example model.backbone.pretrained=b1.pdparams",
        nargs="+",
        metavar="KEY=VALUE",
    ),
]
_DEVICE = [flag("--device", "falls back to the CPU", default="gpu", choices=_DEVICES)]
_DATA = [
    flag("--num_workers", "processes that load data", type=int, default=0),
    flag("--data_format", "NHWC is for DeepLabV3P", default="NCHW", choices=("NCHW", "NHWC")),
]
_WEIGHTS = [flag("--model_path", "trained weights, .pdparams")]


def _test(augment: str) -> Sequence[Flag]:
    """Test-time augmentation, which PaddleSeg calls `augment`, and sliding windows."""
    size = {"nargs": 2, "type": int, "metavar": ("WIDTH", "HEIGHT")}
    return [
        switch(f"--{augment}", "average over scales and flips"),
        flag("--scales", f"scales for --{augment}", nargs="+", type=float, default=1.0),
        switch("--flip_horizontal", f"with --{augment}, also mirrored left to right"),
        switch("--flip_vertical", f"with --{augment}, also upside down"),
        switch("--is_slide", "slide a window over the image"),
        flag("--crop_size", "window of --is_slide", **size),
        flag("--stride", "steps of --is_slide", **size),
    ]


_TRAIN = [
    flag("--save_dir", "folder of the checkpoints", default="./output"),
    switch("--do_eval", "evaluate at every checkpoint and keep the best model"),
    switch("--use_vdl", "log for VisualDL into --save_dir"),
    switch("--use_ema", "also keep an exponential moving average of the weights"),
    flag("--resume_model", "continue from a folder iter_N", metavar="DIR"),
    flag("--iters", "iterations; default: the configuration's", type=int),
    flag("--batch_size", "images per device; default: the configuration's", type=int),
    flag("--learning_rate", "default: the configuration's", type=float),
    flag("--save_interval", "iterations between checkpoints", type=int, default=1000),
    flag("--log_iters", "iterations between lines of the log", type=int, default=10),
    flag("--keep_checkpoint_max", "checkpoints to keep", type=int, default=5),
    flag("--seed", "seed of Paddle, numpy and random", type=int),
    flag("--precision", "fp16: mixed precision on GPU and XPU", default="fp32", choices=("fp32", "fp16")),
    flag("--amp_level", "level of mixed precision", default="O1", choices=("O1", "O2")),
    flag("--profiler_options", "options of PaddleSeg's profiler, for example 'batch_range=[10,20]'"),
    flag("--repeats", "times that an epoch shows each image", type=int, default=1),
]
_VAL = [truth("--auc_roc", "also the area under the ROC curve")]
_PREDICT = [
    flag("--image_path", "an image, a folder of images, or a list of images", required=True),
    flag("--save_dir", "folder of the results", default="./output/result"),
    flag("--custom_color", "colours: R G B of class 0, of class 1, …", nargs="+", type=int, metavar="RGB"),
]
_EXPORT = [
    flag("--save_dir", "folder to write", default="./output/inference_model"),
    flag(
        "--input_shape",
        "fixed shape; default: the backbone's channels, any size",
        nargs=4,
        type=int,
        metavar=("N", "C", "H", "W"),
    ),
    flag("--output_op", "last operation", default="argmax", choices=("argmax", "softmax", "none")),
    switch("--for_fd", "file names as FastDeploy wants them"),
]

_PADDLESEG = Toolkit(
    name="PaddleSeg",
    package="paddleseg",
    command="seg",
    adapter="paddleseg",
    config="--config",
    actions={
        "train": ("Train a segmentation model with PaddleSeg.", [*_CONFIG, *_DEVICE, *_DATA, *_TRAIN]),
        "val": (
            "Evaluate a segmentation model with PaddleSeg.",
            [*_CONFIG, *_DEVICE, *_DATA, *_WEIGHTS, *_test("aug_eval"), *_VAL],
        ),
        "predict": (
            "Segment images with PaddleSeg.",
            [*_CONFIG, *_DEVICE, *_WEIGHTS, *_PREDICT, *_test("aug_pred")],
        ),
        "export": ("Write an inference model with its deploy.yaml.", [*_CONFIG, *_WEIGHTS, *_EXPORT]),
    },
)

main = _PADDLESEG.main
