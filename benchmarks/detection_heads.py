"""Which detection heads train, evaluate, infer and export on the installed Paddle: each cell of the table is a run.

    python -m benchmarks.detection_heads                      # measures here, prints the table of all results so far
    python -m benchmarks.detection_heads --document docs/support.md   # and puts it there, between two markers
    python -m benchmarks.detection_heads --render-only --document docs/support.md

The shipped b1 configurations run with `cyclemlp det …`, narrowed to CycleMLP-B0, small images and few proposals. The
result of each Paddle version is a file in docs/results. A step counts if its command ends well and left what it
is for: a finite loss, precisions, boxes, and an exported model whose boxes and masks are those of dygraph.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

os.environ.setdefault("OMP_NUM_THREADS", str(min(8, os.cpu_count() or 1)))
os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # steps run this file by its path, elsewhere

from benchmarks.documents import RESULTS, Part, read_json, write_json  # noqa: E402

HEADS = {
    "retinanet": "RetinaNet",
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
}
ACTIONS = ("train", "eval", "infer", "export")
PART = Part("detection heads", "python -m benchmarks.detection_heads --document docs/support.md")
_SIZE, _TRAIN_SCENES, _STEPS = 64, 16, 8
_NORMALIZE = {"is_scale": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_TOLERANCE = 1e-3  # of scores, and of coordinates in pixels
_MASK_TOLERANCE = 1e-3  # share of the pixels


def write_config(head: str, folder: Path) -> Path:
    """folder/HEAD.yml: the shipped configuration on the scenes in `folder`, small enough for a CPU."""
    steps = [
        {"Decode": {}},
        {"Resize": {"target_size": [_SIZE, _SIZE], "interp": 1, "keep_ratio": True}},
        {"NormalizeImage": _NORMALIZE},
        {"Permute": {}},
    ]

    def data(split: str) -> dict[str, str]:
        return {"dataset_dir": str(folder), "image_dir": split, "anno_path": f"annotations/instances_{split}.json"}

    low = {"nms": {"score_threshold": 0.001, "keep_top_k": 20}}  # after so few steps, scores are low
    config: dict[str, Any] = {
        "_BASE_": [str(ROOT / "det_configs" / f"{head}_cyclemlp_b1_fpn_1x_coco.yml")],
        "use_gpu": False,
        "num_classes": 10,
        "epoch": 1,
        "log_iter": 1,
        "worker_num": 0,
        "save_dir": str(folder / "weights"),
        "weights": str(folder / "weights" / head / "model_final.pdparams"),
        "CycleMLP": {"arch": "b0", "pretrained": None},
        "FPN": {"out_channel": 64},
        "LearningRate": {
            "base_lr": 0.001,
            "schedulers": [{"name": "CosineDecay", "max_epochs": 2}, {"name": "LinearWarmup", "steps": 2}],
        },
        "TrainDataset": data("train"),
        "EvalDataset": data("val"),
        "TestDataset": {"dataset_dir": str(folder), "anno_path": "annotations/instances_val.json"},
        "TrainReader": {
            "sample_transforms": steps,
            "batch_size": _TRAIN_SCENES // _STEPS,
            "use_shared_memory": False,
        },
        "EvalReader": {"sample_transforms": steps},
        "TestReader": {"sample_transforms": steps},
    }
    if head == "retinanet":
        config["RetinaHead"] = {**low, "conv_feat": {"feat_in": 64, "feat_out": 64}}
    else:
        config["RPNHead"] = {"train_proposal": {"post_nms_top_n": 100}, "test_proposal": {"post_nms_top_n": 50}}
        config["BBoxPostProcess"] = low
    path = folder / f"{head}.yml"
    path.write_text(yaml.safe_dump(config))
    return path


class StepFailure(Exception):
    """A command failed, or did not leave what it is for."""


def call(arguments: Sequence[str], log: Path) -> str:
    """Runs Python with `arguments`; the output, which also goes to the end of `log`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, errors="replace", env=environment, cwd=log.parent
    )
    output = process.stderr + process.stdout
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ python {' '.join(arguments)}\n{output}")
    if process.returncode:
        errors = re.findall(r".*[Ee]rror: .*", output) or output.strip().splitlines()
        raise StepFailure(errors[-1] if errors else f"status {process.returncode}")
    return output


def check_train(head: str, config: Path, log: Path) -> str:
    output = call(["-m", "cyclemlp_backbones", "det", "train", "-c", str(config), "--enable_ce"], log)
    losses = [float(value) for value in re.findall(r" loss: (\S+)", output)]
    if len(losses) != _STEPS or not all(math.isfinite(value) for value in losses):
        raise StepFailure(f"losses of {_STEPS} steps: {losses}")
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {_STEPS} steps"


def check_eval(head: str, config: Path, log: Path) -> str:
    output = call(["-m", "cyclemlp_backbones", "det", "eval", "-c", str(config)], log)
    kinds = re.findall(r"Evaluate annotation type \*(\w+)\*", output)
    expected = ["bbox", "segm"] if "mask" in head else ["bbox"]
    precisions = re.findall(r"Average Precision .*IoU=0\.50:0\.95 \| area=   all .* = (-?\d\.\d+)", output)
    if kinds != expected or len(precisions) != len(expected):
        raise StepFailure(f"precisions of {kinds or 'nothing'} instead of {expected}")
    return ", ".join(f"{kind} AP {value}" for kind, value in zip(kinds, precisions))


def check_infer(head: str, config: Path, log: Path) -> str:
    folder = config.parent / f"{head}-pictures"
    flags = ["--infer_dir", str(config.parent / "val"), "--output_dir", str(folder), "--save_results", "True"]
    call(["-m", "cyclemlp_backbones", "det", "infer", "-c", str(config), *flags, "--draw_threshold", "0.01"], log)
    counts = {}
    for kind in ("bbox", "mask") if "mask" in head else ("bbox",):
        counts[kind] = len(json.loads((folder / f"{kind}.json").read_text()))
    pictures = len(list(folder.glob("*.png")))
    if not pictures or not all(counts.values()):
        raise StepFailure(f"{pictures} pictures, {counts}")
    return f"{pictures} pictures, " + ", ".join(f"{count} of {kind}" for kind, count in counts.items())


def check_export(head: str, config: Path, log: Path) -> str:
    folder = config.parent / "exported"
    call(["-m", "cyclemlp_backbones", "det", "export", "-c", str(config), "--output_dir", str(folder)], log)
    works = []
    for batch in (1, 2):
        try:
            call([__file__, "--compare", str(config), str(folder / head), str(batch)], log)
        except StepFailure as failure:
            if batch == 1:
                raise
            print(f"    a batch of {batch}: {failure}", flush=True)
        else:
            works.append(batch)
    return "equal to dygraph for one or two images" if works == [1, 2] else "equal to dygraph for one image at a time"


CHECKS: dict[str, Callable[[str, Path, Path], str]] = {
    "train": check_train,
    "eval": check_eval,
    "infer": check_infer,
    "export": check_export,
}


def compare(config: Path, exported: Path, batch: int) -> None:
    """Raises StepFailure unless the exported model gives what dygraph gives, for images of two sizes."""
    import numpy as np
    import paddle
    from ppdet.core.workspace import create

    from benchmarks.exported import predictor_call
    from cyclemlp_backbones.adapters.paddledet import register_paddledet
    from cyclemlp_backbones.adapters.paddledet.launch import read_config

    register_paddledet(repair=True)

    settings = read_config(str(config), [])
    model = create(settings.architecture)
    model.set_state_dict(paddle.load(settings.weights))
    model.eval()
    predict = predictor_call(exported, onednn=False)
    random = np.random.default_rng(0)
    for height, width in ((64, 64), (96, 128)):
        feed = {
            "image": random.standard_normal((batch, 3, height, width)).astype("float32"),
            "im_shape": np.array([[height, width]] * batch, "float32"),
            "scale_factor": np.ones((batch, 2), "float32"),
        }
        with paddle.no_grad():
            expected = model({name: paddle.to_tensor(array) for name, array in feed.items()})
        outputs = predict(feed)
        if int(expected["bbox_num"].sum()) == 0:
            raise StepFailure(f"no box to compare for {height} x {width}")
        for array, (name, value) in zip(outputs, expected.items()):
            other = value.numpy()
            if array.shape != other.shape:
                raise StepFailure(f"{name} has shape {array.shape}, in dygraph {other.shape}")
            if name == "mask":  # 0 or 1: a probability of 0.5 may fall on either side
                share = float((array != other).mean())
                if share > _MASK_TOLERANCE:
                    raise StepFailure(f"{share:.3%} of the masks' pixels differ")
            elif not np.allclose(array, other, rtol=0, atol=_TOLERANCE):
                raise StepFailure(f"{name} differs by {np.abs(array.astype('float64') - other).max():.3g}")


def measure(heads: Sequence[str], folder: Path) -> dict[str, Any]:
    """What each step of each head came to on the installed Paddle."""
    import paddle

    from cyclemlp_backbones.digits import DemoSettings, write_demo_data

    write_demo_data(folder, DemoSettings("coco", train=_TRAIN_SCENES, val=4, size=_SIZE, max_digits=2), force=True)
    result: dict[str, Any] = {"paddle": paddle.__version__, "heads": {}}
    for head in heads:
        config = write_config(head, folder)
        log = folder / f"{head}.log"
        result["heads"][head] = cells = {}
        for action in ACTIONS:
            start = time.monotonic()
            try:
                cell = {"works": True, "what": CHECKS[action](head, config, log)}
            except StepFailure as failure:
                cell = {"works": False, "what": str(failure)}
            cells[action] = {**cell, "seconds": round(time.monotonic() - start, 1)}
            word = "works" if cell["works"] else "FAILS"
            print(f"  {HEADS[head]}, {action}: {word}, {cell['what']}, {cells[action]['seconds']} s", flush=True)
    return result


def render(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown: in each cell the Paddle versions, newest first, on which that step works."""

    def versions(head: str, action: str) -> str:
        by_note: dict[str, list[str]] = {}
        for version in sorted(results, key=lambda text: [int(part) for part in text.split(".")], reverse=True):
            cell = results[version]["heads"].get(head, {}).get(action)
            if cell is not None:
                note = ("one image at a time" if "at a time" in cell["what"] else "") if cell["works"] else "fails"
                by_note.setdefault(note, []).append(version)
        return "; ".join(", ".join(numbers) + (f" ({note})" if note else "") for note, numbers in by_note.items())

    lines = ["| | " + " | ".join(ACTIONS) + " |", "|---" * (1 + len(ACTIONS)) + "|"]
    for head, title in HEADS.items():
        lines.append(f"| {title} | " + " | ".join(versions(head, action) for action in ACTIONS) + " |")
    return "\n".join(lines)


def stored_results() -> dict[str, dict[str, Any]]:
    """The results of all versions measured so far, by Paddle's version."""
    results = [read_json(path) for path in sorted(RESULTS.glob("detection_heads_*.json"))]
    return {result["paddle"]: result for result in results}


def main() -> int:
    parser = argparse.ArgumentParser(description="Which detection heads work on the installed Paddle.")
    parser.add_argument("--heads", choices=HEADS, nargs="+", default=list(HEADS), help="default: all")
    parser.add_argument("--out", type=Path, help="folder of configurations, weights and logs (a temporary one)")
    parser.add_argument("--document", type=Path, help="file to put the table into, between its markers")
    parser.add_argument("--render-only", action="store_true", help="measure nothing")
    parser.add_argument("--compare", nargs=3, metavar=("CONFIG", "EXPORTED", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compare:
        try:
            compare(Path(arguments.compare[0]), Path(arguments.compare[1]), int(arguments.compare[2]))
        except StepFailure as failure:
            print(failure)
            return 1
        return 0
    works = True
    if not arguments.render_only:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.out or Path(temporary)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            result = measure(arguments.heads, folder)
        works = all(cell["works"] for cells in result["heads"].values() for cell in cells.values())
        if list(result["heads"]) == list(HEADS):
            write_json(RESULTS / f"detection_heads_{result['paddle']}.json", result)
        else:
            print("nothing is stored: only a run of all heads is")
    table = render(stored_results())
    print(table)
    if arguments.document:
        PART.write(arguments.document, table)
    return 0 if works else 1


if __name__ == "__main__":
    sys.exit(main())
