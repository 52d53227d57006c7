"""The configuration: what every key means, its default (the paper's recipe), and which values make sense."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from cyclemlp_backbones import VARIANTS


@dataclass(frozen=True)
class ModelConfig:
    """`variant` b0 … b5, t, s or b; `depths`, `embed_dims`, `mlp_ratios`, all three, replace its size.

    `pretrained`: weights to start from, a path, a URL or "published". `replace_head`: leave out the file's head also
    where it has as many classes.
    """

    variant: str = "b1"
    num_classes: int = 1000
    drop_path_rate: float = 0.1
    use_recompute: bool = False
    pretrained: str | None = None
    replace_head: bool = False
    depths: tuple[int, ...] | None = None
    embed_dims: tuple[int, ...] | None = None
    mlp_ratios: tuple[float, ...] | None = None


@dataclass(frozen=True)
class DataConfig:
    """Folders of images and their lists; without a list, one folder per class, in the order of their names, or by
    `class_map` (`synset index` a line). `crop_pct`: evaluation resizes the shorter side to input_size / crop_pct and
    crops the centre; None is the variant's, 0.875 for b4 and b5, else 0.9, the authors' commands take 0.875 for all.
    Pictures are turned by their EXIF orientation, transparent ones put on white. `batch_size` counts images of one
    process and one micro-batch. `repeats` is repeated augmentation. `max_broken`: share of unreadable images above
    which the run fails.
    """

    train_images: str | None = None
    train_list: str | None = None
    val_images: str | None = None
    val_list: str | None = None
    class_map: str | None = None
    input_size: int = 224
    crop_pct: float | None = None
    batch_size: int = 128
    eval_batch_size: int | None = None
    workers: int = 8
    repeats: int = 3
    max_broken: float = 0.001
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class AugmentConfig:
    """`policy`: RandAugment in the field's notation, "original" (AutoAugment's ImageNet policy), or None.
    `color_jitter`: strength of brightness, contrast and saturation, 0 is off. `erase`: probability of RandomErasing.
    """

    policy: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.0
    flip: float = 0.5
    scale: tuple[float, ...] = (0.08, 1.0)
    ratio: tuple[float, ...] = (0.75, 1.3333333333333333)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    erase: float = 0.25


@dataclass(frozen=True)
class MixConfig:
    """Beta parameters of mixup and CutMix (0 is off), how often either and which; `cutmix_minmax` replaces `cutmix`."""

    mixup: float = 0.8
    cutmix: float = 1.0
    cutmix_minmax: tuple[float, ...] | None = None
    probability: float = 1.0
    switch: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"
    smoothing: float = 0.1


@dataclass(frozen=True)
class DistillationConfig:
    """`loss = (1 - alpha) task + alpha distillation`. `direction`: "forward" is KL(teacher || student). `reduction` of
    soft distillation: "batchmean" (Hinton et al.) or, as in the authors' program, "mean", 1 / num_classes of it.

    `teacher`: a name of paddle.vision.models, a CycleMLP variant, a PaddleClas architecture, or the path of an exported
    model; all but the last need `teacher_weights`.
    """

    type: Literal["none", "soft", "hard"] = "none"
    alpha: float = 0.5
    tau: float = 1.0
    direction: Literal["forward", "reverse"] = "forward"
    reduction: Literal["batchmean", "mean"] = "batchmean"
    teacher: str = "RegNetX_4GF"
    teacher_weights: str | None = None


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The peak learning rate is `lr * global batch / lr_batch`. `clip_norm` clips the global norm, None is off.
    `layer_decay` multiplies the rate by itself once per block from the head down, None is off.
    `accumulate`: micro-batches per step.
    """

    lr: float = 5e-4
    lr_batch: int = 512
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float | None = None
    layer_decay: float | None = None
    accumulate: int = 1


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up from `warmup_lr`, then cosine to `min_lr`, both by step. A global batch that scales the peak below
    either scales them too."""

    epochs: int = 300
    warmup_epochs: float = 5.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5


@dataclass(frozen=True)
class EmaConfig:
    """Moving average of the weights, updated at every optimizer step; `decay` 0 is off."""

    decay: float = 0.99996


@dataclass(frozen=True)
class AmpConfig:
    """Mixed precision on an accelerator. float16 has a loss scaler; O2 keeps float32 master weights."""

    dtype: Literal["none", "float16", "bfloat16"] = "float16"
    level: Literal["O1", "O2"] = "O1"
    initial_scale: float = 65536.0


@dataclass(frozen=True)
class RunConfig:
    """`save_every`: steps between run states, None saves at the ends of epochs only, where one is written in any case.
    `evaluate_every`: epochs. `keep`: run states besides the best. `resume`: None, "auto" (the newest whole one in
    `output`) or a run state's path.
    `skip_nonfinite`: steps with a loss that is not finite that may be skipped before the run stops.
    `wandb`: Weights & Biases, whose own WANDB_MODE, WANDB_PROJECT … say where to.
    `distributed`: False refuses to be one of several processes.
    """

    output: str = "output/classification"
    seed: int = 0
    device: str = "auto"
    log_every: int = 50
    save_every: int | None = 500
    evaluate_every: int = 1
    keep: int = 3
    resume: str | None = None
    skip_nonfinite: int = 0
    visualdl: bool = False
    tensorboard: bool = False
    wandb: bool = False
    distributed: bool = True


@dataclass(frozen=True)
class Config:
    """One run. Frozen, checked, and the same whether it came from a file or from flags."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    amp: AmpConfig = field(default_factory=AmpConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _check(self)

    def rates(self, global_batch: int) -> dict[str, float]:
        """The learning rate after warm-up, `peak`, before it and at the end, as `learning_rate` takes them."""
        scale = global_batch / self.optimizer.lr_batch
        peak, ends = self.optimizer.lr * scale, {key: getattr(self.schedule, key) for key in ("warmup_lr", "min_lr")}
        if peak < max(ends.values()):
            ends = {key: min(rate, rate * scale) for key, rate in ends.items()}
        return {"peak": peak, **ends}

    @property
    def crop_pct(self) -> float:
        """Share of the shorter side that evaluation crops."""
        if self.data.crop_pct is not None:
            return self.data.crop_pct
        return VARIANTS[self.model.variant].crop_pct


_ALLOWED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "data.workers augment.color_jitter mix.mixup mix.cutmix optimizer.lr optimizer.weight_decay "
        "schedule.warmup_epochs schedule.warmup_lr schedule.min_lr run.seed run.skip_nonfinite",
        lambda value: value >= 0,
        "a value of at least 0",
    ),
    (
        "data.batch_size data.eval_batch_size data.repeats optimizer.lr_batch optimizer.accumulate schedule.epochs "
        "run.log_every run.save_every run.evaluate_every run.keep",
        lambda value: value >= 1,
        "a value of at least 1",
    ),
    ("model.num_classes", lambda value: value >= 2, "a value of at least 2"),
    ("data.input_size", lambda value: value >= 32, "a value of at least 32"),
    (
        "data.max_broken augment.flip augment.erase mix.probability mix.switch distillation.alpha",
        lambda value: 0 <= value <= 1,
        "a value from 0 to 1",
    ),
    ("data.crop_pct", lambda value: 0 < value <= 1, "a positive number up to 1"),
    (
        "mix.smoothing ema.decay model.drop_path_rate",
        lambda value: 0 <= value < 1,
        "a number from 0 up to, but not including, 1",
    ),
    ("distillation.tau optimizer.clip_norm optimizer.layer_decay", lambda value: value > 0, "a positive number"),
    ("augment.scale augment.ratio mix.cutmix_minmax", lambda value: len(value) == 2, "2 numbers"),
    ("data.mean data.std", lambda value: len(value) == 3, "3 numbers"),
)
"""Keys, which of their values make sense, and that in words. A value that may be None always may."""


def _check(config: Config) -> None:
    def given(keys: str) -> Iterator[tuple[str, Any]]:
        for key in keys.split():
            section, _, name = key.partition(".")
            if (value := getattr(getattr(config, section), name)) is not None:
                yield key, value

    if config.model.variant not in VARIANTS:
        raise ValueError(f"model.variant is {config.model.variant!r}; choose from {', '.join(VARIANTS)}")
    if len(list(given("model.depths model.embed_dims model.mlp_ratios"))) not in (0, 3):
        raise ValueError("model.depths, model.embed_dims and model.mlp_ratios go together: give all three or none")
    for keys, allowed, words in _ALLOWED:
        for key, value in given(keys):
            if not allowed(value):
                raise ValueError(f"{key} is {value!r}; it takes {words}")
    schedule = config.schedule
    if schedule.warmup_epochs >= schedule.epochs:
        raise ValueError(
            f"schedule.warmup_epochs is {schedule.warmup_epochs:g} of {schedule.epochs} schedule.epochs: "
            "no epoch is left after the warm-up; lower it, to 0 for none"
        )
    if config.distillation.type != "none" and not config.distillation.teacher:
        raise ValueError("distillation.teacher is empty; name the teacher, or set distillation.type to none")
