"""The program's commands: arguments in, a call of the program's modules out."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cyclemlp_backbones.interrupts import end_workers, is_interrupt

from .config import Config
from .config_files import describe_settings, dump_yaml, load_config, parse_setting
from .flags import EVAL, PREDICT, TRAIN, Flags, add_flags, flag_settings

TERMINATED = 75
"""The status of a training that SIGTERM ended after a run state was written: sysexits' EX_TEMPFAIL, try again."""

LEAVE_SECONDS = 10
"""How long a training that SIGTERM ended, and whose run state is written, takes to leave at most; Slurm waits 30."""

if TYPE_CHECKING:
    from .distributed import World


def main(argv: Sequence[str], *, prog: str = "classification") -> int:
    """Runs one command; 0, or 1 after a message for what the user can set right, 2 for a wrong command line, 130 for an
    interrupt, TERMINATED after SIGTERM in training. `prog` is how messages call the program."""
    commands: Mapping[str, Callable[[Sequence[str], str], None]] = {
        "train": train,
        "eval": evaluate,
        "predict": predict,
        "lists": lists,
        "benchmark": benchmark,
        "config": show_config,
    }
    command = argv[0] if argv else ""
    if command not in commands:
        asked = command in ("-h", "--help")
        (sys.stdout if asked else sys.stderr).write(f"usage: {prog} {'|'.join(commands)} … (each with --help)\n")
        return 0 if asked else 2
    prog = f"{prog} {command}"
    try:
        commands[command](argv[1:], prog)
    except (Exception, KeyboardInterrupt) as error:
        from .distributed import leave_if_several

        terminated = type(error).__name__ == "Terminated"  # whose module takes seconds to import
        if terminated or is_interrupt(error):
            go_on = "the same command with --resume auto goes on from the last run state" if command == "train" else ""
            status, what = (TERMINATED, "terminated") if terminated else (130, "interrupted")
            message = f"{prog}: {what}{'; ' if go_on else ''}{go_on}\n"
        elif isinstance(error, (ValueError, OSError, ImportError, ArithmeticError)):
            status, message = 1, f"{prog}: error: {error}\n"
        else:
            leave_if_several(1, traceback.format_exc())
            raise
        sys.stderr.write(message)
        leave_if_several(status, "")
        if terminated:
            end_workers(LEAVE_SECONDS, status)
        return status
    return 0


def _parser(prog: str, description: str, flags: Flags, example: str) -> argparse.ArgumentParser:
    epilog = f"example: {prog} {example}\n\n{describe_settings()}"
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False, epilog=epilog)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file, or the name of one that ships; without it, the recipe for B1"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="changes one setting")
    add_flags(parser, flags)
    return parser


def _config(arguments: argparse.Namespace, flags: Flags) -> Config:
    return load_config(arguments.config, [*flag_settings(arguments, flags), *map(parse_setting, arguments.set)])


def _join(config: Config) -> World:
    from .distributed import join
    from .report import configure_logging

    world = join(config.run.device, distributed=config.run.distributed)
    configure_logging(world.rank)
    return world


def train_config(argv: Sequence[str], prog: str = "classification train", does: str = "Trains a classifier.") -> Config:
    """The configuration that the arguments of `train` mean."""
    example = "--config cyclemlp_b1.yml --train-data-dir IMAGENET/train --train-txt-path train.txt --resume auto"
    return _config(_parser(prog, does, TRAIN, example).parse_args(argv), TRAIN)


def train(argv: Sequence[str], prog: str) -> None:
    config = train_config(argv, prog)
    world = _join(config)
    from .trainer import Trainer

    report = Trainer(config, world, argv=["train", *argv]).run()
    if world.is_main:
        sys.stdout.write(json.dumps(report) + "\n")


def _evaluation_config(arguments: argparse.Namespace, flags: Flags = EVAL) -> Config:
    config = _config(arguments, flags)
    if not config.model.pretrained:
        raise ValueError("there are no weights: give --weights FILE or --model-pretrained FILE")
    return config


def evaluate(argv: Sequence[str], prog: str) -> None:
    example = "--config cyclemlp_b1.yml --weights published --val-data-dir IMAGENET/val --val-txt-path val.txt"
    parser = _parser(prog, "Top-1 and top-5 accuracy of a weights file.", EVAL, example)
    parser.add_argument(
        "--store", metavar="CARD", help="also write ImageNet's result, and how it came, into docs/models/*.yml"
    )
    arguments = parser.parse_args(argv)
    config = _evaluation_config(arguments)
    world = _join(config)
    from .inference import evaluate_weights, store

    result = evaluate_weights(config, world)
    if world.is_main:
        sys.stdout.write(json.dumps(result.as_dict()) + "\n")
        if arguments.store:
            store(arguments.store, config, result, world, ["cyclemlp", "cls", "eval", *argv])


def predict(argv: Sequence[str], prog: str) -> None:
    example = "--config cyclemlp_b1.yml --weights output/cyclemlp_b1/best.pdparams --test-data-dir photos"
    parser = _parser(prog, "The likeliest classes of the images of a list, or of a folder.", PREDICT, example)
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes per image (%(default)s)")
    parser.add_argument("--output", metavar="FILE", help="CSV file (standard output)")
    arguments = parser.parse_args(argv)
    config = _evaluation_config(arguments, PREDICT)
    if not _join(config).is_main:
        return  # one process predicts for all
    from .inference import predict_list

    if not arguments.output:
        return predict_list(config, sys.stdout, top=arguments.top)
    with open(arguments.output, "w", encoding="utf-8", newline="") as file:
        predict_list(config, file, top=arguments.top)


def lists(argv: Sequence[str], prog: str) -> None:
    from .lists import add_arguments, write_lists

    example = f"example: {prog} --classes map_to_1000.txt --train IMAGENET/train --val IMAGENET/val"
    parser = argparse.ArgumentParser(prog=prog, description="Writes train.txt and val.txt.", epilog=example)
    add_arguments(parser)
    for line in write_lists(parser.parse_args(argv)):
        sys.stdout.write(line + "\n")


def benchmark(argv: Sequence[str], prog: str) -> None:
    example = "--config cyclemlp_b1.yml --batch-size 8 --steps 5"
    parser = _parser(prog, "Images per second of reading and of training, apart.", TRAIN, example)
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="measured steps (%(default)s)")
    arguments = parser.parse_args(argv)
    config = _config(arguments, TRAIN)
    _join(config)
    from .speed import measure_speed

    sys.stdout.write(json.dumps(measure_speed(config, steps=arguments.steps), indent=1) + "\n")


def show_config(argv: Sequence[str], prog: str) -> None:
    sys.stdout.write(dump_yaml(train_config(argv, prog, "Prints the whole configuration that train's arguments mean.")))
