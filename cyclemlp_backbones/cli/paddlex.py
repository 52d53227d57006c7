"""`cyclemlp paddlex`: PaddleX's own modes, with our networks known in the checkouts that it starts."""

from __future__ import annotations

import importlib
import sys

from cyclemlp_backbones.cli import parser as command_parser


def main(argv: list[str]) -> int:
    parser = command_parser(
        "paddlex",
        "What PaddleX's main.py does with a module's configuration: check_dataset, train, evaluate, "
        "export, predict. Its Train.basic_config_path may be a configuration with our backbones.",
    )
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="PaddleX's configuration of a module")
    parser.add_argument("-o", "--override", action="append", metavar="KEY=VALUE", help="for example Global.mode=train")
    parser.parse_args(argv)
    from cyclemlp_backbones.adapters.paddlex import register_paddlex

    register_paddlex()
    sys.argv[1:] = argv  # where PaddleX reads them
    try:
        importlib.import_module("paddlex.engine").Engine().run()
    except KeyboardInterrupt:  # the script that PaddleX started has said how to go on
        print("interrupted", file=sys.stderr)
        return 130
    return 0
