"""Train, evaluate, predict and export with PaddleSeg's library: what its tools/*.py do, for who has only the wheel.

Each function takes the parsed flags of its command (see cli/seg.py) and runs to the end. What a caller can mend, a
configuration or a weights file, is a ValueError or an OSError.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any

import paddle
import yaml
from paddle import nn
from paddleseg.core import evaluate, predict, train
from paddleseg.cvlibs import Config, SegBuilder, manager
from paddleseg.deploy.export import WrappedModel
from paddleseg.transforms import Compose
from paddleseg.utils import get_image_list, utils

from cyclemlp_backbones.adapters import guards
from cyclemlp_backbones.adapters.launch import config_errors, taken
from cyclemlp_backbones.checks import did_you_mean, existing_file
from cyclemlp_backbones.pictures import class_palette
from cyclemlp_backbones.weights.loading import load_model_weights

_TRAINING = (
    "save_dir", "resume_model", "save_interval", "log_iters", "num_workers", "use_vdl", "use_ema",
    "keep_checkpoint_max", "precision", "amp_level", "profiler_options",
)  # fmt: skip
_LOG = logging.getLogger(__name__)
_REGISTRIES = (
    manager.MODELS, manager.BACKBONES, manager.DATASETS, manager.TRANSFORMS, manager.LOSSES, manager.OPTIMIZERS
)  # fmt: skip


def _near_component(message: str) -> str:
    unknown = re.search(r"The specified component \((.*?)\)", message)
    if not unknown:
        return ""
    return did_you_mean(unknown[1], [name for part in _REGISTRIES for name in part.components_dict], cutoff=0.5)


def read_config(path: str, opts: Sequence[str] | None = None, **overrides: object) -> Config:
    """PaddleSeg's configuration of the file `path`, with `opts` and `overrides` over it."""
    existing_file(path, "configuration file")
    with seg_errors(path):
        return Config(path=path, opts=list(opts or ()) or None, **overrides)


def seg_errors(path: str) -> AbstractContextManager[None]:
    """PaddleSeg's complaints about the configuration `path`, as ValueError."""
    return config_errors(path, RuntimeError, hint=_near_component)


def open_dataset(settings: Mapping[str, Any]) -> Any:
    """The data set of a section of the configuration, its samples as they lie in the files."""
    with seg_errors(f"type: {settings.get('type')}"):
        given = {key: value for key, value in settings.items() if key not in ("type", "transforms")}
        return manager.DATASETS[settings["type"]](**given, transforms=[])


def _load_config(args: argparse.Namespace, **overrides: object) -> tuple[Config, SegBuilder]:
    config = read_config(args.config, args.opts, **overrides)
    with seg_errors(args.config):
        utils.show_env_info()
        utils.show_cfg_info(config)
        _set_data_format(config, getattr(args, "data_format", "NCHW"))
        if getattr(args, "model_path", None):
            leave_out_pretrained(config)
        return config, SegBuilder(config)


def leave_out_pretrained(config: Config) -> None:
    """For a checkpoint that has all: nothing is downloaded, or missed, that it would replace."""
    model = config.dic["model"]
    model.pop("pretrained", None)
    if isinstance(model.get("backbone"), dict):
        model["backbone"]["pretrained"] = None


def _set_data_format(config: Config, data_format: str) -> None:
    if data_format == "NCHW":
        return
    model = config.dic["model"]
    if model["type"] != "DeepLabV3P":
        raise ValueError(f"--data_format NHWC is for DeepLabV3P only; the configuration's model is {model['type']}")
    for part in (model, model["backbone"], *config.dic["loss"]["types"]):
        part["data_format"] = data_format


def _load_trained(model: nn.Layer, path: str | None) -> None:
    """The weights that training saved, which have to fit: PaddleSeg itself would go on with whatever matches."""
    if path is None:
        _LOG.warning("no --model_path: the weights are those that the configuration gives, or random ones")
    else:
        load_model_weights(model, path)


def _check_resume_folder(path: str | None) -> None:
    if path is None:
        return
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder --resume_model {path}; training writes iter_N, for example output/iter_1000"
        )
    if not folder.name.rpartition("_")[2].isdigit():
        raise ValueError(
            f"--resume_model {path} does not end in an iteration; it takes a folder such as output/iter_1000"
        )
    guards.check_checkpoint(f"--resume_model {path}", _parts(folder), lambda: _go_on(folder.parent))


def _parts(folder: Path) -> list[Path]:
    return [folder / "model.pdparams", folder / "model.pdopt"]


def _go_on(save_dir: Path) -> str:
    folders = [folder for folder in save_dir.glob("iter_*") if re.fullmatch(r"iter_\d+", folder.name)]
    folders.sort(key=lambda folder: int(folder.name.removeprefix("iter_")), reverse=True)
    return guards.how_to_go_on("--resume_model", {folder: _parts(folder) for folder in folders}, save_dir)


def _saving(arguments: Sequence[str]) -> argparse.Namespace:
    """`save_dir` and `resume_model` of a training's arguments, a script's too."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--save_dir", default="./output")
    parser.add_argument("--resume_model")
    return parser.parse_known_args(arguments)[0]


def check_arguments(arguments: Sequence[str]) -> None:
    """Before a script trains with these arguments: OSError or ValueError for what it cannot save to or resume from."""
    given = _saving(arguments)
    _check_resume_folder(given.resume_model)
    guards.check_save_dir(given.save_dir)


def run_train(args: argparse.Namespace) -> None:
    """Trains; rank 0 writes `save_dir`/iter_N at every `save_interval` and the end; --do_eval adds best_model."""
    _check_resume_folder(args.resume_model)
    if args.profiler_options is not None and not hasattr(paddle.utils, "profiler"):
        raise ValueError(
            f"--profiler_options needs paddle.utils.profiler, which Paddle {paddle.__version__} does not have; "
            "leave the flag out and use paddle.profiler"
        )
    config, builder = _load_config(args, **taken(args, "learning_rate", "iters", "batch_size"))
    utils.set_seed(args.seed)
    utils.set_device(args.device)
    utils.set_cv2_num_threads(args.num_workers)
    if args.precision == "fp16" and paddle.get_device() == "cpu":
        _LOG.warning("--precision fp16 has no effect on a CPU: mixed precision is for GPU and XPU; training in fp32")
    with seg_errors(args.config):
        model = utils.convert_sync_batchnorm(builder.model, args.device)
        train_dataset = builder.train_dataset
        val_dataset = builder.val_dataset if args.do_eval else None
        optimizer, losses = builder.optimizer, builder.loss
    if args.repeats > 1:
        train_dataset.file_list *= args.repeats
    processes = paddle.distributed.get_world_size()
    if -(-len(train_dataset) // processes) < config.batch_size:  # PaddleSeg would wait for a batch for ever
        shared = f" on each of {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"{args.config}: {len(train_dataset)} training images do not fill one batch of {config.batch_size}{shared}"
        )
    guards.check_save_dir(args.save_dir)
    train(
        model=model,
        train_dataset=train_dataset,
        val_dataset=val_dataset,
        optimizer=optimizer,
        losses=losses,
        iters=config.iters,
        batch_size=config.batch_size,
        test_config=config.test_config,
        to_static_training=config.to_static_training,
        **taken(args, *_TRAINING),
    )


def _test_config(config: Config, args: argparse.Namespace, augment: str) -> dict[str, object]:
    """The configuration's test_config under the flags; `augment` is the command's name for test-time augmentation."""
    test_config = config.test_config
    configured = test_config.pop("aug_eval", False)
    if getattr(args, augment):
        test_config.update(taken(args, augment, "scales", "flip_horizontal", "flip_vertical"))
    elif configured and augment == "aug_eval":
        test_config[augment] = configured
    if args.is_slide:
        if args.crop_size is None or args.stride is None:
            raise ValueError("--is_slide needs --crop_size WIDTH HEIGHT and --stride WIDTH HEIGHT")
        test_config.update(taken(args, "is_slide", "crop_size", "stride"))
    return test_config


def run_val(args: argparse.Namespace) -> None:
    """Evaluates on the configuration's val_dataset and logs mIoU, accuracy, kappa, Dice, and IoU per class."""
    config, builder = _load_config(args)
    test_config = _test_config(config, args, "aug_eval")
    utils.set_device(args.device)
    with seg_errors(args.config):
        model, val_dataset = builder.model, builder.val_dataset
    _load_trained(model, args.model_path)
    evaluate(model, val_dataset, num_workers=args.num_workers, auc_roc=args.auc_roc, **test_config)


def run_predict(args: argparse.Namespace) -> None:
    """Writes, per image, the classes in colours and the image with the colours over it, below `save_dir`."""
    config, builder = _load_config(args)
    test_config = _test_config(config, args, "aug_pred")
    test_config["custom_color"] = args.custom_color or [*chain(*class_palette(256))]  # as `cyclemlp predict`
    utils.set_device(args.device)
    with seg_errors(args.config):
        model, transforms = builder.model, Compose(builder.val_transforms)
    _load_trained(model, args.model_path)
    image_list, image_dir = get_image_list(args.image_path)
    predict(
        model,
        model_path=args.model_path,
        transforms=transforms,
        image_list=image_list,
        image_dir=image_dir,
        save_dir=args.save_dir,
        **test_config,
    )


def run_export(args: argparse.Namespace) -> None:
    """Writes an inference model for paddle.inference and deploy.yaml, which names its files and the preprocessing."""
    os.environ["PADDLESEG_EXPORT_STAGE"] = "True"  # PaddleSeg's layers then leave SyncBatchNorm out
    config, builder = _load_config(args)
    with seg_errors(args.config):
        model = builder.model
    _load_trained(model, args.model_path)
    if args.output_op != "none":
        model = WrappedModel(model, args.output_op)
    model.eval()
    channels = getattr(getattr(builder.model, "backbone", None), "in_channels", 3)
    shape = args.input_shape or [None, channels, None, None]
    image = paddle.static.InputSpec(shape=list(shape), dtype="float32")
    model = paddle.jit.to_static(model, input_spec=[image], full_graph=True)
    stem, description = ("inference", "inference.yml") if args.for_fd else ("model", "deploy.yaml")
    folder = Path(args.save_dir)
    for stale in folder.glob(f"{stem}.*"):
        stale.unlink()  # else an older Paddle's .pdmodel would stand beside this one's .json
    with warnings.catch_warnings():
        # Paddle's own zeros_like asks a graph's tensor for its place, and Paddle warns about that, once per use.
        warnings.filterwarnings("ignore", message="Tensor do not have 'place' interface")
        paddle.jit.save(model, str(folder / stem))
    deploy = {
        "model": _program_file(folder, stem),
        "params": f"{stem}.pdiparams",
        "transforms": config.val_dataset_cfg.get("transforms"),
        "input_shape": shape,
        "output_op": args.output_op,
        "output_dtype": "int32" if args.output_op == "argmax" else "float32",
    }
    (folder / description).write_text(yaml.safe_dump({"Deploy": deploy}), encoding="utf-8")
    _LOG.info("the inference model is in %s: %s, %s, %s", folder, deploy["model"], deploy["params"], description)


def _program_file(folder: Path, stem: str) -> str:
    """Paddle 3 writes the program as .json, Paddle 2 as .pdmodel."""
    for suffix in (".json", ".pdmodel"):
        if (folder / (stem + suffix)).is_file():
            return stem + suffix
    raise FileNotFoundError(f"paddle.jit.save wrote neither {stem}.json nor {stem}.pdmodel into {folder}")


def how_to_go_on(arguments: Sequence[str]) -> str:
    """Behind "interrupted": the last whole checkpoint of a training with these arguments, its own or a script's."""
    return _go_on(Path(_saving(arguments).save_dir))
