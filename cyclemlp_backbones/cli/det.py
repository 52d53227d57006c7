"""`cyclemlp det`: PaddleDetection's training, evaluation, inference and export with our backbone registered."""

from __future__ import annotations

import argparse
from pathlib import Path

from cyclemlp_backbones.cli.toolkit import Toolkit, boolean, is_complete, run_toolkit

_USAGE = """usage: cyclemlp det train|eval|infer|export -c FILE …      with the installed PaddleDetection
       cyclemlp det path/to/tools/train.py …               runs a PaddleDetection checkout's own script
       cyclemlp det --launcher                             prints the file to give to paddle.distributed.launch

`cyclemlp det train --help` lists the flags; they are those of PaddleDetection's tools/train.py, and so on.
On several devices:
       python -m paddle.distributed.launch --devices 0,1 "$(cyclemlp det --launcher)" det train -c FILE …
On a CPU: `--nproc_per_node 2 --backend gloo` instead of `--devices 0,1`."""


def _parser(action: str, summary: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"cyclemlp det {action}", description=summary, allow_abbrev=False)
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="configuration file, YAML")
    parser.add_argument(
        "-o",
        "--opt",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="override the configuration, for example weights=b1.pdparams TrainReader.batch_size=4 use_gpu=false",
    )
    parser.add_argument("--slim_config", metavar="FILE", help="configuration of PaddleSlim's compression")
    return parser


def _add_slices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slice_infer", action="store_true", help="cut images into slices and merge what is found")
    parser.add_argument(
        "--slice_size", nargs=2, type=int, default=[640, 640], metavar=("H", "W"), help="default: 640 640"
    )
    parser.add_argument(
        "--overlap_ratio", nargs=2, type=float, default=[0.25, 0.25], metavar=("H", "W"), help="default: 0.25 0.25"
    )
    parser.add_argument(
        "--combine_method",
        default="nms",
        choices=("nms", "concat"),
        help="how boxes of slices are merged (default: %(default)s)",
    )
    parser.add_argument(
        "--match_threshold", type=float, default=0.6, help="overlap of boxes to merge (default: %(default)s)"
    )
    parser.add_argument(
        "--match_metric",
        default="ios",
        choices=("iou", "ios"),
        help="overlap over the union or over the smaller box (default: %(default)s)",
    )


def _train_parser() -> argparse.ArgumentParser:
    parser = _parser("train", "Train a detector with PaddleDetection.")
    parser.add_argument("--eval", action="store_true", help="evaluate at every checkpoint and keep the best model")
    parser.add_argument("-r", "--resume", metavar="PDPARAMS", help="continue from a checkpoint, .pdparams with .pdopt")
    parser.add_argument("--enable_ce", nargs="?", type=boolean, const=True, default=False, help="fix the seed to 0")
    parser.add_argument("--amp", action="store_true", help="mixed precision, on a GPU")
    parser.add_argument("--fleet", action="store_true", help="distribute by paddle.distributed.fleet")
    parser.add_argument("--use_vdl", nargs="?", type=boolean, const=True, default=False, help="log for VisualDL")
    parser.add_argument(
        "--vdl_log_dir", default="vdl_log_dir/scalar", help="folder of VisualDL's log (default: %(default)s)"
    )
    parser.add_argument("--use_wandb", nargs="?", type=boolean, const=True, default=False, help="log for wandb")
    parser.add_argument(
        "--save_prediction_only", action="store_true", help="in evaluation, write boxes without scoring"
    )
    parser.add_argument(
        "-p",
        "--profiler_options",
        help="options of PaddleDetection's profiler, for example 'batch_range=[10,20];profile_path=profile'",
    )
    parser.add_argument("--save_proposals", action="store_true", help="write proposals at the end (SNIPER)")
    parser.add_argument(
        "--proposals_path", default="sniper/proposals.json", help="file of --save_proposals (default: %(default)s)"
    )
    parser.add_argument("--to_static", action="store_true", help="train as a static graph")
    return parser


def _eval_parser() -> argparse.ArgumentParser:
    parser = _parser("eval", "Evaluate a detector with PaddleDetection: average precision of boxes, and of masks.")
    parser.add_argument("--output_eval", metavar="DIR", help="folder of bbox.json and mask.json; default: the current")
    parser.add_argument("--json_eval", action="store_true", help="score the bbox.json and mask.json that are there")
    parser.add_argument("--bias", action="store_true", help="count widths and heights of boxes as x2 - x1 + 1")
    parser.add_argument("--classwise", action="store_true", help="also the average precision of each class")
    parser.add_argument("--save_prediction_only", action="store_true", help="write boxes without scoring")
    parser.add_argument("--amp", action="store_true", help="mixed precision, on a GPU")
    _add_slices(parser)
    return parser


def _infer_parser() -> argparse.ArgumentParser:
    parser = _parser("infer", "Detect objects in images with PaddleDetection, and draw boxes, labels and masks.")
    parser.add_argument("--infer_dir", metavar="DIR", help="a folder of images")
    parser.add_argument("--infer_img", metavar="FILE", help="an image; goes before --infer_dir")
    parser.add_argument("--output_dir", default="output", help="folder of the pictures (default: %(default)s)")
    parser.add_argument(
        "--draw_threshold", type=float, default=0.5, help="lowest score that is drawn (default: %(default)s)"
    )
    parser.add_argument("--use_vdl", nargs="?", type=boolean, const=True, default=False, help="log for VisualDL")
    parser.add_argument(
        "--vdl_log_dir", default="vdl_log_dir/image", help="folder of VisualDL's log (default: %(default)s)"
    )
    parser.add_argument(
        "--save_results", nargs="?", type=boolean, const=True, default=False, help="also write bbox.json and mask.json"
    )
    parser.add_argument(
        "--visualize", nargs="?", type=boolean, const=True, default=True, help="draw (default: %(default)s)"
    )
    _add_slices(parser)
    return parser


def _export_parser() -> argparse.ArgumentParser:
    parser = _parser("export", "Write an inference model with its infer_cfg.yml.")
    parser.add_argument("--output_dir", default="output_inference", help="folder to write into (default: %(default)s)")
    parser.add_argument(
        "--export_serving_model",
        nargs="?",
        type=boolean,
        const=True,
        default=False,
        help="also for Paddle Serving (needs paddle_serving_client)",
    )
    return parser


_PARSERS = {"train": _train_parser, "eval": _eval_parser, "infer": _infer_parser, "export": _export_parser}


def _interrupted(args: argparse.Namespace) -> str:
    from ppdet.core.workspace import global_config

    folder = Path(global_config.get("save_dir", "output")) / Path(args.config).stem
    saved = [state.with_suffix(".pdparams") for state in folder.glob("*.pdopt") if is_complete(state)]  # written last
    if not saved:
        return f"interrupted before the first checkpoint in {folder}"
    return f"interrupted; go on with -r {max(saved, key=lambda weights: weights.stat().st_mtime)}"


_PADDLEDETECTION = Toolkit(
    name="PaddleDetection",
    package="ppdet",
    command="det",
    adapter="cyclemlp_backbones.adapters.paddledet",
    tools="cyclemlp_backbones.adapters.paddledet.launch",
    usage=_USAGE,
    parsers=_PARSERS,
    interrupted=_interrupted,
)


def main(argv: list[str]) -> int:
    return run_toolkit(_PADDLEDETECTION, argv)
