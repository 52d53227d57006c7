"""What both adapters share: our components in a toolkit, repaired, and then its action or a checkout's script.

A toolkit and Paddle are imported when a function is called.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cyclemlp_backbones.checks import check_launch_port
from cyclemlp_backbones.environment import writable_home

LAUNCHER = Path(__file__).resolve().parent.parent / "__main__.py"
"""The file that paddle.distributed.launch runs: it takes a file, no module."""

_PACKAGES = {
    **{"cv2": "opencv-python", "PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn"},
    "pkg_resources": '"setuptools<81"',
}
"""Packages that are not called as their modules are."""


def _register(adapter: str) -> None:
    check_launch_port()
    module = importlib.import_module(f"cyclemlp_backbones.adapters.{adapter}")
    getattr(module, f"register_{adapter}")(repair=True)


def run_action(adapter: str, action: str, args: argparse.Namespace | None) -> None:
    """`run_ACTION(args)` of the adapter's `launch`."""
    _register(adapter)  # first: it explains a missing toolkit
    launch = importlib.import_module(f"cyclemlp_backbones.adapters.{adapter}.launch")
    getattr(launch, f"run_{action}")(args)


def run_script(adapter: str, package: str, script: Path, arguments: Sequence[str]) -> None:
    """Runs a checkout's script with our components registered in the checkout's own `package`."""
    script = script.resolve()
    owners = [parent for parent in script.parents if (parent / package / "__init__.py").is_file()]
    root = owners[0] if owners else script.parent.parent
    sys.path[:0] = [str(root), str(script.parent)]
    sys.argv = [str(script), *arguments]
    _register(adapter)
    if script.stem == "train":
        importlib.import_module(f"cyclemlp_backbones.adapters.{adapter}.launch").check_arguments(arguments)
    runpy.run_path(str(script), run_name="__main__")


def taken(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Flags of those names as keyword arguments."""
    return {name: getattr(args, name) for name in names}


def how_to_go_on(adapter: str, arguments: Sequence[str]) -> str:
    """What to say behind "interrupted" of a training with these arguments: the checkpoint to resume from."""
    return importlib.import_module(f"cyclemlp_backbones.adapters.{adapter}.launch").how_to_go_on(arguments)


@contextlib.contextmanager
def importing(toolkit: str, package: str, extra: str) -> Iterator[None]:
    """ImportErrors of `package` with the remedy. PaddleSeg makes a folder in the home folder."""
    try:
        with writable_home():
            yield
    except ImportError as error:
        install = f'`pip install "cyclemlp-backbones[{extra}]"`'
        if sys.version_info >= (3, 12):
            install = f"its wheel needs Python 3.10 or 3.11; a checkout runs: `cyclemlp {extra} PATH/tools/train.py …`"
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == package:
            raise ImportError(f"{toolkit} is not installed; {install}") from error
        if isinstance(error, ModuleNotFoundError) and error.name:
            name = error.name.split(".")[0]
            raise ImportError(
                f"`import {package}` fails: {error}; `pip install {_PACKAGES.get(name, name)}` (a checkout may need "
                "more than the wheel: its requirements.txt lists it)"
            ) from error
        raise ImportError(
            f"`import {package}` fails: {error}. If it speaks of numpy: opencv-python 4.5 was built for numpy 1 and "
            f'does not load with numpy 2; `pip install "numpy<2"`, or all at once {install}'
        ) from error


@contextlib.contextmanager
def config_errors(
    path: str, *errors: type[Exception], hint: Callable[[str], str] = lambda message: ""
) -> Iterator[None]:
    """A toolkit's complaints about a configuration, as ValueError that names the file."""
    import yaml

    complaints: tuple[type[Exception], ...] = (AssertionError, KeyError, TypeError, AttributeError, yaml.YAMLError)
    try:
        yield
    except (*complaints, *errors) as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}{hint(str(error))}") from error
