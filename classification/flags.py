"""The predecessor's command-line flags, each of which sets keys of the configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from cyclemlp_backbones import list_variants

MIN_LR_PART, WARMUP_LR_PART = 50, 500
"""`min_lr` and `warmup_lr` are at most these parts of the learning rate: the recipe's proportions."""


def boolean(text: str) -> bool:
    """ "True" or "False", as written."""
    values = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return values[text.lower()]


def variant(text: str) -> str:
    short = text.lower().removeprefix("cyclemlp_")
    if short not in list_variants():
        raise argparse.ArgumentTypeError(f"unknown model {text!r}; choose from CycleMLP_B0 … CycleMLP_B5")
    return short


def _one(key: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {key: value}


def _lr(value: float) -> dict[str, Any]:
    return {
        "optimizer.lr": value,
        "schedule.min_lr": min(1e-5, value / MIN_LR_PART),
        "schedule.warmup_lr": min(1e-6, value / WARMUP_LR_PART),
    }


def _epochs(value: int) -> dict[str, Any]:
    return {"schedule.epochs": value, "schedule.warmup_epochs": min(5.0, value / 10)}


def _amp(value: bool) -> dict[str, Any]:
    return {"amp.dtype": "float16" if value else "none"}


Flag = tuple[Callable[[str], Any], Callable[[Any], Mapping[str, Any]], str]

SHARED: Mapping[str, Flag] = {
    "--val-data-dir": (str, _one("data.val_images"), "folder of the images"),
    "--val-txt-path": (str, _one("data.val_list"), "list of the images"),
    "--batch-size": (int, _one("data.batch_size"), "images of one process and forward"),
    "--model": (variant, _one("model.variant"), "CycleMLP_B0 … CycleMLP_B5"),
    "--model-pretrained": (str, _one("model.pretrained"), "weights file"),
    "--input-size": (int, _one("data.input_size"), "side of the images in pixels"),
    "--num-classes": (int, _one("model.num_classes"), "number of classes"),
    "--num_workers": (int, _one("data.workers"), "processes that read images"),
}
TRAIN: Mapping[str, Flag] = {
    **SHARED,
    "--train-data-dir": (str, _one("data.train_images"), "folder of the training images"),
    "--train-txt-path": (str, _one("data.train_list"), "list of the training images, `name label` a line"),
    "--epochs": (int, _epochs, "epochs; the warm-up is a tenth of them, at most 5"),
    "--lr": (float, _lr, "learning rate at a global batch of 512; lowers the schedule's ends with it"),
    "--weight-decay": (float, _one("optimizer.weight_decay"), "of all but norms and biases"),
    "--clip-grad": (float, _one("optimizer.clip_norm"), "largest global gradient norm"),
    "--drop-path": (float, _one("model.drop_path_rate"), "stochastic depth"),
    "--smoothing": (float, _one("mix.smoothing"), "label smoothing"),
    "--mixup": (float, _one("mix.mixup"), "beta parameter, 0 is off"),
    "--cutmix": (float, _one("mix.cutmix"), "beta parameter, 0 is off"),
    "--reprob": (float, _one("augment.erase"), "probability of random erasing"),
    "--aa": (str, _one("augment.policy"), "rand-m9-mstd0.5-inc1, original"),
    "--distillation-type": (str, _one("distillation.type"), "none, soft or hard"),
    "--distillation-alpha": (float, _one("distillation.alpha"), "share of the distillation loss"),
    "--distillation-tau": (float, _one("distillation.tau"), "temperature"),
    "--teacher-model": (str, _one("distillation.teacher"), "name of the teacher, or path of an exported model"),
    "--teacher-pretrained": (str, _one("distillation.teacher_weights"), "weights file of the teacher"),
    "--is_amp": (boolean, _amp, "True: mixed precision in float16"),
    "--is_distributed": (boolean, _one("run.distributed"), "False refuses to be one of several processes"),
    "--output_dir": (str, _one("run.output"), "folder of the run"),
}


def add_flags(parser: argparse.ArgumentParser, flags: Mapping[str, Flag]) -> None:
    group = parser.add_argument_group("flags of the predecessor, each a short form of --set")
    for name, (convert, settings, text) in flags.items():
        keys = ", ".join(settings(True if convert is boolean else 1))
        group.add_argument(name, type=convert, help=f"{text} ({keys})", metavar="X")


def flag_settings(arguments: argparse.Namespace, flags: Mapping[str, Flag]) -> list[tuple[str, Any]]:
    """The settings of the flags that were given, in the table's order."""
    found: list[tuple[str, Any]] = []
    for name, (_, settings, _) in flags.items():
        value = getattr(arguments, name.lstrip("-").replace("-", "_"))
        if value is not None:
            found += settings(value).items()
    return found
