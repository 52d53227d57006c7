"""PaddleDetection's configuration from a file and from KEY=VALUE options, with its mistakes explained."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ppdet.core.config.schema import SchemaDict
from ppdet.core.workspace import global_config, load_config, merge_config

# What PaddleDetection reads without a registered module of that name.
_SETTINGS = frozenset(
    (
        "_BASE_", "architecture", "metric", "num_classes", "worker_num", "epoch", "log_iter", "save_dir",
        "snapshot_epoch", "filename", "weights", "pretrain_weights", "finetune_exclude_pretrained_params", "use_gpu",
        "use_xpu", "use_npu", "use_mlu", "use_ema", "ema_decay", "ema_decay_type", "ema_black_list",
        "ema_filter_no_grad", "ema_decay_cycle", "cycle_epoch", "norm_type", "freeze_norm", "amp", "amp_level",
        "init_loss_scaling", "custom_white_list", "custom_black_list", "master_grad", "find_unused_parameters",
        "use_fused_allreduce_gradients", "fleet", "to_static", "print_flops", "print_params", "export", "export_onnx",
        "export_eb", "assign_on_cpu", "data_format", "plugins", "use_vdl", "vdl_log_dir", "use_wandb", "wandb",
        "classwise", "bias", "output_eval", "save_prediction_only", "IouType", "profiler_options", "save_proposals",
        "proposals_path", "num_cascade_stages", "num_cascade_stage", "map_type", "slim", "slim_type", "slim_method",
        "pretrain_student_weights", "pretrain_teacher_weights", "eval_height", "eval_width", "eval_size",
        "quant_batch_num", "unstructured_prune", "use_extra_data", "hidden_dim",
    )
)  # fmt: skip


@contextlib.contextmanager
def config_errors(path: str) -> Iterator[None]:
    """PaddleDetection's complaints about a configuration, as ValueError that names the file."""
    try:
        yield
    except (AssertionError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error


def read_config(path: str, options: Sequence[str]) -> Any:
    """The configuration of the file `path` with `options` ("KEY=VALUE", dots in KEY go down) merged over it.

    It is PaddleDetection's `global_config`, one per process. Raises FileNotFoundError, and ValueError for a key that
    nobody reads although a similar one exists.
    """
    file = Path(path)
    if not file.is_file():
        siblings = sorted(file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, [sibling.name for sibling in siblings], n=3)
        hint = f"; in {file.parent} there is {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"no configuration file {path}{hint}")
    with config_errors(path):
        load_config(path)
    for key in list(global_config):
        _check_key(key, path)
    overrides = parse_options(options)
    for key, value in overrides.items():
        _check_option(key, value)
    merge_config(overrides)
    if "architecture" not in global_config:
        raise ValueError(
            f"{path}: it names no architecture, as a whole configuration does; _base_ files are parts of one"
        )
    for name in ("use_gpu", "use_xpu", "use_npu", "use_mlu"):
        global_config.setdefault(name, False)
    global_config.setdefault("log_iter", 20)
    return global_config


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """["a.b=1", "c=[x, y]"] -> {"a": {"b": 1}, "c": ["x", "y"]}; values are plain YAML, and 1e-4 is a number."""
    merged: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise ValueError(f"-o takes KEY=VALUE, for example use_gpu=false; given {option!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"-o {option}: {error}") from error
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
            value = float(value)  # YAML 1.1 wants 1.0e-4
        level = merged
        *parents, last = key.split(".")
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise ValueError(f"-o {option}: another option gives {parent} a value")
        level[last] = value
    return merged


def _known(key: str) -> bool:
    return key in _SETTINGS or isinstance(global_config.get(key), SchemaDict)


def _near(key: str, names: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(key, names, n=3, cutoff=0.8)


def _all_keys() -> list[str]:
    return [*_SETTINGS, *(name for name, value in global_config.items() if isinstance(value, SchemaDict))]


def _check_key(key: str, path: str) -> None:
    if not _known(key) and (near := _near(key, _all_keys())):
        raise ValueError(f"{path}: nobody reads {key!r}; did you mean {' or '.join(near)}?")


def _check_option(key: str, value: Any) -> None:
    if not _known(key) and key not in global_config:
        near = _near(key, _all_keys())
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"-o {key}: the configuration has no such key{hint}")
    module = global_config.get(key)
    if isinstance(module, SchemaDict) and module.strict and isinstance(value, Mapping):
        for name in value:
            if name not in module.schema:
                raise ValueError(f"-o {key}.{name}: {key} takes {', '.join(sorted(module.schema))}")
