"""The program's commands."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from classification.config import Config
from classification.config_files import load_config, parse_setting
from classification.flags import SHARED, TRAIN, add_flags, flag_settings
from cyclemlp_backbones.interrupts import is_interrupt

_GO_ON = {"train": "; the same command with --resume auto goes on from the last checkpoint"}


def main(argv: Sequence[str]) -> int:
    """Runs one command; 0, or 1 after a message for what the user can set right, 2 for a wrong command line, 130 for an
    interrupt."""
    commands: Mapping[str, Callable[[Sequence[str]], None]] = {
        "train": train,
        "eval": evaluate,
        "predict": predict,
        "lists": lists,
        "benchmark": benchmark,
    }
    if not argv or argv[0] not in commands:
        names = " | ".join(commands)
        sys.stderr.write(f"usage: python -m classification {names} … (each with --help)\n")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    try:
        commands[argv[0]](argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        if is_interrupt(error):
            status, message = 130, f"classification {argv[0]}: interrupted{_GO_ON.get(argv[0], '')}\n"
        elif isinstance(error, (ValueError, OSError, ImportError, ArithmeticError)):
            status, message = 1, f"classification {argv[0]}: error: {error}\n"
        else:
            _leave_if_several(1, traceback.format_exc())
            raise
        sys.stderr.write(message)
        _leave_if_several(status, "")
        return status
    return 0


def _leave_if_several(status: int, message: str) -> None:
    from classification.distributed import leave_if_several

    leave_if_several(status, message)


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"classification {command}", description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file; without it, the paper's recipe for B1")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="changes one setting")
    return parser


def _config(arguments: argparse.Namespace, flags: Any, first: Sequence[tuple[str, Any]] = ()) -> Config:
    settings = [*first, *flag_settings(arguments, flags), *map(parse_setting, arguments.set)]
    return load_config(arguments.config, settings)


def train_config(argv: Sequence[str]) -> Config:
    """The configuration that the arguments of `train` mean."""
    parser = _parser("train", "Trains a classifier.")
    parser.add_argument("--resume", metavar="auto|FILE", help="goes on from a checkpoint (run.resume)")
    add_flags(parser, TRAIN)
    arguments = parser.parse_args(argv)
    resume = [("run.resume", arguments.resume)] if arguments.resume else []
    return _config(arguments, TRAIN, resume)


def train(argv: Sequence[str]) -> None:
    config = train_config(argv)
    from classification.distributed import join
    from classification.report import configure_logging
    from classification.trainer import Trainer

    world = join(config.run.device, distributed=config.run.distributed)
    configure_logging(world.rank)
    report = Trainer(config, world, argv=["train", *argv]).run()
    if world.is_main:
        sys.stdout.write(json.dumps(report) + "\n")


def _evaluation_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = _parser(command, description)
    parser.add_argument("--weights", metavar="FILE", help="weights file, or published (model.pretrained)")
    add_flags(parser, SHARED)
    return parser


def _evaluation_config(arguments: argparse.Namespace) -> Config:
    config = _config(arguments, SHARED)
    if arguments.weights:
        settings = [*flag_settings(arguments, SHARED), *map(parse_setting, arguments.set)]
        config = load_config(arguments.config, [*settings, ("model.pretrained", arguments.weights)])
    if not config.model.pretrained:
        raise ValueError("there are no weights: give --weights FILE or --model-pretrained FILE")
    return config


def evaluate(argv: Sequence[str]) -> None:
    arguments = _evaluation_parser("eval", "Top-1 and top-5 accuracy of a weights file.").parse_args(argv)
    config = _evaluation_config(arguments)
    from classification.distributed import join
    from classification.inference import evaluate_weights
    from classification.report import configure_logging

    world = join(config.run.device, distributed=config.run.distributed)
    configure_logging(world.rank)
    result = evaluate_weights(config, world)
    if world.is_main:
        sys.stdout.write(json.dumps(result.as_dict()) + "\n")


def predict(argv: Sequence[str]) -> None:
    parser = _evaluation_parser("predict", "The likeliest classes of the images of a list, or of a folder.")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes per image (%(default)s)")
    parser.add_argument("--output", metavar="FILE", help="CSV file (standard output)")
    arguments = parser.parse_args(argv)
    config = _evaluation_config(arguments)
    from classification.distributed import join
    from classification.inference import predict_list
    from classification.report import configure_logging

    world = join(config.run.device, distributed=config.run.distributed)
    configure_logging(world.rank)
    if not world.is_main:
        return  # one process predicts for all
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8", newline="") as file:
            predict_list(config, file, top=arguments.top)
    else:
        predict_list(config, sys.stdout, top=arguments.top)


def lists(argv: Sequence[str]) -> None:
    from classification.lists import add_arguments, write_lists

    parser = argparse.ArgumentParser(prog="classification lists", description="Writes train.txt and val.txt.")
    add_arguments(parser)
    for line in write_lists(parser.parse_args(argv)):
        sys.stdout.write(line + "\n")


def benchmark(argv: Sequence[str]) -> None:
    parser = _parser("benchmark", "Images per second of reading and of training, apart.")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="measured steps (%(default)s)")
    add_flags(parser, TRAIN)
    arguments = parser.parse_args(argv)
    config = _config(arguments, TRAIN)
    from classification.benchmark import run_benchmark
    from classification.distributed import join
    from classification.report import configure_logging

    join(config.run.device)
    configure_logging()
    sys.stdout.write(json.dumps(run_benchmark(config, steps=arguments.steps), indent=1) + "\n")
