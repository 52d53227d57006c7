"""`cyclemlp seg`: PaddleSeg's training, evaluation, prediction and export with our backbones registered."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from cyclemlp_backbones.cli.toolkit import Toolkit, boolean, is_complete, run_toolkit

_DEVICES = ("cpu", "gpu", "xpu", "npu", "mlu")

_USAGE = """usage: cyclemlp seg train|val|predict|export --config FILE …   with the installed PaddleSeg
       cyclemlp seg path/to/tools/train.py …                   runs a PaddleSeg checkout's own script
       cyclemlp seg --launcher                                 prints the file to give to paddle.distributed.launch

`cyclemlp seg train --help` lists the flags; they are those of PaddleSeg's tools/train.py, and so on.
On several devices:
       python -m paddle.distributed.launch --devices 0,1 "$(cyclemlp seg --launcher)" seg train --config FILE …
On a CPU: `--nproc_per_node 2 --backend gloo` instead of `--devices 0,1`."""


def _parser(action: str, summary: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"cyclemlp seg {action}", description=summary, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="configuration file, YAML")
    parser.add_argument(
        "--opts",
        nargs="+",
        metavar="KEY=VALUE",
        help="override the configuration, for example model.backbone.pretrained=b1.pdparams",
    )
    if action != "export":
        parser.add_argument(
            "--device", default="gpu", choices=_DEVICES, help="falls back to the CPU (default: %(default)s)"
        )
    if action in ("train", "val"):
        parser.add_argument(
            "--num_workers", type=int, default=0, help="processes that load data (default: %(default)s)"
        )
        parser.add_argument(
            "--data_format",
            default="NCHW",
            choices=("NCHW", "NHWC"),
            help="NHWC is for DeepLabV3P (default: %(default)s)",
        )
    if action != "train":
        parser.add_argument("--model_path", help="trained weights, .pdparams")
    return parser


def _add_test_flags(parser: argparse.ArgumentParser, augment: str) -> None:
    parser.add_argument(f"--{augment}", action="store_true", help="average over scales and flips")
    parser.add_argument(
        "--scales", nargs="+", type=float, default=1.0, help=f"scales for --{augment} (default: %(default)s)"
    )
    parser.add_argument("--flip_horizontal", action="store_true", help=f"with --{augment}, also mirrored left to right")
    parser.add_argument("--flip_vertical", action="store_true", help=f"with --{augment}, also upside down")
    parser.add_argument("--is_slide", action="store_true", help="slide a window over the image")
    parser.add_argument("--crop_size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="window of --is_slide")
    parser.add_argument("--stride", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="steps of --is_slide")


def _train_parser() -> argparse.ArgumentParser:
    parser = _parser("train", "Train a segmentation model with PaddleSeg.")
    parser.add_argument("--save_dir", default="./output", help="folder of the checkpoints (default: %(default)s)")
    parser.add_argument("--do_eval", action="store_true", help="evaluate at every checkpoint and keep the best model")
    parser.add_argument("--use_vdl", action="store_true", help="log for VisualDL into --save_dir")
    parser.add_argument("--use_ema", action="store_true", help="also keep an exponential moving average of the weights")
    parser.add_argument("--resume_model", metavar="DIR", help="continue from a folder iter_N")
    parser.add_argument("--iters", type=int, help="iterations; default: the configuration's")
    parser.add_argument("--batch_size", type=int, help="images per device; default: the configuration's")
    parser.add_argument("--learning_rate", type=float, help="default: the configuration's")
    parser.add_argument(
        "--save_interval", type=int, default=1000, help="iterations between checkpoints (default: %(default)s)"
    )
    parser.add_argument(
        "--log_iters", type=int, default=10, help="iterations between lines of the log (default: %(default)s)"
    )
    parser.add_argument("--keep_checkpoint_max", type=int, default=5, help="checkpoints to keep (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="seed of Paddle, numpy and random")
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "fp16"),
        help="fp16: mixed precision on GPU and XPU (default: %(default)s)",
    )
    parser.add_argument(
        "--amp_level", default="O1", choices=("O1", "O2"), help="level of mixed precision (default: %(default)s)"
    )
    parser.add_argument("--profiler_options", help="options of PaddleSeg's profiler, for example 'batch_range=[10,20]'")
    parser.add_argument(
        "--repeats", type=int, default=1, help="times that an epoch shows each image (default: %(default)s)"
    )
    return parser


def _val_parser() -> argparse.ArgumentParser:
    parser = _parser("val", "Evaluate a segmentation model with PaddleSeg.")
    _add_test_flags(parser, "aug_eval")
    parser.add_argument(
        "--auc_roc",
        nargs="?",
        type=boolean,
        const=True,
        default=False,
        metavar="BOOL",
        help="also the area under the ROC curve",
    )
    return parser


def _predict_parser() -> argparse.ArgumentParser:
    parser = _parser("predict", "Segment images with PaddleSeg.")
    parser.add_argument("--image_path", required=True, help="an image, a folder of images, or a list of images")
    parser.add_argument("--save_dir", default="./output/result", help="folder of the results (default: %(default)s)")
    _add_test_flags(parser, "aug_pred")
    parser.add_argument(
        "--custom_color",
        nargs="+",
        type=int,
        metavar="RGB",
        help="colours of the classes: R G B of class 0, of class 1, …",
    )
    return parser


def _export_parser() -> argparse.ArgumentParser:
    parser = _parser("export", "Write an inference model with its deploy.yaml.")
    parser.add_argument("--save_dir", default="./output/inference_model", help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--input_shape",
        nargs=4,
        type=int,
        metavar=("N", "C", "H", "W"),
        help="fixed shape; default: 3 channels, any size",
    )
    parser.add_argument(
        "--output_op",
        default="argmax",
        choices=("argmax", "softmax", "none"),
        help="last operation (default: %(default)s)",
    )
    parser.add_argument("--for_fd", action="store_true", help="file names as FastDeploy wants them")
    return parser


_PARSERS = {"train": _train_parser, "val": _val_parser, "predict": _predict_parser, "export": _export_parser}


def _interrupted(args: argparse.Namespace) -> str:
    save_dir = Path(args.save_dir)
    folders = [folder for folder in save_dir.glob("iter_*") if re.fullmatch(r"iter_\d+", folder.name)]
    for folder in sorted(folders, key=lambda folder: int(folder.name.removeprefix("iter_")), reverse=True):
        if is_complete(folder / "model.pdopt"):  # written last
            return f"interrupted; go on with --resume_model {folder}"
    return f"interrupted before the first checkpoint in {save_dir}"


_PADDLESEG = Toolkit(
    name="PaddleSeg",
    package="paddleseg",
    command="seg",
    adapter="cyclemlp_backbones.adapters.paddleseg",
    tools="cyclemlp_backbones.adapters.paddleseg.launch",
    usage=_USAGE,
    parsers=_PARSERS,
    interrupted=_interrupted,
)


def main(argv: list[str]) -> int:
    return run_toolkit(_PADDLESEG, argv)
