"""Repairs of a toolkit's release: a table of defects, each mended only where the installed release has it."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass

import paddle

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repair:
    """One defect of a toolkit: `needed` probes for it, `apply` replaces what has it."""

    name: str
    what: str
    needed: Callable[[], bool]
    apply: Callable[[], None]


def fails(probe: Callable[[], object], *errors: type[Exception]) -> bool:
    """Whether `probe` raises one of `errors`."""
    try:
        probe()
    except errors:
        return True
    return False


def apply_needed(repairs: Sequence[Repair], switch: str, status: MutableMapping[str, str]) -> None:
    """Applies what is needed and not in `status` yet; notes per name "applied", "not needed" or "switched off" there.

    The environment variable `switch` holds names of repairs to leave out, separated by commas; ValueError if it names
    one that does not exist.
    """
    names = [repair.name for repair in repairs]
    off = [name for name in os.environ.get(switch, "").replace(" ", "").split(",") if name]
    for name in off:
        if name not in names:
            raise ValueError(f"{switch} names {name!r}; the repairs are {', '.join(names)}")
    for repair in repairs:
        if repair.name in status:
            continue
        if repair.name in off:
            status[repair.name] = "switched off"
        elif repair.needed():
            repair.apply()
            status[repair.name] = "applied"
        else:
            status[repair.name] = "not needed"


def _paddle_exports_zlib() -> bool:
    return hasattr(ctypes.CDLL(paddle.base.libpaddle.__file__), "inflateReset2")


def _check_zlib_order() -> None:
    """The repair itself is the first line of `cyclemlp_backbones`; importing paddle before that is too early."""
    modules = list(sys.modules)  # in the order of their import
    if modules.index("paddle") < modules.index("zlib"):
        _LOG.warning(
            "Paddle was imported before zlib, and reading a PNG may crash: `import zlib` before `import paddle`"
        )


ZLIB_ORDER = Repair(
    "zlib_order",
    "Paddle 2.6 exports zlib's symbols, and a zlib loaded after it crashes or hangs in reading a PNG",
    _paddle_exports_zlib,
    _check_zlib_order,
)
