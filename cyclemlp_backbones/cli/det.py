"""`cyclemlp det`: PaddleDetection's training, evaluation, inference and export with our backbone registered."""

from __future__ import annotations

from cyclemlp_backbones.cli.toolkit import Toolkit, flag, switch, truth

_CONFIG = [
    flag("-c --config", "configuration file, YAML", required=True, metavar="FILE"),
    flag(
        "-o --opt",
        "override the configuration, for example weights=b1.pdparams TrainReader.batch_size=4 use_gpu=false",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
    ),
    flag("--slim_config", "configuration of PaddleSlim's compression", metavar="FILE"),
]
_AMP = [switch("--amp", "mixed precision, on a GPU")]
_PAIR = {"nargs": 2, "metavar": ("H", "W")}
_SLICES = [
    switch("--slice_infer", "cut images into slices and merge what is found"),
    flag("--slice_size", "default: 640 640", type=int, default=[640, 640], **_PAIR),
    flag("--overlap_ratio", "default: 0.25 0.25", type=float, default=[0.25, 0.25], **_PAIR),
    flag("--combine_method", "how boxes of slices are merged", default="nms", choices=("nms", "concat")),
    flag("--match_threshold", "overlap of boxes to merge", type=float, default=0.6),
    flag("--match_metric", "overlap over the union or the smaller box", default="ios", choices=("iou", "ios")),
]
_TRAIN = [
    switch("--eval", "evaluate at every checkpoint and keep the best model"),
    flag("-r --resume", "continue from a checkpoint, .pdparams with .pdopt", metavar="PDPARAMS"),
    truth("--enable_ce", "fix the seed to 0"),
    switch("--fleet", "distribute by paddle.distributed.fleet"),
    truth("--use_vdl", "log for VisualDL"),
    flag("--vdl_log_dir", "folder of VisualDL's log", default="vdl_log_dir/scalar"),
    truth("--use_wandb", "log for wandb"),
    switch("--save_prediction_only", "in evaluation, write boxes without scoring"),
    flag(
        "-p --profiler_options",
        "options of PaddleDetection's profiler, for example 'batch_range=[10,20];profile_path=profile'",
    ),
    switch("--save_proposals", "write proposals at the end (SNIPER)"),
    flag("--proposals_path", "file of --save_proposals", default="sniper/proposals.json"),
    switch("--to_static", "train as a static graph"),
]
_EVAL = [
    flag("--output_eval", "folder of bbox.json and mask.json; default: the current", metavar="DIR"),
    switch("--json_eval", "score the bbox.json and mask.json that are there"),
    switch("--bias", "count widths and heights of boxes as x2 - x1 + 1"),
    switch("--classwise", "also the average precision of each class"),
    switch("--save_prediction_only", "write boxes without scoring"),
]
_INFER = [
    flag("--infer_dir", "a folder of images", metavar="DIR"),
    flag("--infer_img", "an image; goes before --infer_dir", metavar="FILE"),
    flag("--output_dir", "folder of the pictures", default="output"),
    flag("--draw_threshold", "lowest score that is drawn", type=float, default=0.5),
    truth("--use_vdl", "log for VisualDL"),
    flag("--vdl_log_dir", "folder of VisualDL's log", default="vdl_log_dir/image"),
    truth("--save_results", "also write bbox.json and mask.json"),
    truth("--visualize", "draw", default=True),
]
_EXPORT = [
    flag("--output_dir", "folder to write into", default="output_inference"),
    truth("--export_serving_model", "also for Paddle Serving (needs paddle_serving_client)"),
]

_PADDLEDETECTION = Toolkit(
    name="PaddleDetection",
    package="ppdet",
    command="det",
    adapter="paddledet",
    config="-c",
    actions={
        "train": ("Train a detector with PaddleDetection.", [*_CONFIG, *_AMP, *_TRAIN]),
        "eval": (
            "Evaluate a detector with PaddleDetection: average precision of boxes, and of masks.",
            [*_CONFIG, *_AMP, *_EVAL, *_SLICES],
        ),
        "infer": (
            "Detect objects in images with PaddleDetection, and draw boxes, labels and masks.",
            [*_CONFIG, *_INFER, *_SLICES],
        ),
        "export": ("Write an inference model with its infer_cfg.yml.", [*_CONFIG, *_EXPORT]),
    },
)

main = _PADDLEDETECTION.main
