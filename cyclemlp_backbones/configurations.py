"""Configuration files as plain data: without the toolkit, and without running anything that they name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Plain data, and PaddleDetection's `!COCODataSet {…}`, which is a mapping with a name."""


def _named(loader: _Loader, name: str, node: yaml.Node) -> Any:
    values = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    return {"name": name, **values}


_Loader.add_multi_constructor("!", _named)


def read_configuration(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file over those that its `_base_` (PaddleSeg, ours) or `_BASE_` (PaddleDetection) names.

    Of several, PaddleSeg prefers the first that says a thing, PaddleDetection the last. ValueError for no valid YAML,
    no mapping, tags that would run code, and a base that leads back to its file; OSError for a missing file.
    """
    path = path.resolve()
    if path in seen:
        raise ValueError(f"{path}: its _base_ leads back to itself")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}; a configuration is a mapping of sections")
    merged: dict[str, Any] = {}
    for key, order in (("_base_", -1), ("_BASE_", 1)):
        names = tree.pop(key, None) or []
        for name in [names] if isinstance(names, str) else names[::order]:
            merged = merge(merged, read_configuration(path.parent / Path(name).expanduser(), (*seen, path)))
    return merge(merged, tree)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, mapping by mapping; one with PaddleSeg's `_inherited_: false` replaces."""
    if changes.get("_inherited_") is False:
        return {key: value for key, value in changes.items() if key != "_inherited_"}
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_options(options: Sequence[str], flag: str = "-o") -> dict[str, Any]:
    """["a.b=1", "c=[x, y]"] -> {"a": {"b": 1}, "c": ["x", "y"]}; values are plain YAML, and 1e-4 is a number."""
    merged: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise ValueError(f"{flag} takes KEY=VALUE, for example use_gpu=false; given {option!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{flag} {option}: {error}") from error
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
            value = float(value)  # YAML 1.1 wants 1.0e-4
        level = merged
        *parents, last = key.split(".")
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise ValueError(f"{flag} {option}: another option gives {parent} a value")
        level[last] = value
    return merged
