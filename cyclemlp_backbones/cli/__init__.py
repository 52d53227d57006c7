"""The command line: `cyclemlp COMMAND …`. One module per command, imported only when it runs."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "variants": "table of the network's sizes",
    "info": "parameters, multiply-adds and output shapes of one variant",
    "convert": "rewrite a weights file: .pdparams, .pth or .safetensors to .pdparams or .safetensors",
    "demo-data": "write the demo's data: digits on photographs",
    "configs": "copy the training configurations into a folder",
    "doctor": "check the installed packages for known conflicts",
    "seg": "train, val, predict, export with PaddleSeg",
    "det": "train, eval, infer, export with PaddleDetection",
    "cls": "train on ImageNet, eval, predict, lists: the pretraining program",
    "export": "a trained model as a folder that other programs run: Paddle's inference format or ONNX",
    "benchmark": "time one size on this machine, beside another network",
    "predict": "run an exported model on images: classes, masks, boxes",
}
_TOLD_VERSIONS = ("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "paddledet")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return (
        "usage: cyclemlp COMMAND …\n       cyclemlp --version\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\n`cyclemlp COMMAND --help` tells more."
    )


def _versions() -> str:
    from cyclemlp_backbones import __version__
    from cyclemlp_backbones.files import installed_versions

    found = {"cyclemlp-backbones": __version__, **installed_versions(_TOLD_VERSIONS)}
    return "\n".join(f"{name} {version}" for name, version in found.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status: 0, 1 for an error that the message explains, 2 for a wrong call."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        print(_versions())
        return 0
    if command not in COMMANDS:
        print(f"cyclemlp: unknown command {command!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(message)s")
    logging.getLogger("cyclemlp_backbones").setLevel(logging.INFO)  # not the root's: importing paddle may have set that
    from cyclemlp_backbones.environment import import_paddle_without_home

    import_paddle_without_home()
    module = importlib.import_module(f"cyclemlp_backbones.cli.{command.replace('-', '_')}")
    if os.environ.get("CYCLEMLP_TRACEBACK"):
        return module.main(rest)
    try:
        return module.main(rest)
    except (ValueError, OSError, ImportError) as error:  # what a caller can mend; anything else is our bug
        print(f"cyclemlp {command}: error: {error}\n(CYCLEMLP_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1
