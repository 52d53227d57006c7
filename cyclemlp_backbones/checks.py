"""Values that users give, checked with messages that say what was given, what is allowed and what is near.

Standard library only.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import numbers
import os
import re
import socket
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value`, if it is an integer from `least` to `most`, no boolean; else ValueError that calls it `name`."""
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or value < least or (most is not None and value > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; it takes an integer {allowed}")
    return int(value)


def check_integers(name: str, values: Any, *, count: int, least: int) -> None:
    """ValueError unless `values` is a sequence of `count` integers of at least `least`."""
    listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count
    if not listed or any(type(value) is not int or value < least for value in values):
        raise ValueError(f"{name} is {values!r}; it takes {count} integers of at least {least}")


def check_positive(name: str, values: Any, *, count: int) -> None:
    """ValueError unless `values` is a sequence of `count` numbers above 0."""
    listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count
    if not listed or not all(isinstance(value, (int, float)) and value > 0 for value in values):
        raise ValueError(f"{name} is {values!r}; it takes {count} positive numbers")


def check_fraction(name: str, value: Any) -> float:
    """`value`, if it is a number from 0 up to, but not including, 1; else ValueError."""
    if not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is {value!r}; it takes a probability from 0 up to, but not including, 1")
    return float(value)


def check_subset(name: str, values: Any, count: int) -> tuple[int, ...]:
    """`values` counted from 0, if they are a non-empty, increasing choice of 0 .. `count` - 1, where -1 stands for the
    last; else ValueError."""
    listed = isinstance(values, Sequence) and not isinstance(values, (str, bytes))
    integers = listed and len(values) > 0 and all(type(value) is int for value in values)
    chosen = tuple(value + count if value < 0 else value for value in values) if integers else ()
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= count:
        raise ValueError(
            f"{name} is {values!r}; it takes a non-empty, increasing subset of {list(range(count))}, "
            f"or, from the end, of {list(range(-count, 0))}"
        )
    return chosen


def check_kernel_size(kernel_size: Any) -> tuple[int, int]:
    """`kernel_size`, if it is (1, K) or (K, 1) with an integer K of at least 1; else ValueError."""
    sizes = tuple(kernel_size) if isinstance(kernel_size, (tuple, list)) else ()
    if len(sizes) != 2 or 1 not in sizes or not all(type(size) is int and size >= 1 for size in sizes):
        raise ValueError(f"kernel_size is {kernel_size!r}; CycleFC takes (1, K) or (K, 1) with an integer K >= 1")
    return sizes[0], sizes[1]


def check_map(shape: Sequence[int], layout: str, channels: int, least: int = 0) -> Sequence[int]:
    """`shape`, if it is that of feature maps or images: `layout` is "NCHW" or "NHWC", H and W are `least` and more, and
    -1 stands for an open size; else ValueError."""
    # No search in `layout`: Paddle's tracer of bytecode does not know it.
    axis, height = (1, 2) if layout == "NCHW" else (3, 1)
    fits = len(shape) == 4 and (shape[axis] == channels or shape[axis] == -1)
    if not fits or 0 <= shape[height] < least or 0 <= shape[height + 1] < least:
        wanted = ", ".join(layout).replace("C", str(channels))
        remedy = f", heights and widths of {least} pixels and more: resize or pad a smaller image" if least else ""
        raise ValueError(f"the input has shape {list(shape)}; it takes [{wanted}]{remedy}")
    return shape


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


def dataclass_from(kind: type[_T], values: Any, where: str = "") -> _T:
    """An instance of the dataclass `kind` from nested mappings, as `dataclasses.asdict` gives them and YAML files hold
    them, lists as tuples.

    Unknown and missing keys and wrong types are a ValueError that names the key, with `where`, the key of the whole.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'the file'} is {values!r}; it takes a mapping of keys")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in fields:
            deeper = [f"{name}.{key}" for name in fields if key in getattr(hints[name], "__dataclass_fields__", ())]
            near = did_you_mean(str(key), fields, cutoff=0.5) or did_you_mean(str(key), deeper, cutoff=0.0)
            raise ValueError(f"unknown key {prefix + str(key)!r}{near or '; the keys are ' + ', '.join(fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where or 'the file'} lacks {', '.join(missing)}")
    return kind(**{key: _converted(value, hints[key], prefix + key) for key, value in values.items()})


_TAKES = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


def _converted(value: Any, hint: Any, key: str) -> Any:
    """`value` as the type `hint` has it; ValueError that names `key` where it is none."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return dataclass_from(typing.cast(type, hint), value, key)
    if origin in (typing.Union, types.UnionType):
        given = next(part for part in parts if part is not type(None))  # the unions here are optional values
        return None if value is None else _converted(value, given, key)
    if origin is typing.Literal:
        value = "none" if value is None and "none" in parts else value
        if value not in parts:
            raise ValueError(f"{key} is {value!r}; choose from {', '.join(map(str, parts))}")
        return value
    if origin is tuple:
        count = None if parts[-1] is Ellipsis else len(parts)
        if not isinstance(value, (list, tuple)) or count not in (None, len(value)):
            raise ValueError(f"{key} is {value!r}; it takes a list{f' of {count}' if count else ''}")
        return tuple(_converted(inner, parts[0] if count is None else parts[n], key) for n, inner in enumerate(value))
    if origin is not None:  # a mapping
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} is {value!r}; it takes a mapping")
        return {_converted(name, parts[0], key): _converted(inner, parts[1], key) for name, inner in value.items()}
    if hint is float and isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", value, re.I):
        value = float(value)  # YAML takes 1e-8, without a point, for a string
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ValueError(f"{key} is {value!r}; it takes {_TAKES[hint]}")
    return value


def check_launch_port() -> None:
    """OSError where the port is in use that the first of several processes opens: Paddle aborts there."""
    given = os.environ
    if given.get("PADDLE_TRAINER_ID") != "0" or int(given.get("PADDLE_TRAINERS_NUM", "1")) == 1:
        return
    address = given.get("MASTER_PORT") or given.get("PADDLE_MASTER") or given["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]
    port = int(address.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise OSError(
            f"port {port} of this launch ({address}): {os.strerror(error.errno or 0)}; give another, or none"
        ) from error
