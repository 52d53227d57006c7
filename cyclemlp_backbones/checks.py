"""Values that users give, checked with messages that say what was given, what is allowed and what is near.

Standard library only.
"""

from __future__ import annotations

import argparse
import difflib
import numbers
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value`, if it is an integer from `least` to `most`, no boolean; else ValueError that calls it `name`."""
    whole = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None
    if whole is None or whole < least or (most is not None and whole > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; it takes an integer {allowed}")
    return whole


def boolean(text: str) -> bool:
    """A flag's value, for argparse."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}; it takes true or false")


def did_you_mean(given: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """ "; did you mean A or B?" for the names of `known` that are near `given`; "" where none is."""
    near = difflib.get_close_matches(given, list(known), n=3, cutoff=cutoff)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def visible(text: str) -> str:
    """`text`, the name of a file for example, with what a terminal would obey or cannot show written as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def existing_file(path: str | Path, what: str, suffixes: Sequence[str] = (".yml", ".yaml")) -> Path:
    """`path`, if it is a file; else FileNotFoundError that calls it `what` and names near files of its folder."""
    path = Path(path)
    if path.is_file():
        return path
    siblings = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    near = did_you_mean(path.name, [name for name in siblings if name.endswith(tuple(suffixes))])
    raise FileNotFoundError(f"no {what} {path}{near}")
