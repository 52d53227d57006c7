"""The tables of docs/deployment.md: exported models against the networks they were exported from.

    python -m benchmarks.deployment                          every model, each in a process of its own
    python -m benchmarks.deployment --demo output/demo       int8 on the demo's segmentation model, before and after

Weights are random (but for --demo): equality and time do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cyclemlp_backbones.benchmark import describe_machine, measure, variables

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [(1, 224, 224), (3, 96, 64), (1, 97, 131), (3, 33, 45), (1, 32, 32)]
DETECTOR_SHAPES = [(1, 320, 320), (3, 96, 64), (1, 96, 160), (3, 32, 64), (1, 32, 32)]  # multiples of 32
MODELS = {
    "classifier b1": ("cls", None, 224),
    "pyramid b1": ("features", None, 224),
    "SemanticFPN b1": ("seg", "seg_configs/semantic_fpn/semantic_fpn_cyclemlp_b1_ade20k_512x512_40k.yml", 256),
    "UPerNet b1": ("seg", "seg_configs/upernet/upernet_cyclemlp_b1_ade20k_512x512_160k.yml", 256),
    "RetinaNet b1": ("det", "det_configs/retinanet_cyclemlp_b1_fpn_1x_coco.yml", 320),
    "Mask R-CNN b1": ("det", "det_configs/mask_rcnn_cyclemlp_b1_fpn_1x_coco.yml", 320),
}
WITHOUT_ONNX = ("UPerNet b1", "Mask R-CNN b1")
HEADER = "| model | format, runtime | largest difference | batch 1 and 3 | five sizes | latency | of dygraph's |"
CLASSES = 11


def _weights(task: str, config: str | None, folder: Path) -> str:
    """Random weights of one model, saved as training saves them."""
    import paddle

    paddle.seed(0)
    if task in ("cls", "features"):
        from cyclemlp_backbones import build_backbone, build_classifier

        network = (build_classifier if task == "cls" else build_backbone)("b1")
    elif task == "seg":
        from paddleseg.cvlibs import Config, SegBuilder

        from cyclemlp_backbones.adapters import paddleseg  # noqa: F401

        configuration = Config(path=str(ROOT / str(config)))
        configuration.dic["model"]["backbone"]["pretrained"] = None
        network = SegBuilder(configuration).model
    else:
        from ppdet.core.workspace import create

        from cyclemlp_backbones.adapters import paddledet  # noqa: F401
        from cyclemlp_backbones.adapters.paddledet_config import read_config

        network = create(read_config(str(ROOT / str(config)), ["CycleMLP.pretrained=null"]).architecture)
    path = str(folder / "model.pdparams")
    paddle.save(network.state_dict(), path)
    return path


def _difference(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], *, unordered: bool) -> float:
    """The largest absolute difference; of `unordered` candidates (boxes, scores), that to the nearest box and its
    scores, since runtimes order equal scores differently."""
    if any(some.shape != others.shape for some, others in zip(actual, expected)):
        return float("inf")
    if not unordered:
        return max(float(np.abs(some - others).max(initial=0)) for some, others in zip(actual, expected))
    rows, wanted = (np.concatenate(arrays, axis=2).astype(np.float64) for arrays in (actual, expected))
    largest = 0.0
    for row, target in zip(rows, wanted):
        for candidate in row:
            largest = max(largest, float(np.abs(target - candidate).max(axis=1).min()))
    return largest


def measure_model(name: str, kind: str, rounds: int) -> dict[str, float]:
    """One row: exports the model, compares it at all shapes, times it in turns with dygraph."""
    import paddle

    from cyclemlp_backbones.deploy.export import export
    from cyclemlp_backbones.deploy.networks import network_export
    from cyclemlp_backbones.deploy.runtime import DeployedModel

    task, config, side = MODELS[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = _weights(task, config, folder)
        if task == "seg":
            from cyclemlp_backbones.adapters.paddleseg_deploy import seg_export

            model = seg_export(weights, str(ROOT / str(config)))
        elif task == "det":
            from cyclemlp_backbones.adapters.paddledet_deploy import det_export

            model = det_export(weights, str(ROOT / str(config)), format=kind)
        else:
            model = network_export(weights, task)
        export(model, folder / kind, format=kind)
        deployed = DeployedModel(folder / kind)
        model.layer.eval()

        def feeds(batch: int, height: int, width: int) -> dict[str, np.ndarray]:
            image = np.random.RandomState(height).standard_normal((batch, 3, height, width)).astype(np.float32)
            sizes = {"im_shape": [[height, width]] * batch, "scale_factor": [[1, 1]] * batch}
            arrays = {"image": image, **{key: np.array(value, np.float32) for key, value in sizes.items()}}
            return {key: arrays[key] for key in model.inputs}

        @paddle.no_grad()
        def dygraph(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
            outputs = model.layer(*(paddle.to_tensor(array) for array in arrays.values()))
            return [output.numpy() for output in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]

        differences = []
        for shape in DETECTOR_SHAPES if task == "det" else SHAPES:
            arrays = feeds(*shape)
            pair = deployed.run(arrays), dygraph(arrays)
            differences.append(_difference(*pair, unordered=model.nms is not None))
        arrays = feeds(1, side, side)
        times = measure({"dygraph": lambda: dygraph(arrays), "deployed": lambda: deployed.run(arrays)}, rounds=rounds)
        milliseconds = times["deployed"].minimum * 1e3
        return {
            "difference": max(differences),
            "ms": milliseconds,
            "ratio": milliseconds / (times["dygraph"].minimum * 1e3),
            "side": side,
        }


def _miou(predicted: Path, data: Path, pairs: Sequence[Sequence[str]]) -> float:
    from PIL import Image

    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for image, label in pairs:
        truth = np.asarray(Image.open(data / label)).astype(np.int64)
        classes = np.asarray(Image.open(predicted / f"{Path(image).stem}.png")).astype(np.int64)
        counts = np.bincount((truth * CLASSES + classes)[truth < CLASSES], minlength=CLASSES**2)
        confusion += counts.reshape(CLASSES, CLASSES)
    hits = np.diag(confusion)
    return float((hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean())


def measure_quantised(demo: Path) -> list[str]:
    """mIoU over the demo's held-out scenes and latency of the float32 and the int8 models, by `cyclemlp`'s commands."""
    from cyclemlp_backbones.cli import main
    from cyclemlp_backbones.deploy.runtime import DeployedModel

    data = demo / "data"
    pairs = [line.split() for line in (data / "val.txt").read_text().splitlines()]
    images, training = data / "images" / "val", data / "images" / "train"
    static = ["--quantize", "static", "--calibration", str(training)]
    variants = {"float32": [], "int8 dynamic": ["--quantize", "dynamic"], "int8 static": static}
    models, accuracy, megabytes = {}, {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, flags in variants.items():
            folder, results = Path(scratch) / name.replace(" ", "_"), Path(scratch) / f"results {name}"
            config = str(ROOT / "seg_configs/demo/semantic_fpn_cyclemlp_b0_digits.yml")
            arguments = [str(demo / "model.pdparams"), str(folder), "--task", "seg", "--config", config]
            predict = [str(folder), str(images), "--out", str(results), "--no-pictures"]
            if main(["export", *arguments, "--format", "onnx", *flags]) or main(["predict", *predict]):
                raise SystemExit(f"{name} failed; its error is above")
            models[name] = DeployedModel(folder)
            accuracy[name] = _miou(results / "masks", data, pairs)
            megabytes[name] = (folder / "model.onnx").stat().st_size / 1e6
        image = {"image": np.zeros((1, 3, 256, 256), np.float32)}
        times = measure({name: (lambda model=model: model.run(image)) for name, model in models.items()})
    lines = ["| SemanticFPN b0 of the demo | mIoU | file | 256 x 256 | of float32's |", "|---|---|---|---|---|"]
    for name in models:
        milliseconds, ratio = times[name].minimum * 1e3, times[name].minimum / times["float32"].minimum
        lines.append(
            f"| {name} | {accuracy[name]:.3f} | {megabytes[name]:.1f} MB | {milliseconds:.1f} ms | {ratio:.2f} |"
        )
    return lines


def _row(name: str, kind: str, rounds: int, threads: int) -> str:
    """A line of the table, measured in another process: PaddleDetection's configuration is one per process."""
    if kind == "onnx" and name in WITHOUT_ONNX:
        return f"| {name} | ONNX | not exported | | | | |"
    command = [sys.executable, "-m", "benchmarks.deployment", "--model", name, "--kind", kind, "--rounds", str(rounds)]
    environment = {**os.environ, **variables(threads)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    rows = [line[4:] for line in run.stdout.splitlines() if line.startswith("ROW ")]
    if not rows:
        return f"| {name} | {kind} | failed: {run.stderr.strip().splitlines()[-1]} | | | | |"
    row = json.loads(rows[0])
    runtime = "Paddle, its predictor" if kind == "paddle" else "ONNX, ONNX Runtime"
    equal = "yes" if row["difference"] < 1e-3 else "no"
    latency = f"{row['ms']:.0f} ms at {row['side']:.0f}"
    return f"| {name} | {runtime} | {row['difference']:.1e} | {equal} | {equal} | {latency} | {row['ratio']:.2f} |"


def main_program() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--kind", choices=("paddle", "onnx"), default="paddle")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--demo", type=Path, metavar="DIR", help="output folder of `make demo`")
    args = parser.parse_args()
    if args.demo:
        print("\n".join(measure_quantised(args.demo)))
    elif args.model:
        print("ROW " + json.dumps(measure_model(args.model, args.kind, args.rounds)))
    else:
        print(json.dumps(describe_machine(), indent=1), file=sys.stderr)
        print(HEADER + "\n|---|---|---|---|---|---|---|")
        for name in MODELS:
            for kind in ("paddle", "onnx"):
                print(_row(name, kind, args.rounds, args.threads), flush=True)


if __name__ == "__main__":
    main_program()
