"""The table of docs/deployment.md: exported models against the networks that they were exported from.

    python -m benchmarks.deployment          every model in every runtime, each in a process of its own

    python -m benchmarks.deployment --openvino    ONNX exports in ONNX Runtime and in OpenVINO (extra: openvino)

Weights are random: equality and time do not depend on them. With Paddle 3 and after `make demo demo-det`, int8, fp16
and bf16 are measured too, by `benchmarks.quantised`. What was measured is stored in docs/results and put into the
document.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deployment_table import OLDER, OPENVINO, stored_file, write_document
from benchmarks.documents import ROOT, write_json
from benchmarks.group import THREADS
from cyclemlp_backbones.timing import describe_machine, measure, start_again_with, variables

DEMO, DEMO_DET = ROOT / "output" / "demo", ROOT / "output" / "demo-det"
SHAPES = [(1, 224, 224), (3, 96, 64), (1, 97, 131), (3, 33, 45), (1, 32, 32)]
DETECTOR_SHAPES = [(1, 320, 320), (3, 96, 64), (1, 96, 160), (3, 32, 64), (1, 32, 32)]
"""Multiples of 32, which the manifest's `pad_to` makes of every picture."""
MODELS = {
    "classifier b1": ("cls", None, 224),
    "pyramid b1": ("features", None, 224),
    "SemanticFPN b1": ("seg", "seg_configs/semantic_fpn/semantic_fpn_cyclemlp_b1_ade20k_512x512_40k.yml", 256),
    "UPerNet b1": ("seg", "seg_configs/upernet/upernet_cyclemlp_b1_ade20k_512x512_160k.yml", 128),
    "RetinaNet b1": ("det", "det_configs/retinanet_cyclemlp_b1_fpn_1x_coco.yml", 320),
    "RetinaNet b1, --nms": ("det", "det_configs/retinanet_cyclemlp_b1_fpn_1x_coco.yml", 320),
    "GFL b1": ("det", "det_configs/gfl_cyclemlp_b1_fpn_1x_coco.yml", 320),
    "FCOS b1": ("det", "det_configs/fcos_cyclemlp_b1_fpn_1x_coco.yml", 320),
    "Faster R-CNN b1": ("det", "det_configs/faster_rcnn_cyclemlp_b1_fpn_1x_coco.yml", 320),
    "Mask R-CNN b1": ("det", "det_configs/mask_rcnn_cyclemlp_b1_fpn_1x_coco.yml", 320),
    "Cascade Mask R-CNN b1": ("det", "det_configs/cascade_mask_rcnn_cyclemlp_b1_fpn_1x_coco.yml", 320),
}
RUNTIMES = ("paddle-onednn", "paddle", "onnx")
ON_ONNX = ("onnx", "openvino")
_LOUDER = re.compile(r"(bbox_(score|delta)(_stage\d)?|retina_cls|head_cls)\.weight$")
"""A detector's random weights that are enlarged, or it finds nothing and nothing is compared."""


def _detector(config: str) -> Any:
    import paddle
    from ppdet.core.workspace import create

    from cyclemlp_backbones.adapters.paddledet import register_paddledet
    from cyclemlp_backbones.adapters.paddledet.launch import read_config

    register_paddledet(repair=True)

    network = create(read_config(str(ROOT / config), ["CycleMLP.pretrained=null"]).architecture)
    for name, parameter in network.named_parameters():
        if _LOUDER.search(name):
            parameter.set_value(parameter * 3)
        elif name.endswith(("retina_cls.bias", "head_cls.bias")):
            parameter.set_value(paddle.full_like(parameter, math.log(0.1 / 0.9)))
    return network


def _weights(task: str, config: str | None, folder: Path) -> str:
    """Random weights of one model, saved as training saves them."""
    import paddle

    paddle.seed(0)
    if task in ("cls", "features"):
        from cyclemlp_backbones import build_backbone, build_classifier

        network = (build_classifier if task == "cls" else build_backbone)("b1")
    elif task == "seg":
        from paddleseg.cvlibs import Config, SegBuilder

        from cyclemlp_backbones.adapters.paddleseg import register_paddleseg

        register_paddleseg(repair=True)

        configuration = Config(path=str(ROOT / str(config)))
        configuration.dic["model"]["backbone"]["pretrained"] = None
        network = SegBuilder(configuration).model
    else:
        network = _detector(str(config))
    path = str(folder / "model.pdparams")
    paddle.save(network.state_dict(), path)
    return path


def _exportable(name: str, format: str, folder: Path) -> Any:
    task, config, _ = MODELS[name]
    weights = _weights(task, config, folder)
    if task == "seg":
        from cyclemlp_backbones.adapters.paddleseg.export import seg_export

        return seg_export(weights, str(ROOT / str(config)))
    if task == "det":
        from cyclemlp_backbones.adapters.paddledet.export import det_export

        return det_export(weights, str(ROOT / str(config)), format=format, nms="--nms" in name)
    from cyclemlp_backbones.deploy.networks import network_export

    return network_export(weights, task)


def difference(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], *, unordered: bool) -> float:
    """The largest difference, as a share of each output's largest value, or of 1 where that is smaller; of whole
    numbers, masks and counts, the share of those that differ.

    Of `unordered` candidates (boxes, scores), that to the nearest one, since runtimes order equal scores differently.
    """
    if any(some.shape != others.shape for some, others in zip(actual, expected)):
        return math.inf
    if not unordered:
        return max(map(_largest, actual, expected))
    scales = [max(1.0, float(np.abs(array).max(initial=0))) for array in expected]
    rows, wanted = (
        np.concatenate([array.astype(np.float64) / scale for array, scale in zip(arrays, scales)], axis=2)
        for arrays in (actual, expected)
    )
    return max(
        float(np.abs(target - candidate).max(axis=1).min()) for row, target in zip(rows, wanted) for candidate in row
    )


def _largest(actual: np.ndarray, expected: np.ndarray) -> float:
    if expected.dtype.kind in "biu":
        return float((actual != expected).mean()) if expected.size else 0.0
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(actual - expected).max(initial=0)) / max(1.0, float(np.abs(expected).max(initial=0)))


class OpenVino:
    """An exported ONNX folder in OpenVINO, on the CPU, in float32 as the others."""

    def __init__(self, folder: Path) -> None:
        import openvino

        wanted = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS}
        self._model = openvino.Core().compile_model(str(folder / "model.onnx"), "CPU", wanted)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [np.array(output) for output in self._model(dict(feeds)).values()]


def finds(outputs: Sequence[np.ndarray], names: Sequence[str]) -> bool:
    """Whether there is anything to compare. Where it finds nothing, PaddleDetection has one row of zeros, or of -1."""
    return all(array.size for array in outputs) and ("bbox" not in names or bool((outputs[0][:, 1] > 0).any()))


def best_first(outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A detector's outputs (boxes [R, 6], how many each image has, masks), each image's best rows first.

    Scores that differ in the fifth digit only are ordered by label and place, since runtimes order them differently.
    """
    rows, counts = outputs[:2]
    images = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((rows[:, 2].round(1), rows[:, 0], -rows[:, 1].round(4), images))
    return [rows[order], counts, *(array[order] for array in outputs[2:])]


def measure_model(name: str, runtime: str, rounds: int) -> dict[str, Any]:
    """One row: exports the model, compares it at all shapes, times it in turns with dygraph."""
    import paddle

    from cyclemlp_backbones.deploy.export import export
    from cyclemlp_backbones.deploy.runtime import DeployedModel

    task, _, side = MODELS[name]
    kind = "onnx" if runtime in ON_ONNX else "paddle"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, network = _exportable(name, kind, folder), _exportable(name, kind, folder).layer  # one stays as it is
        export(model, folder / kind, format=kind)
        load: Any = partial(DeployedModel, folder / kind, threads=THREADS, onednn=runtime == "paddle-onednn")
        if runtime == "openvino":
            load = partial(OpenVino, folder / kind)
        deployed = load()
        network.eval()

        def feeds(batch: int, height: int, width: int) -> dict[str, np.ndarray]:
            image = np.random.RandomState(height).standard_normal((batch, 3, height, width)).astype(np.float32)
            sizes = {"im_shape": [[height, width]] * batch, "scale_factor": [[1, 1]] * batch}
            arrays = {"image": image, **{key: np.array(value, np.float32) for key, value in sizes.items()}}
            return {key: arrays[key] for key in model.inputs}

        @paddle.no_grad()
        def dygraph(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
            outputs = network(*(paddle.to_tensor(array) for array in arrays.values()))
            return [output.numpy() for output in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]

        differences, failures = {}, {}
        for shape in DETECTOR_SHAPES if task == "det" else SHAPES:
            arrays, key = feeds(*shape), "x".join(map(str, shape))
            expected = dygraph(arrays)
            if not finds(expected, model.outputs):
                raise SystemExit(f"{name} finds nothing in {shape}, so nothing is compared")
            try:
                actual = deployed.run(arrays)
            except (ValueError, RuntimeError) as error:
                if shape[0] == 1:
                    raise
                failures[key] = _reason(str(error))  # a model for one image at a time
                deployed = load()  # after an error, Paddle's predictor fails at every call
                continue
            if "bbox" in model.outputs:
                actual, expected = best_first(actual), best_first(expected)
            differences[key] = difference(actual, expected, unordered=model.nms is not None)
        arrays = feeds(1, side, side)
        times = measure({"dygraph": lambda: dygraph(arrays), "deployed": lambda: deployed.run(arrays)}, rounds=rounds)
        milliseconds = {key: times[key].minimum * 1e3 for key in times}
        return {"differences": differences, "failures": failures, "side": side, "milliseconds": milliseconds}


def _reason(output: str) -> str:
    """The last line of an error's text that names an error, without where the model lay."""
    lines = [line.strip() for line in output.splitlines() if "Error" in line]
    return re.sub(rf"[\w.]*Error: |{re.escape(tempfile.gettempdir())}/\S+ ", "", lines[-1])[:160] if lines else ""


def _row(name: str, runtime: str, rounds: int) -> dict[str, Any]:
    """A row measured in another process: PaddleDetection's configuration is one per process, and runtimes crash."""
    command = [sys.executable, "-m", "benchmarks.deployment", "--model", name, "--runtime", runtime]
    run = subprocess.run(
        [*command, "--rounds", str(rounds)], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    rows = [line[4:] for line in run.stdout.splitlines() if line.startswith("ROW ")]
    if rows:
        return {"model": name, "runtime": runtime, **json.loads(rows[0])}
    return {"model": name, "runtime": runtime, "failure": _reason(run.stderr) or f"exit status {run.returncode}"}


def rows_of(runtimes: Sequence[str]) -> list[tuple[str, str]]:
    """Each model in each runtime; --nms is for ONNX alone."""
    return [(name, runtime) for name in MODELS for runtime in runtimes if "--nms" not in name or runtime in ON_ONNX]


def measure_all(rounds: int, runtimes: Sequence[str]) -> dict[str, Any]:
    pairs = rows_of(runtimes)
    started, rows = time.monotonic(), []
    for number, (name, runtime) in enumerate(pairs, 1):
        rows.append(_row(name, runtime, rounds))
        elapsed = time.monotonic() - started
        left = elapsed / number * (len(pairs) - number)
        what = rows[-1].get("failure") or "{deployed:.0f} ms, dygraph {dygraph:.0f} ms".format(
            **rows[-1]["milliseconds"]
        )
        print(f"{number}/{len(pairs)} {name}, {runtime}: {what} ({elapsed:.0f} s, about {left:.0f} s left)", flush=True)
    return {"machine": describe_machine(), "rounds": rounds, "seconds": round(time.monotonic() - started), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, help="this one alone, in this process; nothing is stored")
    parser.add_argument("--runtime", choices={*RUNTIMES, *ON_ONNX}, default="paddle")
    parser.add_argument("--openvino", action="store_true", help="ONNX Runtime and OpenVINO alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--demo", type=Path, metavar="DIR", default=DEMO, help="output of `make demo` (%(default)s)")
    parser.add_argument(
        "--demo-det", type=Path, metavar="DIR", default=DEMO_DET, help="of `make demo-det` (%(default)s)"
    )
    args = parser.parse_args()
    start_again_with(variables(THREADS))
    if args.model:
        print("ROW " + json.dumps(measure_model(args.model, args.runtime, args.rounds)))
        return
    if args.openvino:
        write_json(OPENVINO, measure_all(args.rounds, ON_ONNX))
        write_document()
        return
    import paddle

    path = stored_file(paddle.__version__)
    write_json(path, measure_all(args.rounds, RUNTIMES[:1] if paddle.__version__ in OLDER else RUNTIMES))
    if path == stored_file("3.3.1"):
        if (args.demo / "model.pdparams").is_file() and (args.demo_det / "result.json").is_file():
            demos = ["--demo", str(args.demo.resolve()), "--demo-det", str(args.demo_det.resolve())]
            command = [sys.executable, "-m", "benchmarks.quantised", *demos]
            subprocess.run(command, cwd=ROOT, env={**os.environ}, check=True)
        else:
            print(f"int8 is not measured without {args.demo} and {args.demo_det}; `make demo demo-det` writes them")
    write_document()


if __name__ == "__main__":
    main()
