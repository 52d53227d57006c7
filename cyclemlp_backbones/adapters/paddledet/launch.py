"""Train, evaluate, infer and export with PaddleDetection's library: what its tools/*.py do, for who has only the wheel.

Each function takes the parsed flags of its command (see cli/det.py) and runs to the end. What a caller can mend, a
configuration, a data set or a weights file, is a ValueError or an OSError.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
from ppdet.core.config.schema import SchemaDict
from ppdet.core.workspace import create, global_config, load_config, merge_config
from ppdet.data.source.dataset import DetDataset
from ppdet.engine import Trainer, init_parallel_env, set_random_seed
from ppdet.engine.env import init_fleet_env
from ppdet.metrics.coco_utils import json_eval_results
from ppdet.slim import build_slim_model
from ppdet.utils.check import check_version

from cyclemlp_backbones.adapters import guards
from cyclemlp_backbones.adapters.launch import config_errors, taken
from cyclemlp_backbones.checks import did_you_mean, existing_file
from cyclemlp_backbones.coco import check_class_count
from cyclemlp_backbones.configurations import parse_options
from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.weights.download import is_url
from cyclemlp_backbones.weights.loading import load_model_weights, load_weights

_LOG = logging.getLogger(__name__)
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp")
_COCO_CLASSES = 80
_SLICING = ("slice_size", "overlap_ratio", "combine_method", "match_threshold", "match_metric")

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


def read_config(path: str, options: Sequence[str]) -> Any:
    """The configuration of the file `path` with `options` ("KEY=VALUE", dots in KEY go down) merged over it.

    It is PaddleDetection's `global_config`, one per process. Raises FileNotFoundError, and ValueError for a key that
    nobody reads although a similar one exists.
    """
    existing_file(path, "configuration file")
    with config_errors(path):
        load_config(path)
    for key in global_config:
        if not _known(key) and (hint := _near(key)):
            raise ValueError(f"{path}: nobody reads {key!r}{hint}")
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


def _known(key: str) -> bool:
    return key in _SETTINGS or isinstance(global_config.get(key), (SchemaDict, DetDataset))  # "!ImageFolder"


def _near(key: str) -> str:
    modules = [name for name, value in global_config.items() if isinstance(value, SchemaDict)]
    return did_you_mean(key, [*_SETTINGS, *modules], cutoff=0.8)


def _check_option(key: str, value: Any) -> None:
    if not _known(key) and key not in global_config:
        raise ValueError(f"-o {key}: the configuration has no such key{_near(key)}")
    module = global_config.get(key)
    if isinstance(module, SchemaDict) and module.strict and isinstance(value, Mapping):
        for name in value:
            if name not in module.schema:
                raise ValueError(f"-o {key}.{name}: {key} takes {', '.join(sorted(module.schema))}")


def _prepare(args: argparse.Namespace, mode: str, *flags: str) -> Any:
    """The configuration, under those of `flags` that are given, on its device."""
    replaced = [] if mode == "train" else ["CycleMLP.pretrained=null"]  # by `weights`
    config = read_config(args.config, [*args.opt, *replaced])
    config.update({name: value for name in flags if (value := getattr(args, name)) not in (None, False)})
    if config.use_gpu and not paddle.is_compiled_with_cuda():
        _LOG.warning("use_gpu is true, but this Paddle has no CUDA: running on the CPU")
        config.use_gpu = False
    if config.get("norm_type") == "sync_bn" and not config.use_gpu:
        config["norm_type"] = "bn"
    if config.get("amp") and not config.use_gpu:
        _LOG.warning("--amp has no effect on a CPU: mixed precision is for GPUs; running in fp32")
    for device in ("gpu", "npu", "xpu", "mlu"):
        if config[f"use_{device}"]:
            paddle.set_device(device)
            break
    else:
        paddle.set_device("cpu")
    check_version()
    if args.slim_config:
        with config_errors(args.slim_config):
            config = build_slim_model(config, args.slim_config, mode=mode)
    return config


def _check_annotations_are_there(config: Any, section: str) -> None:
    """PaddleDetection would begin to download COCO, whose folder may only be misspelt."""
    dataset = config[section]
    if not isinstance(dataset, Mapping) or dataset.get("name") != "COCODataSet":
        return
    path = Path(dataset.get("dataset_dir") or "", dataset.get("anno_path") or "")
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}; -o {section}.dataset_dir=DIR names the folder of the data")


def _build(args: argparse.Namespace, config: Any, mode: str) -> Trainer:
    if mode in ("train", "eval"):
        _check_annotations_are_there(config, f"{mode.capitalize()}Dataset")
    with config_errors(args.config):
        trainer = Trainer(config, mode=mode)
    if classes := len(getattr(trainer.dataset, "catid2clsid", ())):
        check_class_count(trainer.dataset.get_anno(), classes, config.num_classes, f"{args.config}: ")
    return trainer


def _weights_file(weights: str | None, key: str) -> str:
    """`weights`, a URL or a path that exists; the suffix .pdparams may be left out, as PaddleDetection allows."""
    if not weights:
        raise ValueError(f"the configuration gives no {key}; -o {key}=output/NAME/model_final.pdparams")
    if is_url(weights) or weights.startswith("ppdet://"):
        return weights
    path = weights if weights.endswith(".pdparams") else f"{weights}.pdparams"
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no weights file {path}; -o {key}=FILE names another")
    return path


def _load_trained(trainer: Trainer, config: Any) -> None:
    """The weights that training saved, which have to fit: PaddleDetection itself would go on with whatever matches."""
    if not trainer.is_loaded_weights:
        load_model_weights(trainer.model, _weights_file(config.get("weights"), "weights"))


def _load_for_training(trainer: Trainer, config: Any) -> None:
    """`pretrain_weights`, if given: the backbone strictly, neck and heads as far as PaddleDetection finds a match."""
    if not config.get("pretrain_weights"):
        return
    path = _weights_file(config.pretrain_weights, "pretrain_weights")
    backbone = getattr(trainer.model, "backbone", None)
    if isinstance(backbone, CycleNet):
        load_weights(backbone, path)
    trainer.load_weights(path)


def _whole_checkpoint(resume: str) -> Path:
    weights = Path(_weights_file(resume, "resume"))
    parts = [weights, weights.with_suffix(".pdopt")]
    guards.check_checkpoint(f"--resume {resume}", parts, lambda: _go_on(weights.parent))
    return weights


def _resume(trainer: Trainer, resume: str) -> None:
    weights = _whole_checkpoint(resume)
    load_model_weights(trainer.model, weights)  # strict; resume_weights leaves out what does not fit
    trainer.resume_weights(str(weights))


def run_train(args: argparse.Namespace) -> None:
    """Trains; rank 0 writes save_dir/NAME at every snapshot_epoch and the end; --eval adds best_model."""
    config = _prepare(
        args, "train", "amp", "fleet", "to_static", "use_vdl", "vdl_log_dir", "use_wandb", "save_prediction_only",
        "profiler_options", "save_proposals", "proposals_path"
    )  # fmt: skip
    if config.TrainDataset.get("allow_empty"):
        config["find_unused_parameters"] = True  # a device's batch without any object leaves parameters unused
    if config.get("fleet"):
        init_fleet_env(config.get("find_unused_parameters", False))
    else:
        init_parallel_env()
    if args.enable_ce:
        set_random_seed(0)
    if args.eval:
        _check_annotations_are_there(config, "EvalDataset")
    trainer = _build(args, config, "train")
    if len(trainer.loader) == 0:
        raise ValueError(
            f"{args.config}: {len(trainer.dataset)} training images do not fill one batch of "
            f"{config.TrainReader['batch_size']} per device"
        )
    if args.resume:
        _resume(trainer, args.resume)
    else:
        _load_for_training(trainer, config)
    trainer.train(args.eval)


def run_eval(args: argparse.Namespace) -> None:
    """Evaluates on EvalDataset: COCO's average precisions of boxes, and of masks if there are any."""
    config = _prepare(args, "eval", "amp", "bias", "classwise", "output_eval", "save_prediction_only")
    if args.json_eval:
        folder = Path(args.output_eval or ".")
        if not any((folder / name).is_file() for name in ("proposal.json", "bbox.json", "mask.json")):
            raise FileNotFoundError(f"--json_eval: {folder} has none of proposal.json, bbox.json, mask.json")
        json_eval_results(config.metric, json_directory=str(folder), dataset=create("EvalDataset")())
        return
    if args.slice_infer:
        _check_sahi()
        if config["EvalDataset"].get("name") != "SlicedCOCODataSet":  # else a KeyError in the first batch
            raise ValueError(
                f"{args.config}: --slice_infer takes an EvalDataset that cuts its images, "
                f"name: SlicedCOCODataSet; it is {config['EvalDataset'].get('name')}"
            )
    init_parallel_env()
    trainer = _build(args, config, "eval")
    _load_trained(trainer, config)
    if args.slice_infer:
        trainer.evaluate_slice(**taken(args, *_SLICING))
    else:
        trainer.evaluate()


def _check_sahi() -> None:
    if importlib.util.find_spec("sahi") is None:
        raise ImportError("--slice_infer cuts images with the package sahi: pip install sahi")


def _images(args: argparse.Namespace) -> list[str]:
    if args.infer_img is not None:
        if not os.path.isfile(args.infer_img):
            raise FileNotFoundError(f"no image --infer_img {args.infer_img}")
        return [args.infer_img]
    if args.infer_dir is None:
        raise ValueError("give an image with --infer_img or a folder of images with --infer_dir")
    folder = Path(args.infer_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder --infer_dir {folder}")
    images = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in _IMAGES)
    if not images:
        raise FileNotFoundError(f"no image ({', '.join(_IMAGES)}) in --infer_dir {folder}")
    return images


def _check_class_names(trainer: Trainer, args: argparse.Namespace, config: Any) -> None:
    """Without TestDataset's annotation file, PaddleDetection would take COCO's names for any classes."""
    names = trainer.dataset.get_anno()
    if (names is None or not os.path.isfile(names)) and config.num_classes != _COCO_CLASSES:
        raise FileNotFoundError(
            f"{args.config}: no file {names} with the names of the {config.num_classes} classes; "
            "TestDataset's dataset_dir and anno_path give it, an annotation file or a text file with a name a line"
        )


def run_infer(args: argparse.Namespace) -> None:
    """Writes a picture for each image into `output_dir`, with boxes, labels and masks."""
    images = _images(args)
    if args.slice_infer:
        _check_sahi()
    config = _prepare(args, "test", "use_vdl", "vdl_log_dir")
    trainer = _build(args, config, "test")
    _check_class_names(trainer, args, config)
    _load_trained(trainer, config)
    arguments = taken(args, "draw_threshold", "output_dir", "save_results", "visualize")
    if args.slice_infer:
        trainer.slice_predict(images, **taken(args, *_SLICING), **arguments)
    else:
        trainer.predict(images, **arguments)


def run_export(args: argparse.Namespace) -> None:
    """Writes an inference model for paddle.inference and infer_cfg.yml into `output_dir`/NAME."""
    config = _prepare(args, "test")
    trainer = _build(args, config, "test")
    _check_class_names(trainer, args, config)
    _load_trained(trainer, config)
    folder = Path(args.output_dir) / config.filename
    for stale in folder.glob("model.*"):
        stale.unlink()  # else an older Paddle's .pdmodel would stand beside this one's .json
    trainer.export(args.output_dir)
    if args.export_serving_model:
        from paddle_serving_client.io import inference_model_to_serving

        inference_model_to_serving(
            dirname=str(folder),
            serving_server=str(folder / "serving_server"),
            serving_client=str(folder / "serving_client"),
            model_filename="model.pdmodel",
            params_filename="model.pdiparams",
        )


def how_to_go_on(arguments: Sequence[str]) -> str:
    """Behind "interrupted": the last whole checkpoint of the configuration that was read, by us or by a script."""
    folder = Path(global_config.get("save_dir", "output"))
    return _go_on(folder / global_config.get("filename", ""), folder)  # the latter from release 2.7 on


def _go_on(folder: Path, *others: Path) -> str:
    found = {*folder.rglob("*.pdparams"), *(file for other in others for file in other.glob("*.pdparams"))}
    saved = sorted(found, key=lambda weights: weights.stat().st_mtime, reverse=True)
    return guards.how_to_go_on("-r", {file: [file, file.with_suffix(".pdopt")] for file in saved}, folder)


def check_arguments(arguments: Sequence[str]) -> None:
    """Before a script trains with these arguments: ValueError for a checkpoint that it cannot resume from."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-r", "--resume")
    if resume := parser.parse_known_args(arguments)[0].resume:
        _whole_checkpoint(resume)
