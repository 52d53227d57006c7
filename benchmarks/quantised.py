"""int8 and bf16 on a CPU, before and after: accuracy and size on the demo's held-out scenes, and latency.

python -m benchmarks.quantised --demo output/demo          after `make demo`
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deployment_table import QUANTISED
from benchmarks.documents import ROOT, read_json, write_json
from benchmarks.exported import predictor_call
from benchmarks.group import THREADS
from cyclemlp_backbones.timing import describe_machine, measure, start_again_with, variables

CLASSES = 11
SIDE = 256


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


def measure_int8(demo: Path, variant: str) -> list[dict[str, Any]]:
    """mIoU over the demo's held-out scenes, size and latency of float32 and int8, by `cyclemlp`'s commands."""
    from cyclemlp_backbones.cli import main
    from cyclemlp_backbones.deploy.runtime import DeployedModel

    data = demo / "data"
    pairs = [line.split() for line in (data / "val.txt").read_text().splitlines()]
    images, training = data / "images" / "val", data / "images" / "train"
    static = ["--quantize", "static", "--calibration", str(training)]
    flags: dict[str, list[str]] = {"float32": [], "int8 dynamic": ["--quantize", "dynamic"], "int8 static": static}
    models: dict[str, DeployedModel] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, more in flags.items():
            folder, results = Path(scratch) / name.replace(" ", "_"), Path(scratch) / f"results {name}"
            config = str(ROOT / f"seg_configs/demo/semantic_fpn_cyclemlp_{variant}_digits.yml")
            arguments = [str(demo / "model.pdparams"), str(folder), "--task", "seg", "--config", config]
            predict = [str(folder), str(images), "--out", str(results), "--no-pictures"]
            if main(["export", *arguments, "--format", "onnx", *more]) or main(["predict", *predict]):
                raise SystemExit(f"{name} failed; its error is above")
            models[name] = DeployedModel(folder, threads=THREADS)
            megabytes = (folder / "model.onnx").stat().st_size / 1e6
            rows.append({"name": name, "miou": _miou(results / "masks", data, pairs), "megabytes": megabytes})
        image = {"image": np.zeros((1, 3, SIDE, SIDE), np.float32)}
        times = measure({name: partial(model.run, image) for name, model in models.items()})
    return [{**row, "milliseconds": times[row["name"]].minimum * 1e3} for row in rows]


def measure_bf16() -> dict[str, float]:
    """Latency of the exported classifier b1 in Paddle's predictor, float32 and bf16, and their difference."""
    import paddle

    from cyclemlp_backbones import build_classifier
    from cyclemlp_backbones.deploy.export import export
    from cyclemlp_backbones.deploy.networks import network_export

    image = np.random.RandomState(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        paddle.seed(0)
        weights = f"{scratch}/b1.pdparams"
        paddle.save(build_classifier("b1").state_dict(), weights)
        export(network_export(weights, "cls"), f"{scratch}/model", format="paddle")
        models = {
            name: predictor_call(Path(scratch) / "model", onednn=True, bf16=name == "bf16")
            for name in ("float32", "bf16")
        }
        calls = {name: partial(lambda model: model({"image": image})[0], model) for name, model in models.items()}
        expected, actual = calls["float32"](), calls["bf16"]()
        times = measure(calls)
    difference = float(np.abs(actual - expected).max() / np.abs(expected).max())
    return {"difference": difference, **{name: times[name].minimum * 1e3 for name in calls}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, metavar="DIR", required=True, help="output folder of `make demo`")
    args = parser.parse_args()
    start_again_with(variables(THREADS))
    variant = read_json(args.demo / "result.json")["variant"]
    results = {
        "machine": describe_machine(),
        "variant": variant,
        "side": SIDE,
        "int8": measure_int8(args.demo, variant),
        "bf16": measure_bf16(),
    }
    write_json(QUANTISED, results)
    print(f"wrote {QUANTISED}")


if __name__ == "__main__":
    main()
