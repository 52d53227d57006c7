"""Each checkout of a toolkit in CYCLEMLP_TOOLKITS, by its own tools, on tiny data: one process a step."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.adapters import tiny_det, tiny_seg
from tests.adapters.tiny_det import merge
from tests.adapters.tiny_seg import REPOSITORY, cyclemlp, python

ROOTS = sorted(root for root in Path(os.environ["CYCLEMLP_TOOLKITS"]).resolve().iterdir() if (root / "tools").is_dir())
MODELS = {"paddleseg": ("semantic_fpn", "upernet"), "ppdet": ("retinanet", "mask_rcnn")}


@dataclass(frozen=True)
class Case:
    """A model trained with a checkout: where both are, and what its tools take."""

    root: Path
    model: str
    folder: Path

    @property
    def is_seg(self) -> bool:
        return (self.root / "paddleseg").is_dir()

    @property
    def config(self) -> Path:
        return self.folder / ("config.yml" if self.is_seg else f"{self.model}.yml")

    @property
    def weights(self) -> Path:
        return self.saved("out", "iter_2/model.pdparams" if self.is_seg else "model_final.pdparams")

    def saved(self, save_dir: str, name: str) -> Path:
        """A file that training wrote: PaddleDetection 2.6 writes into a folder of the configuration's name."""
        folder = self.folder / save_dir
        return folder / name if (folder / name).is_file() else folder / self.model / name

    def command(self, tool: str, *flags: object) -> Sequence[object]:
        where = ("seg", "--config") if self.is_seg else ("det", "-c")
        return (where[0], self.root / "tools" / f"{tool}.py", where[1], self.config, *flags)

    def run(self, tool: str, *flags: object, fails: bool = False, **environment: str) -> str:
        done = cyclemlp(*self.command(tool, *flags), cwd=self.folder, **environment)
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, output[-6000:]
        return output

    def train(self, **arguments: Any) -> str:
        """Two iterations, without evaluation, as a first run is."""
        seg = ("--device", "cpu", "--iters", 2, "--save_interval", 2, "--log_iters", 1, "--save_dir", "out")
        return self.run("train", *(seg if self.is_seg else ("-o", "epoch=1")), **arguments)

    def export(self, **arguments: Any) -> str:
        seg = ("--model_path", self.weights, "--save_dir", f"exported/{self.model}", "--output_op", "none")
        det = ("-o", f"weights={self.weights}", "--output_dir", "exported")
        return self.run(*(("export", *seg) if self.is_seg else ("export_model", *det)), **arguments)

    def write(self) -> None:
        if self.is_seg:
            tiny_seg.write_data(self.folder)
            base = yaml.safe_load((REPOSITORY / f"seg_configs/_base_/{self.model}.yml").read_text())
            narrow = {"channels": 32} if self.model == "upernet" else {}
            model = merge(base["model"], {**narrow, "backbone": {**tiny_seg.BACKBONE, "pretrained": None}})
            tiny_seg.write_config(self.folder, model, loss=base["loss"], optimizer=base["optimizer"])
        else:
            tiny_det.write_data(self.folder)
            tiny_det.write_config(self.folder, self.model, RetinaHead={"prior_prob": 0.1})


CASES = [
    pytest.param((root, model), id=f"{root.name}-{model}", marks=[pytest.mark.short] * (index == 0))
    for root in ROOTS
    for index, model in enumerate(MODELS["paddleseg" if (root / "paddleseg").is_dir() else "ppdet"])
]


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    root, model = request.param
    case = Case(root, model, tmp_path_factory.mktemp(model))
    case.write()
    return case


def test_train(case):
    assert "loss:" in case.train()
    assert case.weights.is_file()


def test_evaluate(case):
    if case.is_seg:
        assert "[EVAL] #Images: 4 mIoU:" in case.run("val", "--device", "cpu", "--model_path", case.weights)
    else:
        assert "Average Precision" in case.run("eval", "-o", f"weights={case.weights}")


def test_predict(case):
    if case.is_seg:
        case.run("predict", "--device", "cpu", "--model_path", case.weights, "--image_path", case.folder / "0.png")
        assert (case.folder / "output/result/pseudo_color_prediction/0.png").is_file()
    else:
        flags = ("--infer_dir", case.folder / "val", "--draw_threshold", 0.01, "--output_dir", "drawn")
        case.run("infer", *flags, "-o", f"weights={case.weights}")
        assert len(list((case.folder / "drawn").glob("*.png"))) == 2


def test_export(case):
    case.export()


def test_exported_equals_dygraph(case, record_property):
    script = REPOSITORY / "tests/toolkits/agreement.py"
    done = python(script, case.root, case.config, case.weights, case.folder / "exported" / case.model, cwd=case.folder)
    assert done.returncode == 0, done.stderr[-6000:]
    record_property("repairs", json.loads(done.stdout.splitlines()[-1]))


def test_resume(case):
    if case.is_seg:
        flags = ("--device", "cpu", "--iters", 4, "--save_interval", 2, "--log_iters", 1, "--save_dir", "out")
        output = case.run("train", *flags, "--do_eval", "--resume_model", "out/iter_2")
        assert "iter: 3/4" in output
        assert "iter: 1/4" not in output
        assert case.saved("out", "best_model/model.pdparams").is_file()
    else:
        output = case.run("train", "--eval", "-r", case.weights)
        assert "Epoch: [1]" in output
        assert "Epoch: [0]" not in output
        assert case.saved("out", "best_model.pdparams").is_file()


def test_a_folder_that_takes_no_checkpoints_is_told_before_training(case):
    (case.folder / "file").write_text("mine")
    flags = ("--device", "cpu", "--save_dir", "file") if case.is_seg else ("-o", "save_dir=file")
    output = case.run("train", *flags, fails=True)
    assert "takes no checkpoints" in output
    assert "loss:" not in output
    assert (case.folder / "file").read_text() == "mine"


def test_two_processes(case):
    processes = ("--nproc_per_node", 2, "--backend", "gloo", "--log_dir", "log")
    launcher = REPOSITORY / "cyclemlp_backbones" / "__main__.py"
    seg = ("--device", "cpu", "--iters", 2, "--batch_size", 1, "--log_iters", 1, "--save_dir", "two")
    flags = seg if case.is_seg else ("-o", "epoch=1", "TrainReader.batch_size=1", "save_dir=two")
    command = ("-m", "paddle.distributed.launch", *processes, launcher, *case.command("train", *flags))
    done = python(*command, cwd=case.folder, OMP_NUM_THREADS="1")
    logs = [(case.folder / "log" / f"workerlog.{rank}").read_text() for rank in range(2)]
    assert done.returncode == 0, done.stderr[-2000:] + logs[0][-4000:] + logs[1][-4000:]
    assert "loss:" in logs[0]
    assert case.saved("two", "iter_2/model.pdparams" if case.is_seg else "model_final.pdparams").is_file()


DETECTION = [root for root in ROOTS if (root / "ppdet").is_dir()]


@pytest.mark.parametrize("root", DETECTION, ids=lambda root: root.name)
@pytest.mark.parametrize("name", tiny_det.OF_CHECKOUTS)
def test_shipped_configuration_takes_two_steps(tmp_path, name, root):
    tiny_det.write_data(tmp_path / "data")
    transformers = {
        "dino": {"DINOTransformer": {"num_queries": 50}},
        "rtdetr": {"RTDETRTransformer": {"num_queries": 50}},
    }
    config = tiny_det.write_shipped(tmp_path / "data", name, **transformers.get(name.partition("_")[0], {}))
    done = cyclemlp("det", root / "tools/train.py", "-c", config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    losses = [float(loss) for loss in re.findall(r" loss: (\S+)", done.stdout + done.stderr)]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


def _save_random(root: str, config: str, weights: str) -> None:
    import sys

    sys.path.insert(0, root)
    import paddle

    from cyclemlp_backbones.adapters.paddledet import register_paddledet
    from cyclemlp_backbones.adapters.paddledet.launch import read_config

    register_paddledet(repair=True)
    from ppdet.core.workspace import create

    paddle.save(create(read_config(config, []).architecture).state_dict(), weights)


@pytest.mark.parametrize("root", DETECTION, ids=lambda root: root.name)
@pytest.mark.parametrize("name", ["dino_cyclemlp_b1_4scale_1x_coco", "rtdetr_cyclemlp_b1_3x_coco"])
@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_transformers_are_exported_and_equal_to_dygraph(tmp_path, name, root, format):
    """`cyclemlp export` itself compares, at three sizes and two batches."""
    tiny_det.write_data(tmp_path / "data")
    transformer = {"dino": "DINOTransformer", "rtdetr": "RTDETRTransformer"}[name.partition("_")[0]]
    config = tiny_det.write_shipped(
        tmp_path / "data", name, CycleMLP={"arch": "b0", "pretrained": None}, **{transformer: {"num_queries": 50}}
    )
    weights, path = tmp_path / "model.pdparams", {"PYTHONPATH": f"{root}{os.pathsep}{REPOSITORY}"}
    script = f"from {__name__} import _save_random; _save_random({str(root)!r}, {str(config)!r}, {str(weights)!r})"
    done = python("-c", script, cwd=REPOSITORY, CYCLEMLP_TOOLKITS=os.environ["CYCLEMLP_TOOLKITS"], **path)
    assert done.returncode == 0, done.stderr[-6000:]
    flags = ("--task", "det", "--config", config, "--format", format)
    done = cyclemlp("export", weights, tmp_path / "out", *flags, cwd=tmp_path, **path)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "equal to the network in 6 runs" in done.stdout
    done = cyclemlp("predict", tmp_path / "out", tmp_path / "data" / "val", "--out", "found", cwd=tmp_path, **path)
    assert done.returncode == 0, done.stderr[-6000:]


# What these checkouts meet without a repair: the model, the step, and the error.
DEFECTS = {
    ("PaddleSeg-v2.9.1", "checkpoint_without_evaluation"): ("semantic_fpn", "train", "UnboundLocalError"),
    ("PaddleDetection-2.7.1", "static_batch_size"): ("mask_rcnn", "export", "'list' object has no attribute 'shape'"),
}


@pytest.mark.parametrize(("root", "repair"), [key for key in DEFECTS if key[0] in {root.name for root in ROOTS}])
def test_without_the_repair_the_step_meets_the_defect(tmp_path, root, repair):
    model, step, error = DEFECTS[root, repair]
    (path,) = (path for path in ROOTS if path.name == root)
    case = Case(path, model, tmp_path)
    case.write()
    switch = f"CYCLEMLP_PADDLE{'SEG' if case.is_seg else 'DET'}_REPAIRS_OFF"
    if step == "train":
        assert error in case.train(fails=True, **{switch: repair})
    else:
        case.train()
        assert error in case.export(fails=True, **{switch: repair})
