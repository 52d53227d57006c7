"""`cyclemlp cls`: pretraining on ImageNet, evaluation and prediction of classifiers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import cyclemlp_backbones
from cyclemlp_backbones.adapters.launch import LAUNCHER

PACKAGE = Path(cyclemlp_backbones.__file__).resolve().parent

_LAUNCH = """cyclemlp cls --launcher prints the file to give to paddle.distributed.launch. On several devices:
       python -m paddle.distributed.launch --devices 0,1 "$(cyclemlp cls --launcher)" cls train --config FILE …
On a CPU: `--nproc_per_node 2` instead of `--devices 0,1`."""


def program() -> str:
    """The name by which to import the pretraining program, so that a process never loads it twice.

    An installed package holds it; a checkout has it beside the package, where it may be loaded as `classification`.
    """
    loaded = getattr(sys.modules.get("classification"), "__file__", None)
    if loaded and Path(loaded).resolve().parent == PACKAGE.parent / "classification":
        return "classification"
    inside = "cyclemlp_backbones.classification"
    return inside if importlib.util.find_spec(inside) else "classification"


def main(argv: list[str]) -> int:
    if argv == ["--launcher"]:
        print(LAUNCHER)
        return 0
    status = importlib.import_module(f"{program()}.commands").main(argv, prog="cyclemlp cls")
    if argv in ([], ["-h"], ["--help"]):
        print(_LAUNCH)
    return status
