"""The command line: `cyclemlp COMMAND …`. One module per command, imported only when it runs."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from cyclemlp_backbones.checks import did_you_mean

COMMANDS = {
    "variants": "table of the network's sizes",
    "info": "parameters, multiply-adds and output shapes of one variant",
    "convert": "rewrite a weights file: .pdparams, .pth or .safetensors to .pdparams or .safetensors",
    "plot": "draw offsets, receptive fields, pyramids, training curves, confusion matrices",
    "weights": "list the published weights, fetch one, or check any weights file",
    "data": "check your own data set, or convert one from LabelMe or Pascal VOC",
    "demo-data": "write the demo's data: digits on photographs",
    "configs": "copy the training configurations into a folder",
    "doctor": "check the installed packages for known conflicts",
    "seg": "train, val, predict, export with PaddleSeg",
    "det": "train, eval, infer, export with PaddleDetection",
    "paddlex": "train, evaluate, export with PaddleX",
    "cls": "the pretraining program: train, eval, predict, lists, benchmark, config",
    "export": "export a trained model to Paddle's inference format or ONNX",
    "verify": "check an exported model against the values that its network gave",
    "build-ops": "compile the Cycle FC shift for this machine's CPU",
    "benchmark": "time one variant on this machine against another network",
    "predict": "run an exported model on images: classes, masks, boxes",
}
EXAMPLES = (
    "cyclemlp variants --json",
    "cyclemlp info b1 --size 512x1024",
    "cyclemlp convert CycleMLP_B1.pth cyclemlp_b1.pdparams",
    "cyclemlp plot receptive-field b1 --out field.png",
    "cyclemlp plot offsets --kernel 5",
    "cyclemlp plot pyramid cyclemlp_b1.pdparams photo.jpg",
    "cyclemlp plot curves output/b1/train.log",
    "cyclemlp plot confusion results/masks data/mine/annotations",
    "cyclemlp weights check CycleMLP_B1.pth",
    "cyclemlp weights list",
    "cyclemlp weights get b1",
    "cyclemlp data check --config my_config.yml",
    "cyclemlp data convert labelme/ data/mine --to seg",
    "cyclemlp demo-data data --format seg --train 64 --val 8",
    "cyclemlp configs .",
    "cyclemlp doctor",
    "cyclemlp seg train --config my_seg.yml --save_dir output/my_seg --do_eval",
    "cyclemlp seg val --config my_seg.yml --model_path output/my_seg/best_model/model.pdparams",
    "cyclemlp seg predict --config my_seg.yml --model_path output/my_seg/best_model/model.pdparams --image_path photos",
    "cyclemlp seg export --config my_seg.yml --model_path output/my_seg/best_model/model.pdparams",
    "cyclemlp det train -c my_det.yml --eval",
    "cyclemlp det eval -c my_det.yml -o weights=output/my_det/best_model.pdparams",
    "cyclemlp det infer -c my_det.yml --infer_dir photos --draw_threshold 0.3",
    "cyclemlp det export -c my_det.yml -o weights=output/my_det/best_model.pdparams",
    "cyclemlp paddlex -c seg.yaml -o Global.mode=train",
    "cyclemlp export best.pdparams out/cls --task cls --class-names names.txt",
    "cyclemlp verify out/cls",
    "cyclemlp build-ops",
    "cyclemlp benchmark --variant b1 --size 512 --compare resnet50",
    "cyclemlp predict out/cls photos/ --out results",
)
"""What the help of each command, and of each of its actions, ends with; `cyclemlp cls` has its own."""

_TOLD_VERSIONS = ("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "paddledet")


def parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a command, or of an action of one ("seg train"), whose help ends with an example."""
    prog = f"cyclemlp {command}"
    return argparse.ArgumentParser(prog=prog, description=description, epilog=example(command), allow_abbrev=False)


def example(command: str) -> str:
    """The last line of a help: the first of the examples of a command or action."""
    return "example: " + next(line for line in EXAMPLES if f"{line} ".startswith(f"cyclemlp {command} "))


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
    """Runs one command; the exit status: 0, 1 for an error that the message explains, 2 for a wrong call, 130 after an
    interrupt, 141 where nobody reads the output any more."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        print(_versions())
        return 0
    if command not in COMMANDS:
        print(f"cyclemlp: unknown command {command!r}{did_you_mean(command, COMMANDS)}\n\n{_usage()}", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(message)s")
    logging.getLogger("cyclemlp_backbones").setLevel(logging.INFO)  # not the root's: importing paddle may have set that
    warnings.filterwarnings("ignore", "No ccache found")  # Paddle's, at every import
    from cyclemlp_backbones.environment import import_paddle_without_home

    import_paddle_without_home()
    module = importlib.import_module(f"cyclemlp_backbones.cli.{command.replace('-', '_')}")
    try:
        status = module.main(rest)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `cyclemlp variants | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the interpreter's end
        return 141
    except KeyboardInterrupt:
        print(f"cyclemlp {command}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:  # what a caller can mend; anything else is our bug
        if os.environ.get("CYCLEMLP_TRACEBACK"):
            raise
        print(f"cyclemlp {command}: error: {error}\n(CYCLEMLP_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1
