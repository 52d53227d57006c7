"""Repairs of a toolkit's release: a table of defects, each mended only where the installed release has it."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import paddle

from cyclemlp_backbones.adapters import guards

_LOG = logging.getLogger(__name__)
_Apply = Callable[[], None]


@dataclass(frozen=True)
class Repair:
    """One defect of a toolkit: `needed` probes the toolkit's code for it, `apply` replaces what has it.

    `until` is the release, or the upstream change, that makes the repair needless; the docstring of `apply` says what
    goes wrong.
    """

    name: str
    until: str
    needed: Callable[[], bool]
    apply: _Apply


def _paddle_exports_zlib() -> bool:
    return hasattr(ctypes.CDLL(paddle.base.libpaddle.__file__), "inflateReset2")


def _check_zlib_order() -> None:
    """Paddle 2.6 exports zlib's symbols, and a zlib loaded after it crashes or hangs in reading a PNG.

    The repair itself is the first line of `cyclemlp_backbones`; importing paddle before that is too early.
    """
    modules = list(sys.modules)  # in the order of their import
    if modules.index("paddle") < modules.index("zlib"):
        _LOG.warning(
            "Paddle was imported before zlib, and reading a PNG may crash: `import zlib` before `import paddle`"
        )


@dataclass(frozen=True)
class Repairs:
    """The repairs of the toolkit whose package is `package`.

    The environment variable `switch` holds names of repairs to leave out, separated by commas.
    """

    package: str
    switch: str
    rows: list[Repair] = field(
        default_factory=lambda: [
            Repair("zlib_order", "Paddle 3.0, which exports none", _paddle_exports_zlib, _check_zlib_order),
            Repair("yaml_code", "not mended upstream", guards.yaml_runs_code, guards.refuse_yaml_code),
            Repair("pickle_code", "not mended upstream", guards.load_runs_code, guards.check_before_load),
            Repair("lost_errors", "not mended in Paddle 3.3", guards.loader_waits_for_ever, guards.end_on_error),
            Repair("lost_workers", "not mended in Paddle 3.3", guards.workers_stay, guards.end_workers),
        ]
    )

    def row(self, name: str, *, until: str, needed: Callable[[], bool]) -> Callable[[_Apply], _Apply]:
        """Decorates the function that applies the repair `name`."""

        def add(apply: _Apply) -> _Apply:
            self.rows.append(Repair(name, until, needed, apply))
            return apply

        return add

    def apply(self) -> dict[str, str]:
        """Applies what is needed, once; says per repair "applied", "not needed" or "switched off".

        Raises ValueError if the switch names a repair that does not exist.
        """
        # Kept where the repairs are, in the toolkit: it outlives a reload of our modules.
        status: dict[str, str] = vars(sys.modules[self.package]).setdefault("_cyclemlp_repairs", {})
        names = [repair.name for repair in self.rows]
        off = [name for name in os.environ.get(self.switch, "").replace(" ", "").split(",") if name]
        for name in off:
            if name not in names:
                raise ValueError(f"{self.switch} names {name!r}; the repairs are {', '.join(names)}")
        for repair in self.rows:
            if repair.name in status:
                continue
            if repair.name in off:
                status[repair.name] = "switched off"
            elif repair.needed():
                repair.apply()
                status[repair.name] = "applied"
            else:
                status[repair.name] = "not needed"
        return dict(status)


def fails(probe: Callable[[], object], *errors: type[Exception]) -> bool:
    """Whether `probe` raises one of `errors`."""
    try:
        probe()
    except errors:
        return True
    return False


def scalars_do_not_concatenate() -> bool:
    """Since Paddle 2.6 the item of a 1-d tensor has no axis, and `paddle.concat` takes none of those."""
    counts = [paddle.shape(paddle.zeros([2]))[0]] * 2
    return fails(lambda: paddle.concat(counts), ValueError)
