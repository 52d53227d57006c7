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
"""Flag -> how its text is read, the key that it sets or a function that gives keys and values, its help."""

_SHARED: Flags = {
    "--val-data-dir": (str, "data.val_images", "folder of the images"),
    "--val-txt-path": (str, "data.val_list", "list of the images"),
    "--batch-size": (int, "data.batch_size", "images of one process and micro-batch"),
    "--model": (_variant, "model.variant", "CycleMLP_B0 … CycleMLP_B5"),
    "--model-pretrained": (str, "model.pretrained", "weights file"),
    "--input-size": (int, "data.input_size", "side of the images in pixels"),
    "--num-classes": (int, "model.num_classes", "number of classes"),
    "--num_workers": (int, "data.workers", "processes that read images"),
}
EVAL: Flags = {**_SHARED, "--weights": (str, "model.pretrained", "weights file, or published")}
TRAIN: Flags = {
    "--resume": (str, "run.resume", "goes on from a run state: auto, the newest, or a file"),
    **_SHARED,
    "--train-data-dir": (str, "data.train_images", "folder of the training images"),
    "--train-txt-path": (str, "data.train_list", "list of the training images, `name label` a line"),
    "--epochs": (
        int,
        lambda value: {"schedule.epochs": value, "schedule.warmup_epochs": min(5.0, value / 10)},
        "epochs; the warm-up is a tenth of them, at most 5",
    ),
    "--lr": (float, _lr, "learning rate at a global batch of 512; lowers the schedule's ends with it"),
    "--weight-decay": (float, "optimizer.weight_decay", "of all but norms and biases"),
    "--clip-grad": (float, "optimizer.clip_norm", "largest global gradient norm"),
    "--drop-path": (float, "model.drop_path_rate", "stochastic depth"),
    "--smoothing": (float, "mix.smoothing", "label smoothing"),
    "--mixup": (float, "mix.mixup", "beta parameter, 0 is off"),
    "--cutmix": (float, "mix.cutmix", "beta parameter, 0 is off"),
    "--reprob": (float, "augment.erase", "probability of random erasing"),
    "--aa": (str, "augment.policy", "rand-m9-mstd0.5-inc1, original"),
    "--distillation-type": (str, "distillation.type", "none, soft or hard"),
    "--distillation-alpha": (float, "distillation.alpha", "share of the distillation loss"),
    "--distillation-tau": (float, "distillation.tau", "temperature"),
    "--teacher-model": (str, "distillation.teacher", "name of the teacher, or path of an exported model"),
    "--teacher-pretrained": (str, "distillation.teacher_weights", "weights file of the teacher"),
    "--is_amp": (
        boolean,
        lambda value: {"amp.dtype": "float16" if value else "none"},
        "True: mixed precision in float16",
    ),
    "--is_distributed": (boolean, "run.distributed", "False refuses to be one of several processes"),
    "--output_dir": (str, "run.output", "folder of the run"),
}


def add_flags(parser: argparse.ArgumentParser, flags: Flags) -> None:
    group = parser.add_argument_group("short forms of --set")
    for name, (convert, keys, text) in flags.items():
        group.add_argument(name, type=convert, help=f"{text} ({', '.join(_settings(keys, 1))})", metavar="X")


def flag_settings(arguments: argparse.Namespace, flags: Flags) -> list[tuple[str, Any]]:
    """The settings of the flags that were given, in the table's order."""
    found: list[tuple[str, Any]] = []
    for name, (_, keys, _) in flags.items():
        value = getattr(arguments, name.lstrip("-").replace("-", "_"))
        if value is not None:
            found += _settings(keys, value).items()
    return found


def _settings(keys: str | Callable[[Any], Mapping[str, Any]], value: Any) -> Mapping[str, Any]:
    return {keys: value} if isinstance(keys, str) else keys(value)
