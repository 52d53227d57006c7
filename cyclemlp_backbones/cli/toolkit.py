"""What `cyclemlp seg` and `cyclemlp det` share: a toolkit's flags as rows of a table, its actions and its scripts."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclemlp_backbones.adapters import launch
from cyclemlp_backbones.checks import boolean, did_you_mean
from cyclemlp_backbones.cli import example
from cyclemlp_backbones.cli import parser as command_parser
from cyclemlp_backbones.interrupts import is_interrupt

Flag = tuple[Sequence[str], Mapping[str, Any]]


def flag(names: str, help: str, **options: Any) -> Flag:
    """A row of the table: the flag's names, and what argparse takes. A default is told in the help."""
    default = options.get("default")
    if isinstance(default, (str, int, float)) and default is not False and "default" not in help:
        help += " (default: %(default)s)"
    return names.split(), {"help": help, **options}


def switch(names: str, help: str) -> Flag:
    return flag(names, help, action="store_true")


def truth(names: str, help: str, default: bool = False) -> Flag:
    """A flag alone is true; true or false may follow."""
    return flag(names, help, nargs="?", type=boolean, const=True, default=default, metavar="BOOL")


@dataclass(frozen=True)
class Toolkit:
    """One toolkit's command.

    `name` is the toolkit's, `package` its Python package, `command` ours, `adapter` our folder of it. `config` is how
    the usage names the flag of the configuration. `actions` has a summary and the flags of each action.
    """

    name: str
    package: str
    command: str
    adapter: str
    config: str
    actions: Mapping[str, tuple[str, Sequence[Flag]]]

    @property
    def usage(self) -> str:
        by_action = f"cyclemlp {self.command} {'|'.join(self.actions)} {self.config} FILE …"
        script, launcher = f"cyclemlp {self.command} path/to/tools/train.py …", f"cyclemlp {self.command} --launcher"
        width = len(by_action) + 3
        return f"""usage: {by_action:<{width}}with the installed {self.name}
       {script:<{width}}runs a {self.name} checkout's own script
       {launcher:<{width}}prints the file to give to paddle.distributed.launch

`cyclemlp {self.command} train --help` lists the flags; they are those of {self.name}'s tools/train.py, and so on.
On several devices:
       python -m paddle.distributed.launch --devices 0,1 "$({launcher})" {self.command} train {self.config} FILE …
On a CPU: `--nproc_per_node 2 --backend gloo` instead of `--devices 0,1`.

{example(self.command)}"""

    def parser(self, action: str) -> argparse.ArgumentParser:
        summary, flags = self.actions[action]
        parser = command_parser(f"{self.command} {action}", summary)
        for names, options in flags:
            parser.add_argument(*names, **options)
        return parser

    def main(self, argv: Sequence[str]) -> int:
        """Runs one action or script; the exit status."""
        if not argv or argv[0] in ("-h", "--help"):
            print(self.usage)
            return 0 if argv else 2
        if argv[0] == "--launcher":
            print(launch.LAUNCHER)
            return 0
        action, *rest = argv
        is_script = action.endswith(".py")
        if not is_script and action not in self.actions:
            hint = did_you_mean(action, self.actions)
            print(f"cyclemlp {self.command}: unknown action {action!r}{hint}\n\n{self.usage}", file=sys.stderr)
            return 2
        if is_script and not Path(action).is_file():
            raise FileNotFoundError(
                f"no script {action}; `cyclemlp {self.command}` takes {', '.join(self.actions)} "
                f"or a script of a {self.name} checkout"
            )
        args = None if is_script else self.parser(action).parse_args(rest)  # Paddle is imported after it: seconds
        try:
            if is_script:
                launch.run_script(self.adapter, self.package, Path(action), rest)
            else:
                launch.run_action(self.adapter, action, args)
        except (Exception, KeyboardInterrupt) as error:
            if is_interrupt(error):
                how = launch.how_to_go_on(self.adapter, rest) if Path(action).stem == "train" else ""
                print(f"interrupted{how}", file=sys.stderr)
                return 130
            if not is_script:
                raise
            traceback.print_exc()  # the script is not ours to explain
            return 1
        return 0
