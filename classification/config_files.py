"""How files, settings and checkpoints become a configuration, and how two configurations differ."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from cyclemlp_backbones.checks import dataclass_from, existing_file
from cyclemlp_backbones.configurations import read_configuration

from .config import Config

SHIPPED = Path(__file__).resolve().parent / "configs"

RESUMABLE = (
    *(
        f"run.{key}"
        for key in ("resume", "output", "log_every", "save_every", "keep", "visualdl", "tensorboard", "wandb", "device")
    ),
    *(f"data.{key}" for key in ("train_images", "val_images", "val_list", "workers", "eval_batch_size", "crop_pct")),
    *("data.train_list", "data.class_map"),  # where names and labels come from; these are compared themselves
    *("run.evaluate_every", "run.skip_nonfinite", "run.distributed", "model.pretrained", "model.replace_head"),
    *("distillation.teacher_weights", "data.max_broken"),
)
"""Keys that may differ between a run state and the run that resumes it: they do not change the weights."""


def load_config(path: str | None = None, overrides: Iterable[tuple[str, Any]] = ()) -> Config:
    """The configuration of a YAML file (None: the defaults) with `overrides`, pairs of "section.key" and value.

    A bare name that is no file here is a configuration that ships. A file's `_base_` names another file, relative to
    it, that it changes. Unknown keys, wrong types and values that make no sense are a ValueError that names the key.
    """
    tree: dict[str, Any] = {}
    if path:
        ships = Path(path).name == path and not Path(path).is_file()
        tree = read_configuration(existing_file(SHIPPED / path if ships else path, "configuration"))
    for key, value in overrides:
        section, _, name = key.partition(".")
        if not name:
            raise ValueError(f"unknown key {key!r}: a setting is written section.key=value, e.g. schedule.epochs=100")
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise ValueError(f"{section} is {branch!r} in {path}; it takes a mapping of keys")
        branch[name] = value
    return dataclass_from(Config, tree)


def parse_setting(text: str) -> tuple[str, Any]:
    """`section.key=value`, the value as YAML reads it -> (key, value)."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is no setting; write section.key=value, e.g. schedule.epochs=100")
    return key.strip(), yaml.safe_load(value)


def as_tree(config: Config) -> dict[str, dict[str, Any]]:
    """Section -> key -> value as YAML and JSON hold it: tuples as lists."""
    return json.loads(json.dumps(asdict(config)))


def differing_keys(saved: Mapping[str, Mapping[str, Any]], config: Config) -> list[str]:
    """One line for each setting in which a run state's configuration differs so that resuming would not be exact."""
    old, new = (
        {f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()}
        for tree in (saved, as_tree(config))
    )
    return [
        f"{key}: {old.get(key)!r} in the run state, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in RESUMABLE
    ]


def dump_yaml(config: Config) -> str:
    """The whole configuration as a YAML file that `load_config` reads back."""
    return yaml.safe_dump(as_tree(config), sort_keys=False)


def describe_settings() -> str:
    """Every setting with its default, and what the sections' settings mean."""
    lines = ["every setting with its default (--set section.key=value):"]
    for section, keys in as_tree(config := Config()).items():
        meaning = inspect.getdoc(type(getattr(config, section)))
        lines += ["", *(f"  {section}.{key} = {json.dumps(value)}" for key, value in keys.items())]
        lines.append(textwrap.indent(meaning or "", "    "))
    return "\n".join(lines)
