"""How files, settings and checkpoints become a configuration, and how two configurations differ."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from classification.config import Config

BASE = "_base_"

RESUMABLE = (
    *(f"run.{key}" for key in ("resume", "output", "log_every", "save_every", "keep", "visualdl", "device")),
    *(f"data.{key}" for key in ("train_images", "val_images", "val_list", "workers", "eval_batch_size", "crop_pct")),
    *("data.train_list", "data.class_map"),  # where names and labels come from; these are compared themselves
    *("run.evaluate_every", "run.skip_nonfinite", "run.distributed", "model.pretrained", "model.replace_head"),
    *("distillation.teacher_weights", "data.max_broken"),
)
"""Keys that may differ between a checkpoint and the run that resumes it: they do not change the weights."""


def load_config(path: str | None = None, overrides: Iterable[tuple[str, Any]] = ()) -> Config:
    """The configuration of a YAML file (None: the defaults) with `overrides`, pairs of "section.key" and value.

    A file's `_base_` names another file, relative to it, that it changes. Unknown keys, wrong types and values that
    make no sense are a ValueError that names the key.
    """
    tree = _read(Path(path)) if path else {}
    for key, value in overrides:
        section, _, name = key.partition(".")
        if not name:
            raise ValueError(f"unknown key {key!r}: a setting is written section.key=value, e.g. schedule.epochs=100")
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise ValueError(f"{section} is {branch!r} in {path}; it takes a mapping of keys")
        branch[name] = value
    return config_from_dict(tree)


def parse_setting(text: str) -> tuple[str, Any]:
    """`section.key=value`, the value as YAML reads it -> (key, value)."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is no setting; write section.key=value, e.g. schedule.epochs=100")
    return key.strip(), yaml.safe_load(value)


def config_from_dict(tree: Mapping[str, Any]) -> Config:
    """The configuration of nested mappings, as `asdict` gives them and YAML files hold them."""
    return _build(Config, tree, "")


def flatten(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """ "section.key" -> value of every setting, tuples as lists."""
    tree = asdict(config) if isinstance(config, Config) else config
    return {
        f"{section}.{key}": list(value) if isinstance(value, tuple) else value
        for section, keys in tree.items()
        for key, value in keys.items()
    }


def differing_keys(saved: Mapping[str, Any], config: Config) -> list[str]:
    """One line for each setting in which a checkpoint's configuration differs so that resuming would not be exact."""
    old, new = flatten(saved), flatten(config)
    return [
        f"{key}: {old.get(key)!r} in the checkpoint, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in RESUMABLE
    ]


def dump_yaml(config: Config) -> str:
    """The whole configuration as a YAML file that `load_config` reads back."""
    tree = {
        section: {key: list(value) if isinstance(value, tuple) else value for key, value in keys.items()}
        for section, keys in asdict(config).items()
    }
    return yaml.safe_dump(tree, sort_keys=False)


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise ValueError(f"{path}: its {BASE} leads back to itself")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}; a configuration is a mapping of sections")
    base = tree.pop(BASE, None)
    if base is None:
        return tree
    return _merge(_read(path.parent / str(base), (*seen, path)), tree)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


_T = TypeVar("_T")


def _build(cls: type[_T], tree: Any, where: str) -> _T:
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where or 'the configuration'} is {tree!r}; it takes a mapping of keys")
    hints = typing.get_type_hints(cls)
    names = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    values = {}
    for key, value in tree.items():
        full = f"{where}.{key}" if where else str(key)
        if key not in names:
            raise ValueError(f"unknown key {full!r}; {_nearest(str(key), names, where)}")
        hint = hints[str(key)]
        values[str(key)] = _build(hint, value, full) if not where else _convert(value, hint, full)
    return cls(**values)


def _nearest(key: str, names: list[str], where: str) -> str:
    close = difflib.get_close_matches(key, names, 1, cutoff=0.5)
    if close:
        return f"did you mean {(f'{where}.' if where else '') + close[0]!r}?"
    sections = typing.get_type_hints(Config)
    section = None if where else next((name for name in names if key in typing.get_type_hints(sections[name])), None)
    if section:
        return f"did you mean {f'{section}.{key}'!r}?"
    return f"the keys {f'of {where} ' if where else ''}are {', '.join(names)}"


def _convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as the type `hint`; ValueError that names `key` if it is none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(value, next(argument for argument in arguments if argument is not type(None)), key)
    if origin is Literal:
        if value is None and "none" in arguments:
            value = "none"
        if value not in arguments:
            raise ValueError(f"{key} is {value!r}; choose from {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{key} is {value!r}; it takes a list of numbers")
        return tuple(_convert(entry, arguments[0], key) for entry in value)
    if hint is float and isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", value, re.I):
        value = float(value)  # YAML takes 1e-8, without a point, for a string
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
        raise ValueError(f"{key} is {value!r}; it takes {names[hint]}")
    return value
