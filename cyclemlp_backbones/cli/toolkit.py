"""What `cyclemlp seg` and `cyclemlp det` share: choosing the action, a checkout's own script, what interrupts leave."""

from __future__ import annotations

import argparse
import difflib
import importlib
import pickle
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = Path(__file__).resolve().parent.parent / "__main__.py"
"""The file that paddle.distributed.launch runs: it takes a file, no module."""


@dataclass(frozen=True)
class Toolkit:
    """One toolkit's command.

    `name` is the toolkit's, `package` its Python package, `command` ours. `adapter` registers our components when it is
    imported; `tools` has a function `run_ACTION(args)` for every entry of `parsers`. `interrupted` says how to go on
    after an interrupted training.
    """

    name: str
    package: str
    command: str
    adapter: str
    tools: str
    usage: str
    parsers: Mapping[str, Callable[[], argparse.ArgumentParser]]
    interrupted: Callable[[argparse.Namespace], str]


def boolean(text: str) -> bool:
    """A flag's value, for argparse."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}; it takes true or false")


def is_complete(pickled: Path) -> bool:
    """A pickle ends with its opcode STOP; an interrupted save leaves none, or no file."""
    return pickled.is_file() and pickled.read_bytes()[-1:] == pickle.STOP


def run_toolkit(toolkit: Toolkit, argv: Sequence[str]) -> int:
    """Runs one action or script; the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(toolkit.usage)
        return 0 if argv else 2
    if argv[0] == "--launcher":
        print(LAUNCHER)
        return 0
    action, *rest = argv
    if action.endswith(".py"):
        return _run_script(toolkit, Path(action), rest)
    if action not in toolkit.parsers:
        near = difflib.get_close_matches(action, toolkit.parsers, n=1)
        print(
            f"cyclemlp {toolkit.command}: unknown action {action!r}{f'; did you mean {near[0]}?' if near else ''}"
            f"\n\n{toolkit.usage}",
            file=sys.stderr,
        )
        return 2
    args = toolkit.parsers[action]().parse_args(rest)

    importlib.import_module(toolkit.adapter)  # after the flags: it takes seconds; first: it explains a missing toolkit
    tools = importlib.import_module(toolkit.tools)
    try:
        getattr(tools, f"run_{action}")(args)
    except (Exception, KeyboardInterrupt) as error:
        if action != "train" or not is_interrupt(error):
            raise
        print(toolkit.interrupted(args), file=sys.stderr)
        return 130
    return 0


def is_interrupt(error: BaseException) -> bool:
    """Also of an interrupt that came within the backward of a PyLayer: Paddle makes an error of its own of that."""
    return isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt:" in str(error)


def _run_script(toolkit: Toolkit, script: Path, arguments: Sequence[str]) -> int:
    """Runs a checkout's script with our components registered in the checkout's own package."""
    if not script.is_file():
        raise FileNotFoundError(
            f"no script {script}; `cyclemlp {toolkit.command}` takes {', '.join(toolkit.parsers)} "
            f"or a script of a {toolkit.name} checkout"
        )
    script = script.resolve()
    owners = [parent for parent in script.parents if (parent / toolkit.package / "__init__.py").is_file()]
    root = owners[0] if owners else script.parent.parent
    sys.path[:0] = [str(root), str(script.parent)]
    sys.argv = [str(script), *arguments]
    try:
        importlib.import_module(toolkit.adapter)
        runpy.run_path(str(script), run_name="__main__")
    except Exception:
        traceback.print_exc()  # the script is not ours to explain
        return 1
    return 0
