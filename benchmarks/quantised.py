"""int8, fp16 and bf16 on a CPU, before and after: accuracy and size on the demos' held-out scenes, and latency.

python -m benchmarks.quantised --demo output/demo --demo-det output/demo-det     after `make demo demo-det`
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
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


def _precision(results: Path, annotations: Path) -> float:
    """COCO's average precision, over overlaps of 0.5 to 0.95."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(results / "detections.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def _measure(
    arguments: Sequence[str], images: Path, training: Path, accuracy: Callable[[Path], float], *predicting: str
) -> list[dict[str, Any]]:
    """Accuracy over `images`, size and latency of float32, fp16 and int8, by `cyclemlp`'s commands."""
    from cyclemlp_backbones.cli import main
    from cyclemlp_backbones.deploy.runtime import DeployedModel

    static = ["static", "--calibration", str(training)]
    modes = {"float32": [], "fp16": ["fp16"], "int8 dynamic": ["dynamic"], "int8 static": static}
    models: dict[str, DeployedModel] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, mode in modes.items():
            folder, results = Path(scratch) / name.replace(" ", "_"), Path(scratch) / f"results {name}"
            quantize = ["--quantize", *mode] if mode else []
            predict = [str(folder), str(images), "--out", str(results), "--no-pictures", *predicting]
            export = [arguments[0], str(folder), *arguments[1:], "--format", "onnx", *quantize]
            if main(["export", *export]) or main(["predict", *predict]):
                raise SystemExit(f"{name} failed; its error is above")
            models[name] = DeployedModel(folder, threads=THREADS)
            megabytes = (folder / "model.onnx").stat().st_size / 1e6
            rows.append({"name": name, "accuracy": accuracy(results), "megabytes": megabytes})
        image = {"image": np.zeros((1, 3, SIDE, SIDE), np.float32)}
        times = measure({name: partial(model.run, image) for name, model in models.items()})
    return [{**row, "milliseconds": times[row["name"]].minimum * 1e3} for row in rows]


def measure_segmentation(demo: Path, variant: str) -> list[dict[str, Any]]:
    """mIoU of the segmentation demo's model."""
    data = demo / "data"
    pairs = [line.split() for line in (data / "val.txt").read_text().splitlines()]
    config = str(ROOT / f"seg_configs/demo/semantic_fpn_cyclemlp_{variant}_digits.yml")
    arguments = [str(demo / "model.pdparams"), "--task", "seg", "--config", config]
    return _measure(
        arguments,
        data / "images" / "val",
        data / "images" / "train",
        lambda results: _miou(results / "masks", data, pairs),
    )


def measure_detection(demo: Path, variant: str) -> list[dict[str, Any]]:
    """Average precision of the detection demo's RetinaNet."""
    data = demo / "data"
    annotations = data / "annotations" / "instances_val.json"
    config = str(ROOT / f"det_configs/demo/retinanet_cyclemlp_{variant}_digits.yml")
    named = [f"{split}Dataset.dataset_dir={data}" for split in ("Train", "Eval", "Test")]  # whose ids the classes have
    weights = str(demo / "retinanet" / "model_final.pdparams")
    arguments = [weights, "--task", "det", "--config", config, "--opts", *named]
    coco = ("--coco-images", str(annotations))
    return _measure(arguments, data / "val", data / "train", partial(_precision, annotations=annotations), *coco)


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
    parser.add_argument("--demo-det", type=Path, metavar="DIR", required=True, help="output folder of `make demo-det`")
    args = parser.parse_args()
    start_again_with(variables(THREADS))
    variant, det_variant = (read_json(folder / "result.json")["variant"] for folder in (args.demo, args.demo_det))
    results = {
        "machine": describe_machine(),
        "side": SIDE,
        "models": [
            {"name": f"SemanticFPN {variant}", "measure": "mIoU", "rows": measure_segmentation(args.demo, variant)},
            {
                "name": f"RetinaNet {det_variant}",
                "measure": "AP",
                "rows": measure_detection(args.demo_det, det_variant),
            },
        ],
        "bf16": measure_bf16(),
    }
    write_json(QUANTISED, results)
    print(f"wrote {QUANTISED}")


if __name__ == "__main__":
    main()
