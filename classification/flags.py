"""Command-line flags, the predecessor's and two of ours, each of which sets keys of the configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from cyclemlp_backbones.checks import boolean
from cyclemlp_backbones.variants import variant_name

MIN_LR_PART, WARMUP_LR_PART = 50, 500
"""`min_lr` and `warmup_lr` are at most these parts of the learning rate: the recipe's proportions."""


def _variant(text: str) -> str:
    try:
        return variant_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _lr(value: float) -> dict[str, Any]:
    return {
        "optimizer.lr": value,
        "schedule.min_lr": min(1e-5, value / MIN_LR_PART),
        "schedule.warmup_lr": min(1e-6, value / WARMUP_LR_PART),
    }


Flags = Mapping[str, tuple[Callable[[str], Any], str | Callable[[Any], Mapping[str, Any]], str]]
"""Flag -> how its text is read, the key that it sets ("": none) or a function that gives keys and values, its help."""


def _fixed(allowed: str, otherwise: str) -> tuple[Callable[[str], str], str, str]:
    """A flag of the predecessor's that sets nothing: of its values, those `allowed` are what happens here anyway."""

    def read(text: str) -> str:
        if text.lower() not in allowed.split():
            raise argparse.ArgumentTypeError(f"{text!r}; {otherwise}")
        return text

    return read, "", f"{allowed.replace(' ', ', ')}; {otherwise}" if allowed else otherwise


_SHARED: Flags = {
    "--val-data-dir": (str, "data.val_images", "folder of the images"),
    "--val-txt-path": (str, "data.val_list", "list of the images"),
    "--batch-size": (int, "data.batch_size", "images of one process and micro-batch"),
    "--model": (_variant, "model.variant", "CycleMLP_B0 … CycleMLP_B5, CycleMLP_T …"),
    "--model-pretrained": (str, "model.pretrained", "weights file"),
    "--input-size": (int, "data.input_size", "side of the images in pixels"),
    "--num-classes": (int, "model.num_classes", "number of classes"),
    "--num_workers": (int, "data.workers", "processes that read images"),
    "--crop-pct": (float, "data.crop_pct", "0.9 evaluates 224 of 248 pixels, 0.875, as the authors' commands, of 256"),
    "--drop-path": (float, "model.drop_path_rate", "stochastic depth"),
    "--drop": _fixed("0 0.0", "the network has no dropout, but stochastic depth: --drop-path"),
    "--train-interpolation": (str, "augment.interpolation", "of training's pictures, bicubic or bilinear"),
    "--val-data-mode": _fixed("train val", "data.val_list has labels; predict takes one without"),
}
EVAL: Flags = {**_SHARED, "--weights": (str, "model.pretrained", "weights file, or published")}
PREDICT: Flags = {
    **EVAL,
    "--test-data-dir": (str, "data.val_images", "folder of the images"),
    "--test-txt-path": (str, "data.val_list", "list of the images, with labels or without"),
    "--test-data-mode": _fixed("train val test", "train, val or test"),
    "--output_dir": _fixed("", "the predictions go to --output FILE"),
}
_NO_EPOCH = "a run goes on where it was by itself: --resume auto"
TRAIN: Flags = {
    "--resume": (str, "run.resume", "goes on from a run state: auto, the newest, or a file"),
    "--finetune": (str, "model.pretrained", "weights file to start from"),
    **_SHARED,
    "--train-data-dir": (str, "data.train_images", "folder of the training images"),
    "--train-txt-path": (str, "data.train_list", "list of the training images, `name label` a line"),
    "--epochs": (
        int,
        lambda value: {"schedule.epochs": value, "schedule.warmup_epochs": min(5.0, value / 10)},
        "epochs; the warm-up is a tenth of them, at most 5",
    ),
    "--lr": (float, _lr, "learning rate at a global batch of 512; lowers the schedule's ends with it"),
    "--eta-min": (float, "schedule.min_lr", "learning rate at the end"),
    "--sched": _fixed("cosineannealingdecay cosine", "the schedule is a warm-up and a cosine: --set schedule.…"),
    "--t-max": _fixed("", "the cosine ends with the run: --epochs"),
    "--last-epoch": _fixed("-1", _NO_EPOCH),
    "--start_epoch": _fixed("0", _NO_EPOCH),
    "--opt": _fixed("adamw", "the optimizer is AdamW: --set optimizer.…"),
    "--opt-eps": (float, "optimizer.epsilon", "AdamW's"),
    "--opt-beta1": (float, "optimizer.beta1", "AdamW's"),
    "--opt-beta2": (float, "optimizer.beta2", "AdamW's"),
    "--weight-decay": (float, "optimizer.weight_decay", "of all but norms and biases"),
    "--clip-grad": (float, "optimizer.clip_norm", "largest global gradient norm"),
    "--smoothing": (float, "mix.smoothing", "label smoothing"),
    "--mixup": (float, "mix.mixup", "beta parameter, 0 is off"),
    "--cutmix": (float, "mix.cutmix", "beta parameter, 0 is off"),
    "--cutmix-minmax": (float, "mix.cutmix_minmax", "smallest and largest side of CutMix' boxes, in place of --cutmix"),
    "--mixup-prob": (float, "mix.probability", "of mixup or CutMix"),
    "--mixup-switch-prob": (float, "mix.switch", "of CutMix rather than mixup"),
    "--mixup-mode": (str, "mix.mode", "batch, pair or elem"),
    "--color-jitter": (float, "augment.color_jitter", "strength, besides the policy; 0 is off"),
    "--reprob": (float, "augment.erase", "probability of random erasing"),
    "--aa": (str, "augment.policy", "rand-m9-mstd0.5-inc1, original"),
    "--distillation-type": (str, "distillation.type", "none, soft or hard"),
    "--distillation-alpha": (float, "distillation.alpha", "share of the distillation loss"),
    "--distillation-tau": (float, "distillation.tau", "temperature"),
    "--teacher-model": (str, "distillation.teacher", "name of the teacher, or path of an exported model"),
    "--teacher-pretrained": (str, "distillation.teacher_weights", "weights file of the teacher"),
    "--is_amp": (boolean, lambda value: {"amp.dtype": "float16" if value else "none"}, "True: float16"),
    "--init_loss_scaling": (float, "amp.initial_scale", "float16's first loss scale"),
    "--train-data-mode": _fixed("train val", "data.train_list has labels"),
    "--is_distributed": (boolean, "run.distributed", "False refuses to be one of several processes"),
    "--output_dir": (str, "run.output", "folder of the run"),
}


def add_flags(parser: argparse.ArgumentParser, flags: Flags) -> None:
    group = parser.add_argument_group("short forms of --set")
    for name, (convert, keys, text) in flags.items():
        sets = f" ({', '.join(_settings(keys, 1))})" if keys else ""
        count = 2 if name == "--cutmix-minmax" else None
        group.add_argument(name, type=convert, nargs=count, help=text + sets, metavar="X")


def flag_settings(arguments: argparse.Namespace, flags: Flags) -> list[tuple[str, Any]]:
    """The settings of the flags that were given, in the table's order."""
    found: list[tuple[str, Any]] = []
    for name, (_, keys, _) in flags.items():
        value = getattr(arguments, name.lstrip("-").replace("-", "_"))
        if value is not None:
            found += _settings(keys, value).items()
    return found


def _settings(keys: str | Callable[[Any], Mapping[str, Any]], value: Any) -> Mapping[str, Any]:
    if isinstance(keys, str):
        return {keys: value} if keys else {}
    return keys(value)
