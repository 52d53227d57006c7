"""`make compare-backbones`: CycleMLP and the toolkits' own ResNet-50 on the demos' scenes, from random weights, for the
same wall time.

    python demo/compare.py --variant b1 --seconds 120 --out output/compare
    python demo/compare.py --smoke --heads retinanet --out output/compare-smoke

A few steps of each pair of head and backbone are timed first. They give the number of steps that fill the time, and the
schedule and the data are made for that number, so that no scene is seen twice and no epoch is cut. The table has the
seconds that the steps really took, reading of the data included. It says how much each learns from nothing in a short
time on this machine, and no more. The folder OUT gets result.json and result.md.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cyclemlp_backbones.digits import MAX_SCENES, DemoSettings
from demo.det import DETECTORS, read_precisions
from demo.seg import DIGITS, read_evaluation
from demo.steps import (
    ROOT,
    DemoFailure,
    det_data,
    det_schedule,
    parser,
    run_command,
    run_demo,
    seg_data,
    versions,
    write_json,
    write_scenes,
)

HEADS = {**DETECTORS, "semantic_fpn": "Semantic FPN"}
RESNET = "resnet50"
METRICS = {"bbox": "box AP50", "segm": "mask AP50", "miou": "mIoU"}
LOG_STEPS = 5  # the toolkits' logs have a mean time for every so many steps
SEED = 0
_SHOWN = r"(Epoch: \[0\] \[ *|iter: )(\d*[05]0|25|75|\d+[27]5)/|^ERROR|[Ee]rror:"


@dataclass(frozen=True)
class Scale:
    """`seconds` of training for each row, after `probe_steps` that are timed, on scenes of `size` x `size` pixels."""

    seconds: float = 120.0
    probe_steps: int = 16
    val_scenes: int = 240
    size: int = 64
    batch_size: int = 8


SMOKE = Scale(seconds=1.0, probe_steps=6, val_scenes=8, batch_size=4)


@dataclass(frozen=True)
class Row:
    """A head on a backbone: values of its parameters, `steps` of training in `seconds`, and what they led to."""

    head: str
    backbone: str
    parameters: int
    steps: int
    scenes: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)  # "bbox", "segm": AP50; "miou"


def chosen_steps(seconds: float, seconds_a_step: float) -> int:
    """Steps that take about `seconds`: one more than a multiple of LOG_STEPS, so that the log has all their times."""
    return 1 + LOG_STEPS * max(1, round((seconds / seconds_a_step - 1) / LOG_STEPS))


def step_seconds(output: str) -> list[float]:
    """Seconds of every timed step, from a toolkit's log; PaddleDetection's first line is of the first step alone."""
    costs = [float(cost) for cost in re.findall(r"batch_cost: (\d+\.\d+)", output)]
    if not costs:
        raise DemoFailure("the training log has no batch_cost")
    single = costs[:1] if "Epoch: [0] [" in output else []
    return single + [cost for cost in costs[len(single) :] for _ in range(LOG_STEPS)]


def backbone_title(backbone: str, head: str) -> str:
    if backbone == RESNET:
        return "ResNet-50-vd (PaddleSeg)" if head == "semantic_fpn" else "ResNet-50 (PaddleDetection)"
    return f"CycleMLP-{backbone.upper()}"


def write_config(head: str, backbone: str, folder: Path) -> Path:
    """The demo's configuration of `head`, with `backbone` in it; all else is the same for all backbones."""
    variant = "b1" if backbone == RESNET else backbone
    path = folder / f"{head}_{backbone}.yml"
    changes: dict[str, Any]
    if head == "semantic_fpn":
        base = ROOT / "seg_configs" / "demo" / f"semantic_fpn_cyclemlp_{variant}_digits.yml"
        changes = {"_base_": os.path.relpath(base, folder)}
        if backbone == RESNET:
            own = {"_inherited_": False, "type": "ResNet50_vd", "output_stride": 32, "pretrained": None}
            changes["model"] = {"backbone": own}
    else:
        changes = {"_BASE_": [str(ROOT / "det_configs" / "demo" / f"{head}_cyclemlp_{variant}_digits.yml")]}
        if backbone == RESNET:
            architecture = {"retinanet": "RetinaNet", "mask_rcnn": "MaskRCNN"}[head]
            levels = [1, 2, 3] if head == "retinanet" else [0, 1, 2, 3]
            trainable = {"norm_type": "bn", "freeze_norm": False, "freeze_at": -1}
            changes[architecture] = {"backbone": "ResNet"}
            changes["ResNet"] = {"depth": 50, "num_stages": 4, "return_idx": levels, **trainable}
    path.write_text(yaml.safe_dump(changes))
    return path


def train(head: str, backbone: str, steps: int, scale: Scale, data: Path, out: Path, *, evaluate: bool) -> str:
    """Trains for exactly `steps` on the scenes in `data` and, if asked, evaluates; the output."""
    config = write_config(head, backbone, out)
    log = out / f"{config.stem}.log"
    warm_up = max(1, min(25, steps // 10))
    if head == "semantic_fpn":
        options = [*seg_data(data), f"lr_scheduler.warmup_iters={warm_up}"]
        flags = ["--config", str(config), "--device", "cpu", "--seed", str(SEED), "--batch_size", str(scale.batch_size)]
        flags += ["--iters", str(steps), "--save_interval", str(steps), "--log_iters", str(LOG_STEPS)]
        flags += ["--save_dir", str(out / config.stem), *(["--do_eval"] if evaluate else [])]
        return run_command(["seg", "train", *flags, "--opts", *options], log, show=_SHOWN)
    options = [
        *det_data(data),
        *det_schedule(1, warm_up),
        f"TrainDataset.sample_num={steps * scale.batch_size}",
        f"TrainReader.batch_size={scale.batch_size}",
        f"log_iter={LOG_STEPS}",
        f"save_dir={out}",
        f"output_eval={out}",  # else what evaluation finds goes to the current folder
    ]
    flags = ["--enable_ce", *(["--eval"] if evaluate else [])]
    return run_command(["det", "train", "-c", str(config), *flags, "-o", *options], log, show=_SHOWN)


def read_metrics(head: str, output: str) -> dict[str, float]:
    if head == "semantic_fpn":
        return {"miou": read_evaluation(output)[0]}
    kinds = ("bbox", "segm") if head == "mask_rcnn" else ("bbox",)
    precisions = read_precisions(output)  # nothing at all, if no box was found
    return {kind: max(0.0, precisions.get(kind, (0.0, 0.0))[1]) for kind in kinds}


def count_parameters(weights: Path) -> int:
    """Values in a `.pdparams` file, without the running statistics of batch normalisation."""
    import numpy as np
    import paddle

    state = paddle.load(str(weights), return_numpy=True)
    return sum(int(np.size(value)) for name, value in state.items() if not name.endswith(("._mean", "._variance")))


def make_data(head: str, scenes: int, scale: Scale, folder: Path) -> None:
    """At least `scenes` training scenes, and the held-out ones, of the kind that `head` takes."""
    settings = DemoSettings(
        "seg" if head == "semantic_fpn" else "coco",
        train=scenes,
        val=scale.val_scenes,
        size=scale.size,
        seed=SEED,
        max_digits=DIGITS,  # one large digit: several small ones are not learnt from random weights in such a time
    )
    write_scenes(folder, settings)


def measure_steps(heads: Sequence[str], backbones: Sequence[str], scale: Scale, out: Path) -> dict[str, dict[str, int]]:
    """Steps that fill the time, for every head and backbone."""
    steps: dict[str, dict[str, int]] = {}
    for head in heads:
        data = out / ("probe-seg" if head == "semantic_fpn" else "probe-coco")
        make_data(head, scale.probe_steps * scale.batch_size, scale, data)
        steps[head] = {}
        for backbone in backbones:
            print(f"\n== {scale.probe_steps} steps of {HEADS[head]} on {backbone_title(backbone, head)}", flush=True)
            output = train(head, backbone, scale.probe_steps, scale, data, out / "probe", evaluate=False)
            cost = step_seconds(output)[-1]
            steps[head][backbone] = min(chosen_steps(scale.seconds, cost), MAX_SCENES // scale.batch_size)
            print(f"  {cost:.3f} s a step: {steps[head][backbone]} steps in {scale.seconds:g} s")
    return steps


def render(rows: Sequence[Row]) -> str:
    """The table, in Markdown."""
    lines = [
        "| head | backbone | parameters | steps | scenes seen | seconds of training | "
        + " | ".join(METRICS.values())
        + " |",
        "|---" * (6 + len(METRICS)) + "|",
    ]
    for row in rows:
        metrics = [f"{row.metrics[name]:.3f}" if name in row.metrics else "" for name in METRICS]
        size = f"{row.parameters / 1e6:.2f} M"
        cells = [HEADS[row.head], backbone_title(row.backbone, row.head), size, str(row.steps), str(row.scenes)]
        lines.append("| " + " | ".join([*cells, f"{row.seconds:.0f}", *metrics]) + " |")
    return "\n".join(lines)


def write_results(rows: Sequence[Row], scale: Scale, out: Path) -> None:
    """result.json and result.md."""
    result = {
        "scale": asdict(scale),
        "rows": [asdict(row) for row in rows],
        "versions": versions("paddledet", "paddleseg"),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
    }
    write_json(out / "result.json", result)
    (out / "result.md").write_text(render(rows) + "\n")


def run(heads: Sequence[str], variants: Sequence[str], scale: Scale, out: Path) -> list[Row]:
    """All rows, of which those so far are in result.json and result.md at any time."""
    backbones = [*variants, RESNET]
    for folder in (out, out / "probe"):
        folder.mkdir(parents=True, exist_ok=True)
    for log in out.glob("*.log"):
        log.unlink()
    steps = measure_steps(heads, backbones, scale, out)
    shutil.rmtree(out / "probe")
    rows: list[Row] = []
    for head in heads:
        segmentation = head == "semantic_fpn"
        data = out / ("seg" if segmentation else "coco")
        of_same_data = [other for other in heads if (other == "semantic_fpn") == segmentation]
        most = max(number for other in of_same_data for number in steps[other].values())
        make_data(head, most * scale.batch_size, scale, data)
        for backbone in backbones:
            number = steps[head][backbone]
            print(
                f"\n== {HEADS[head]} on {backbone_title(backbone, head)}: {number} steps, then evaluation", flush=True
            )
            output = train(head, backbone, number, scale, data, out, evaluate=True)
            stem = f"{head}_{backbone}"
            weights = out / stem / (f"iter_{number}/model.pdparams" if segmentation else "model_final.pdparams")
            seconds = sum(step_seconds(output))
            parameters = count_parameters(weights)
            metrics = read_metrics(head, output)
            rows.append(Row(head, backbone, parameters, number, number * scale.batch_size, round(seconds, 1), metrics))
            write_results(rows, scale, out)
            named = ", ".join(f"{METRICS[name]} {value:.3f}" for name, value in metrics.items())
            print(f"  {seconds:.0f} s of training; {named} on {scale.val_scenes} held-out scenes")
    return rows


def main() -> int:
    command = parser("CycleMLP and ResNet-50: same data, same time, random weights.", "output/compare")
    command.add_argument("--variant", choices=("b0", "b1"), nargs="+", default=["b1"], help="of CycleMLP (b1)")
    command.add_argument("--heads", choices=HEADS, nargs="+", default=list(HEADS), help="default: all")
    command.add_argument("--seconds", type=float, help=f"of training for each row ({Scale.seconds:g})")
    args = command.parse_args()
    scale = SMOKE if args.smoke else Scale()

    def compare() -> None:
        wanted = scale if args.seconds is None else replace(scale, seconds=args.seconds)
        if not 1 <= wanted.seconds <= 86400:
            raise ValueError(f"--seconds is {wanted.seconds:g}; it takes a number from 1 to 86400")
        out = args.out.resolve()
        rows = run(list(dict.fromkeys(args.heads)), list(dict.fromkeys(args.variant)), wanted, out)
        threads = os.environ["OMP_NUM_THREADS"]
        print(f"\n{wanted.seconds:g} s of training for each row, random weights, {threads} threads\n\n{render(rows)}")
        worst = max(rows, key=lambda row: abs(row.seconds / wanted.seconds - 1))
        if abs(worst.seconds / wanted.seconds - 1) > 0.1 and not args.smoke:
            print(
                f"\n{HEADS[worst.head]} on {backbone_title(worst.backbone, worst.head)} took {worst.seconds:.0f} s: "
                "the machine's speed changed between the timing and the training. Run again when nothing else runs."
            )
        print(f"\nfigures  {out / 'result.json'}, {out / 'result.md'}")

    return run_demo(compare)


if __name__ == "__main__":
    sys.exit(main())
