"""The training run: steps, evaluations, run states, and going on where a killed run had come to."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from cyclemlp_backbones import load_weights, write_checkpoint

from . import run_state
from .augment import TrainTransform
from .config import Config
from .config_files import as_tree
from .data import BrokenImages, TrainDataset, read_samples, train_loader
from .distributed import World
from .ema import WeightAverage, weights_replaced
from .losses import training_losses
from .metrics import Evaluation, check_broken, check_first_images, eval_batches, evaluate
from .mixup import Mix, draw_mix, mix_images, mix_targets, smooth_one_hot
from .optim import build_optimizer, take_step
from .precision import Precision, loss_scale, restore_scaler, scaler_state
from .report import Meter, RunLog, as_time, write_description, write_json, write_progress
from .run_state import RunState
from .schedule import FORWARD, MIX, Plan, generator, integer_seed, learning_rate
from .student import build_student, head_replaced, load_pretrained
from .teacher import Teacher, build_teacher

logger = logging.getLogger(__name__)


class Terminated(Exception):
    """SIGTERM ended the run, with a run state to go on from."""


class NonFiniteLossError(ArithmeticError):
    """The loss or a gradient is not finite; the message says at which step, and where its batch is described."""


class Trainer:
    """One process of a run. `run` trains to the end; everything it leaves lies in `run.output`."""

    def __init__(self, config: Config, world: World | None = None, *, argv: Sequence[str] = ()):
        self.config, self.world, self.argv = config, world or World(), argv
        self.output = Path(config.run.output)
        self.samples = read_samples(config, "train")
        self.plan = Plan(
            len(self.samples), config.schedule.epochs, config.data.batch_size, config.optimizer.accumulate,
            self.world.size, config.data.repeats, config.run.seed,
        )  # fmt: skip
        self.step = 0
        self._lr(0)  # complains about a schedule that makes no sense
        self.val_samples = read_samples(config, "val") if config.data.val_images else None
        if self.val_samples is None:
            logger.info("data.val_images is not set: no evaluation, no best weights")
        else:
            check_first_images(self.val_samples, config)
        self.transform = TrainTransform(config.augment, config.data)

        paddle.seed(config.run.seed)
        self.precision = Precision(config.amp)
        self.scaler = self.precision.scaler
        model = build_student(config.model)
        self.states = self.output / "checkpoints"
        resume = run_state.find_resume(config.run.resume, self.states)
        loaded = load_pretrained(model, config, adapt=True) if resume is None else None
        self.head_replaced = head_replaced(loaded)
        self.model, self.optimizer = self.precision.decorate(model, build_optimizer(model, config.optimizer))
        self.parameters = [parameter for parameter in self.model.parameters() if not parameter.stop_gradient]
        self._names = {parameter.name: name for name, parameter in self.model.named_parameters()}
        self.average = WeightAverage(self.model.state_dict(), config.ema.decay) if config.ema.decay > 0 else None
        self.broken = BrokenImages(self.samples, config.data.max_broken)
        self.best: dict[str, Any] = {}
        self.last: dict[str, float] = {}
        self.skipped, self.evaluated = 0, 0  # how many steps; the step of the last evaluation
        self._sigterm, self._ending = False, False  # it has come; all processes have agreed to end by it
        if resume is not None:
            self._restore(*resume)
        self._check_same_step()
        self.parallel = self.model if self.world.size == 1 else paddle.DataParallel(self.model)
        self.teacher = None
        if config.distillation.type != "none":
            classes = config.model.num_classes
            self.teacher = Teacher(build_teacher(config.distillation, num_classes=classes), num_classes=classes)

    def _lr(self, step: int) -> float:
        rates, plan = self.config.rates(self.plan.global_batch), self.plan
        warmup_steps = round(self.config.schedule.warmup_epochs * plan.steps_per_epoch)
        return learning_rate(step, total_steps=plan.total_steps, warmup_steps=warmup_steps, **rates)

    def run(self, *, stop_at: int | None = None) -> dict[str, Any]:
        """Trains to the end and returns the report. `stop_at` leaves the run before that step, as a kill would.

        Terminated after SIGTERM, once a run state is written.
        """
        before = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            with run_state.only_run_in(self.output) if self.world.is_main else contextlib.nullcontext():
                return self._train(stop_at)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _on_sigterm(self, *_: object) -> None:
        self._sigterm = True  # and raises nothing, within whatever code of Paddle it came

    def _train(self, stop_at: int | None) -> dict[str, Any]:
        config, plan = self.config, self.plan
        if self.world.is_main:
            write_description(self.output, config, self.world, self.argv)
        self.log = RunLog(self.output, enabled=self.world.is_main, run=config.run)
        self.log.write("start", {"step": self.step, "total_steps": plan.total_steps, "global_batch": plan.global_batch})
        logger.info(
            "%d images, %d steps of %d images from step %d on, %s",
            len(self.samples), plan.total_steps, plan.global_batch, self.step, paddle.get_device(),
        )  # fmt: skip
        started, meter = time.perf_counter(), Meter()
        micro_batches = self._micro_batches()
        self.parallel.train()
        while True:
            if self._evaluation_is_due():  # also of a run state that an evaluation which failed has left
                paused = time.perf_counter()
                self._evaluate_and_keep_best()
                self._save()
                if self.world.is_main:
                    write_progress(self.log.path)
                meter.pause(time.perf_counter() - paused)
            if self.step == plan.total_steps:
                return self._finish(time.perf_counter() - started)
            if self.step == stop_at:
                return {}
            lr, waiting = self._lr(self.step), time.perf_counter()
            batches = [next(micro_batches) for _ in range(plan.accumulate)]
            waited = time.perf_counter() - waiting
            values = self._train_step(batches, lr)
            self.step += 1
            meter.add(values, images=plan.global_batch, waited=waited)
            if self.step % config.run.log_every == 0 or self.step == plan.total_steps:
                self._log_training(meter.summary(steps_left=plan.total_steps - self.step), lr)
            paused = time.perf_counter()
            every = config.run.save_every or plan.steps_per_epoch
            if self._ending or self.step % every == 0 or self.step % plan.steps_per_epoch == 0:
                self._save()
            if self._ending:
                raise Terminated
            meter.pause(time.perf_counter() - paused)

    def _evaluation_is_due(self) -> bool:
        every = self.config.run.evaluate_every * self.plan.steps_per_epoch
        due = self.step % every == 0 or self.step == self.plan.total_steps
        return due and self.step != self.evaluated and self.val_samples is not None

    def _micro_batches(self) -> Iterator[list[Tensor]]:
        if self.step >= self.plan.total_steps:
            return iter(())
        dataset, workers = TrainDataset(self.samples, self.transform, seed=self.plan.seed), self.config.data.workers
        return train_loader(dataset, self.plan, rank=self.world.rank, first_step=self.step, workers=workers)

    def _train_step(self, batches: list[Any], lr: float) -> dict[str, float]:
        """One optimizer step over the micro-batches in `batches`; its losses, averaged over all processes."""
        self.optimizer.set_lr(lr)
        totals, mixes, unreadable = [], [], []
        names: list[str] = []
        for position, (images, labels, indices, broken) in enumerate(batches):
            images, targets, mix = self._mixed(images, labels, position)
            # Only the last micro-batch's gradients are averaged over the processes, with those before it in them.
            last = position == len(batches) - 1
            sync = contextlib.nullcontext() if last or self.world.size == 1 else self.parallel.no_sync()
            with sync:
                with self.precision.autocast():
                    teacher_logits = None if self.teacher is None else self.teacher.logits(images, targets)
                    paddle.seed(integer_seed(self.config.run.seed, FORWARD, self.step, position, self.world.rank))
                    logits = self.parallel(images)
                losses = training_losses(logits, targets, teacher_logits, self.config.distillation)
                self.scaler.scale(losses["loss"] / len(batches)).backward()
            names = list(losses)
            totals.append(paddle.stack([loss.detach() for loss in losses.values()]))
            mixes.append(mix)
            unreadable += indices.numpy()[broken.numpy().astype(bool)].tolist()
        counted = paddle.to_tensor([float(self._sigterm), float(len(unreadable))])
        vector = self.world.mean_tensor(paddle.concat([paddle.stack(totals).mean(0), counted])).numpy()
        values = {name: float(value) for name, value in zip(names, vector)}
        self._ending = bool(vector[-2] > 0)  # all processes end at the same step
        if vector[-1] > 0:
            self._report_broken(unreadable)
        if not all(map(math.isfinite, values.values())):
            self.optimizer.clear_grad()
            self._refuse("the loss", values, lr, batches, mixes)
            return {}
        scale = loss_scale(self.scaler)
        norm = take_step(self.optimizer, self.parameters, self.scaler)
        if math.isfinite(norm):
            if self.average is not None:
                self.average.update(self._weights())
            return {**values, "grad_norm": norm}
        if (lowered := loss_scale(self.scaler)) < scale:
            logger.info("step %d: infinite gradients, loss scale %g -> %g", self.step, scale, lowered)
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
                "mix": None if mix is None else {name: array.tolist() for name, array in vars(mix).items()},
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
        row = {"step": self.step, "epoch": round(epoch, 3), "lr": lr, "scale": loss_scale(self.scaler), **values}
        self.log.write("train", row)
        parts = " ".join(f"{name} {values[name]:.4f}" for name in ("loss", "task", "distillation") if name in values)
        logger.info(
            "step %d/%d epoch %.2f %s lr %.2e, %.1f images/s, %.0f %% waiting for data, %s left",
            self.step, self.plan.total_steps, epoch, parts, lr,
            values["images_per_second"], 100 * values["data_wait_share"], as_time(values["eta_seconds"]),
        )  # fmt: skip

    def _evaluate_and_keep_best(self) -> None:
        """The held-out list by the weights ("model") and by their moving average ("ema")."""
        if (samples := self.val_samples) is None:
            return

        def run() -> Evaluation:
            batches = itertools.takewhile(lambda _: not self._sigterm, eval_batches(samples, self.config, self.world))
            result = evaluate(self.model, batches, self.world, autocast=self.precision.autocast)
            if self.world.sum(np.array(self._sigterm)) > 0:  # of any process; a run state of this step is there
                raise Terminated
            return result

        results = {"model": run()}
        if self.average is not None:
            with weights_replaced(self.model, self.average.values):
                results["ema"] = run()
        check_broken(samples, results["model"], self.config)
        self.parallel.train()
        self.last = results["model"].as_dict()
        if "ema" in results:
            averaged = results["ema"].as_dict().items()
            self.last |= {f"ema_{name}": value for name, value in averaged if name != "images"}
        self.log.write("evaluation", {"step": self.step, **self.last})
        for name, result in results.items():
            logger.info("%s: top-1 %.3f %%, top-5 %.3f %% of %d", name, result.top1, result.top5, result.images)
        winner = max(results, key=lambda name: results[name].top1)
        if not self.best or results[winner].top1 > self.best["top1"]:
            self.best = {"step": self.step, "top1": results[winner].top1, "weights": winner}
            self._write_weights("best", winner)
        self.evaluated = self.step

    def _write_weights(self, name: str, which: str) -> None:
        """`name`.pdparams in float32, for evaluation, fine-tuning and the toolkits."""
        if not self.world.is_main:
            return
        weights = self.average.values if which == "ema" and self.average is not None else self._weights()
        write_checkpoint(self.output / f"{name}.pdparams", run_state.as_arrays(weights))

    def _save(self) -> None:
        if self.world.is_main:
            accumulators, master = run_state.optimizer_arrays(self.optimizer, self._names)
            parts = {
                "model": run_state.as_arrays(self.model.state_dict()),
                "ema": {} if self.average is None else run_state.as_arrays(self.average.values),
                "optimizer": accumulators,
                "master": master,
            }
            arrays = {f"{part}/{name}": array for part, content in parts.items() for name, array in content.items()}
            meta = {
                "step": self.step,
                "config": as_tree(self.config),
                "processes": self.world.size,
                "training list": self.samples.fingerprint(),
                "scaler": scaler_state(self.scaler),
                "best": self.best,
                "last": self.last,
                "skipped": self.skipped,
                "evaluated": self.evaluated,
                "broken": sorted(self.broken.indices),
                "head replaced": self.head_replaced,
            }
            keep, best = self.config.run.keep, self.best.get("step")
            run_state.write_run_state(self.states, RunState(arrays, meta), keep=keep, best=best)
        self.world.wait()

    def _restore(self, path: Path, saved: RunState) -> None:
        samples = self.samples.fingerprint()
        run_state.check_same_run(saved, self.config, processes=self.world.size, samples=samples, path=path)
        load_weights(self.model, saved.part("model"), layout="paddle")
        run_state.restore_optimizer(self.optimizer, self._names, saved.part("optimizer"), saved.part("master"))
        if self.average is not None:
            self.average.load(saved.part("ema"))
        restore_scaler(self.scaler, saved.meta["scaler"])
        self.best, self.last, self.skipped = (saved.meta[key] for key in ("best", "last", "skipped"))
        self.broken.indices = set(saved.meta["broken"])
        self.head_replaced = saved.meta.get("head replaced", self.config.model.replace_head)
        self.step, self.evaluated = saved.step, saved.meta["evaluated"]
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
            "head_replaced": self.head_replaced,
            "skipped_steps": self.skipped,
            "broken_images": len(self.broken.indices),
        }
        if self.world.is_main:
            write_json(self.output / "report.json", report)
            self.log.write("end", report)
            write_progress(self.log.path)
        self.world.wait()
        return report
