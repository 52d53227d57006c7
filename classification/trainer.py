"""The training run: steps, evaluations, checkpoints, and going on where a killed run had come to."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from classification import checkpoint as checkpoints
from classification.augment import EvalTransform, TrainTransform
from classification.checkpoint import Checkpoint
from classification.config import Config
from classification.data import (
    BrokenImages,
    EvalDataset,
    Samples,
    TrainDataset,
    eval_loader,
    read_samples,
    train_loader,
)
from classification.distributed import World, parallel
from classification.ema import WeightAverage, weights_replaced
from classification.losses import training_losses
from classification.meter import Meter, as_time
from classification.metrics import Evaluation, evaluate
from classification.mixup import Mix, draw_mix, mix_images, mix_targets, smooth_one_hot
from classification.optim import build_optimizer, take_step
from classification.precision import Precision
from classification.report import RunLog, draw_curves, write_description, write_json
from classification.schedule import Plan, learning_rate
from classification.seeding import FORWARD, MIX, generator, integer_seed
from classification.student import build_student, load_pretrained
from classification.teacher import Teacher, build_teacher
from cyclemlp_backbones import load_weights, write_checkpoint

logger = logging.getLogger(__name__)


class NonFiniteLossError(ArithmeticError):
    """The loss or a gradient is not finite; the message says at which step, and where its batch is described."""


class Trainer:
    """One process of a run. `run` trains to the end; everything it leaves lies in `run.output`."""

    def __init__(self, config: Config, world: World | None = None, *, argv: Sequence[str] = ()):
        self.config, self.world = config, world or World()
        self.output = Path(config.run.output)
        self.samples = self._read_samples("train")
        self.plan = Plan(
            len(self.samples),
            config.schedule.epochs,
            config.data.batch_size,
            config.optimizer.accumulate,
            self.world.size,
            config.data.repeats,
            config.run.seed,
        )
        self.step = 0
        self._lr(0)  # complains about a schedule that makes no sense
        self.val_samples = self._read_samples("val") if config.data.val_images else None
        if self.val_samples is None:
            logger.info("data.val_images is not set: no evaluation, no best checkpoint")
        self.transform = TrainTransform(config.augment, config.data)

        paddle.seed(config.run.seed)
        self.precision = Precision(config.amp)
        self.scaler = self.precision.scaler
        self.model = build_student(config.model)
        resume = checkpoints.find_resume(config.run.resume, self.output / "checkpoints")
        if resume is None:
            load_pretrained(self.model, config)
        self.model = self.precision.decorate(self.model)
        self.optimizer = build_optimizer(self.model, config.optimizer, master_weights=self.precision.half_weights)
        self.parameters = [parameter for parameter in self.model.parameters() if not parameter.stop_gradient]
        self._names = {parameter.name: name for name, parameter in self.model.named_parameters()}
        self.average = WeightAverage(self.model.state_dict(), config.ema.decay) if config.ema.decay > 0 else None
        self.broken = BrokenImages(self.samples, config.data.max_broken)
        self.best: dict[str, Any] = {}
        self.last: dict[str, float] = {}
        self.skipped = 0
        if resume is not None:
            self._restore(resume)
        self._check_same_step()
        self.parallel = parallel(self.model, self.world)
        self.teacher = self._build_teacher()
        if self.world.is_main:
            write_description(self.output, config, self.world, argv)
        self.log = RunLog(self.output, enabled=self.world.is_main, visualdl=config.run.visualdl)

    def _read_samples(self, what: str) -> Samples:
        data = self.config.data
        return read_samples(
            getattr(data, f"{what}_images"),
            getattr(data, f"{what}_list"),
            num_classes=self.config.model.num_classes,
            class_map=data.class_map,
            what=what,
        )

    def _build_teacher(self) -> Teacher | None:
        if self.config.distillation.type == "none":
            return None
        classes = self.config.model.num_classes
        return Teacher(build_teacher(self.config.distillation, num_classes=classes), num_classes=classes)

    def _lr(self, step: int) -> float:
        schedule = self.config.schedule
        return learning_rate(
            step,
            total_steps=self.plan.total_steps,
            warmup_steps=round(schedule.warmup_epochs * self.plan.steps_per_epoch),
            peak=self.config.peak_lr(self.plan.global_batch),
            warmup_lr=schedule.warmup_lr,
            min_lr=schedule.min_lr,
        )

    def run(self, *, stop_at: int | None = None) -> dict[str, Any]:
        """Trains to the end and returns the report. `stop_at` leaves the run before that step, as a kill would."""
        config, plan = self.config, self.plan
        self.log.write("start", {"step": self.step, "total_steps": plan.total_steps, "global_batch": plan.global_batch})
        logger.info(
            "%d images, %d steps of %d images from step %d on, %s",
            len(self.samples), plan.total_steps, plan.global_batch, self.step, paddle.get_device(),
        )  # fmt: skip
        started, meter = time.perf_counter(), Meter()
        forwards = self._forwards()
        self.parallel.train()
        while self.step < plan.total_steps:
            if self.step == stop_at:
                return {}
            lr, waiting = self._lr(self.step), time.perf_counter()
            batches = [next(forwards) for _ in range(plan.accumulate)]
            waited = time.perf_counter() - waiting
            values = self._train_step(batches, lr)
            self.step += 1
            meter.add(values, images=plan.global_batch, waited=waited)
            at_end = self.step == plan.total_steps
            if self.step % config.run.log_every == 0 or at_end:
                self._log_training(meter.summary(steps_left=plan.total_steps - self.step), lr)
            epoch, rest = divmod(self.step, plan.steps_per_epoch)
            paused = time.perf_counter()
            if rest == 0 and (epoch % config.run.evaluate_every == 0 or at_end):
                self._evaluate_and_keep_best()
            if rest == 0 or (config.run.save_every and self.step % config.run.save_every == 0):
                self._save()
            meter.pause(time.perf_counter() - paused)
        return self._finish(time.perf_counter() - started)

    def _forwards(self) -> Iterator[list[Tensor]]:
        if self.step >= self.plan.total_steps:
            return iter(())
        dataset = TrainDataset(self.samples, self.transform, seed=self.config.run.seed)
        workers = self.config.data.workers
        return train_loader(dataset, self.plan, rank=self.world.rank, first_step=self.step, workers=workers)

    def _train_step(self, batches: list[Any], lr: float) -> dict[str, float]:
        """One optimizer step over the forwards in `batches`; its losses, averaged over all processes."""
        self.optimizer.set_lr(lr)
        totals, mixes, unreadable = [], [], []
        names: list[str] = []
        for position, (images, labels, indices, broken) in enumerate(batches):
            images, targets, mix = self._mixed(images, labels, position)
            # Only the last forward's gradients are averaged over the processes, with those before it in them.
            last = position == len(batches) - 1
            sync = contextlib.nullcontext() if last or self.world.size == 1 else self.parallel.no_sync()
            with sync:
                with self.precision.autocast():
                    teacher_logits = None if self.teacher is None else self.teacher.logits(images, targets)
                    paddle.seed(integer_seed(self.config.run.seed, FORWARD, self.step, position, self.world.rank))
                    logits = self.parallel(images)
                losses = training_losses(logits, targets, teacher_logits, self.config.distillation)
                (losses["loss"] * (self.scaler.scale / len(batches))).backward()
            names = list(losses)
            totals.append(paddle.stack([loss.detach() for loss in losses.values()]))
            mixes.append(mix)
            unreadable += indices.numpy()[broken.numpy().astype(bool)].tolist()
        counted = paddle.to_tensor([float(len(unreadable))])
        vector = self.world.mean_tensor(paddle.concat([paddle.stack(totals).mean(0), counted])).numpy()
        values = {name: float(value) for name, value in zip(names, vector)}
        if vector[-1] > 0:
            self._report_broken(unreadable)
        if not all(map(math.isfinite, values.values())):
            self.optimizer.clear_grad()
            self._refuse("the loss", values, lr, batches, mixes)
            return {}
        scale = self.scaler.scale
        report = take_step(self.optimizer, self.parameters, self.scaler, clip_norm=self.config.optimizer.clip_norm)
        if report.taken:
            if self.average is not None:
                self.average.update(self._weights())
            return {**values, "grad_norm": report.norm}
        if self.scaler.scale < scale:
            logger.info("step %d: infinite gradients, loss scale %g -> %g", self.step, scale, self.scaler.scale)
        else:  # there is no scaler, or no smaller scale
            self._refuse("a gradient", values, lr, batches, mixes)
        return values

    def _mixed(self, images: Tensor, labels: Tensor, position: int) -> tuple[Tensor, Tensor, Mix | None]:
        config = self.config.mix
        targets = smooth_one_hot(labels, self.config.model.num_classes, config.smoothing)
        rng = generator(self.config.run.seed, MIX, self.step, position, self.world.rank)
        mix = draw_mix(images.shape[0], images.shape[2], images.shape[3], config, rng)
        if mix is None:
            return images, targets, None
        return mix_images(images, mix), mix_targets(targets, mix), mix

    def _report_broken(self, unreadable: list[int]) -> None:
        new = self.broken.add(index for share in self.world.gather(unreadable) for index in share)
        for path in new:
            logger.warning("unreadable image, replaced by the next one: %s", path)
        self.log.write("broken", {"images": new, "count": len(self.broken.indices)})
        self.broken.check()

    def _refuse(
        self, what: str, values: dict[str, float], lr: float, batches: list[Any], mixes: Sequence[Mix | None]
    ) -> None:
        """Describes a step that is not finite; stops the run unless such steps may be skipped."""
        path = self.output / f"nonfinite-step-{self.step:08d}-process-{self.world.rank}.json"
        described = [
            {
                "images": [self.samples.names[int(index)] for index in indices.numpy()],
                "labels": labels.tolist(),
                "keys": {"epoch": self.step // self.plan.steps_per_epoch, "forward": position},
                "mix": None if mix is None else mix.describe(),
                "pixel_range": [float(images.min()), float(images.max())],
            }
            for position, ((images, labels, indices, _), mix) in enumerate(zip(batches, mixes))
        ]
        losses = {name: str(value) for name, value in values.items()}
        write_json(path, {"step": self.step, "lr": lr, "losses": losses, "forwards": described})
        self.skipped += 1
        message = f"step {self.step}: {what} is not finite ({losses}), learning rate {lr:g}; its batch: {path}"
        self.log.write("nonfinite", {"step": self.step, "lr": lr, "losses": losses, "batch": str(path)})
        if self.skipped > self.config.run.skip_nonfinite:
            raise NonFiniteLossError(
                f"{message}. Lower optimizer.lr, set optimizer.clip_norm, use amp.dtype bfloat16 or none, "
                f"or allow more than {self.config.run.skip_nonfinite} such steps (run.skip_nonfinite)"
            )
        logger.warning("%s; skipped, %d of %d", message, self.skipped, self.config.run.skip_nonfinite)

    def _weights(self) -> dict[str, Tensor]:
        """The model's weights, the float32 master weights where there are any."""
        weights = self.model.state_dict()
        master = self.optimizer.state_dict().get("master_weights", {}) if self.precision.half_weights else {}
        return {**weights, **{self._names[name]: value for name, value in master.items()}}

    def _log_training(self, values: dict[str, float], lr: float) -> None:
        epoch = self.step / self.plan.steps_per_epoch
        row = {"step": self.step, "epoch": round(epoch, 3), "lr": lr, "scale": self.scaler.scale, **values}
        self.log.write("train", row)
        parts = " ".join(f"{name} {values[name]:.4f}" for name in ("loss", "task", "distillation") if name in values)
        logger.info(
            "step %d/%d epoch %.2f %s lr %.2e, %.1f images/s, %.0f %% waiting for data, %s left",
            self.step, self.plan.total_steps, epoch, parts, lr,
            values["images_per_second"], 100 * values["data_wait_share"], as_time(values["eta_seconds"]),
        )  # fmt: skip

    def evaluate(self) -> dict[str, Evaluation]:
        """The held-out list by the weights ("model") and by their moving average ("ema")."""
        assert self.val_samples is not None
        data = self.config.data
        dataset = EvalDataset(self.val_samples, EvalTransform(data, crop_pct=self.config.crop_pct))

        def run() -> Evaluation:
            batches = eval_loader(
                dataset,
                batch_size=data.eval_batch_size or data.batch_size,
                workers=data.workers,
                rank=self.world.rank,
                processes=self.world.size,
            )
            return evaluate(self.model, batches, self.world, autocast=self.precision.autocast)

        results = {"model": run()}
        if self.average is not None:
            with weights_replaced(self.model, self.average.values):
                results["ema"] = run()
        broken = BrokenImages(self.val_samples, data.max_broken)
        for path in broken.add(results["model"].broken):
            logger.warning("unreadable image, left out of the evaluation: %s", path)
        broken.check()
        return results

    def _evaluate_and_keep_best(self) -> None:
        if self.val_samples is None:
            return
        results = self.evaluate()
        self.parallel.train()
        row = results["model"].as_dict()
        if "ema" in results:
            row |= {f"ema_{name}": value for name, value in results["ema"].as_dict().items() if name != "images"}
        self.log.write("evaluation", {"step": self.step, **row})
        for name, result in results.items():
            logger.info("%s: top-1 %.3f %%, top-5 %.3f %% of %d", name, result.top1, result.top5, result.images)
        winner = max(results, key=lambda name: results[name].top1)
        if not self.best or results[winner].top1 > self.best["top1"]:
            self.best = {"step": self.step, "top1": results[winner].top1, "weights": winner}
            self._write_weights("best", winner)
        self.last = row

    def _write_weights(self, name: str, which: str) -> None:
        """`name`.pdparams in float32, for evaluation, fine-tuning and the toolkits."""
        if not self.world.is_main:
            return
        weights = self.average.values if which == "ema" and self.average is not None else self._weights()
        arrays = checkpoints.model_arrays({key: value.detach() for key, value in weights.items()})
        write_checkpoint(self.output / f"{name}.pdparams", arrays)

    def _save(self) -> None:
        if self.world.is_main:
            accumulators, master = checkpoints.optimizer_arrays(self.optimizer, self._names)
            parts = {
                "model": checkpoints.model_arrays(self.model.state_dict()),
                "ema": {} if self.average is None else checkpoints.model_arrays(self.average.values),
                "optimizer": accumulators,
                "master": master,
            }
            arrays = {f"{part}/{name}": array for part, content in parts.items() for name, array in content.items()}
            meta = {
                "step": self.step,
                "config": asdict(self.config),
                "processes": self.world.size,
                "training list": self.samples.fingerprint(),
                "scaler": self.scaler.state(),
                "best": self.best,
                "last": self.last,
                "skipped": self.skipped,
                "broken": sorted(self.broken.indices),
            }
            folder = self.output / "checkpoints"
            keep, best = self.config.run.keep, self.best.get("step")
            checkpoints.write_checkpoint(folder, Checkpoint(arrays, meta), keep=keep, best=best)
        self.world.wait()

    def _restore(self, path: Path) -> None:
        saved = checkpoints.read_checkpoint(path)
        checkpoints.check_same_run(
            saved, self.config, processes=self.world.size, samples=self.samples.fingerprint(), path=path
        )
        load_weights(self.model, saved.part("model"), layout="paddle")
        checkpoints.restore_optimizer(self.optimizer, self._names, saved.part("optimizer"), saved.part("master"))
        if self.average is not None:
            self.average.load(saved.part("ema"))
        self.scaler.load(saved.meta["scaler"])
        self.best, self.last, self.skipped = (saved.meta[key] for key in ("best", "last", "skipped"))
        self.broken.indices = set(saved.meta["broken"])
        self.step = saved.step
        logger.info("resumed from %s, step %d", path, self.step)

    def _check_same_step(self) -> None:
        steps = self.world.gather(self.step)
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes would go on from different steps, {steps} by rank: run.output ({self.output}) and "
                "run.resume have to be on a file system that all nodes share"
            )

    def _finish(self, seconds: float) -> dict[str, Any]:
        self._write_weights("last", "model")
        if self.average is not None:
            self._write_weights("last_ema", "ema")
        report = {
            "steps": self.step,
            "global_batch": self.plan.global_batch,
            "parameters": int(sum(np.prod(parameter.shape) for parameter in self.parameters)),
            "last": self.last,
            "best": self.best,
            "seconds": round(seconds, 1),
            "amp": self.precision.dtype,
            "head_replaced": self.config.model.replace_head,
            "skipped_steps": self.skipped,
            "broken_images": len(self.broken.indices),
        }
        if self.world.is_main:
            write_json(self.output / "report.json", report)
            self.log.write("end", report)
            draw_curves(self.log.path, self.output / "curves.png")
        self.world.wait()
        return report
