"""Nothing in a configuration or a checkpoint is run, by a toolkit's wheel or a checkout's script."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import paddle
import pytest
import yaml

from cyclemlp_backbones.adapters import guards
from cyclemlp_backbones.adapters.guards import SampleError
from cyclemlp_backbones.weights.pickles import CheckpointError
from tests.adapters import tiny_det, tiny_seg
from tests.classification.test_reliability import left_behind

SCRIPT = {
    "det": "import sys\nfrom ppdet.core.workspace import load_config\nload_config(sys.argv[2])\n",
    "seg": "import sys, paddle\npaddle.load(sys.argv[2])\n",
}


class Hostile:
    def __reduce__(self):
        return exec, ("open('ran', 'w')",)


def script(folder, command):
    """A checkout's tools/train.py."""
    path = folder / "tools" / "train.py"
    path.parent.mkdir()
    path.write_text(SCRIPT[command])
    return path


def hostile_config(folder):
    """A configuration that is based on one that runs a command."""
    code = "!!python/object/apply:os.system ['touch ran']"
    (folder / "base.yml").write_text(f"epoch: {code}\n")
    config = folder / "config.yml"
    config.write_text("_BASE_: ['base.yml']\narchitecture: RetinaNet\n")
    return config


@pytest.mark.slow
@pytest.mark.parametrize("how", ["action", "export", "slim", "script"])
def test_no_configuration_of_a_detector_runs_code(tmp_path, how):
    config = hostile_config(tmp_path)
    good = tiny_det.write_config(tmp_path, "retinanet") if how == "slim" else None
    arguments = {
        "action": ["det", "train", "-c", config],
        "export": ["export", "--task", "det", "--config", config, "w.pdparams", tmp_path / "out"],
        "slim": ["det", "train", "-c", good, "--slim_config", tmp_path / "base.yml"],
        "script": ["det", script(tmp_path, "det"), "-c", config],
    }
    (tmp_path / "w.pdparams").touch()
    status, output = tiny_det.cyclemlp(*arguments[how], cwd=tmp_path)
    assert status == 1, output
    assert "refused: !!python/object/apply:os.system runs code, which no configuration needs; nothing was run" in output
    assert "base.yml" in output
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_without_the_repairs_a_configuration_and_a_checkpoint_run_code(tmp_path):
    off = {"CYCLEMLP_PADDLEDET_REPAIRS_OFF": "yaml_code", "CYCLEMLP_PADDLESEG_REPAIRS_OFF": "pickle_code"}
    tiny_det.cyclemlp("det", "train", "-c", hostile_config(tmp_path), cwd=tmp_path, environment=off)
    (tmp_path / "ran").unlink()
    (tmp_path / "x.pdopt").write_bytes(pickle.dumps(Hostile()))
    tiny_seg.cyclemlp("seg", script(tmp_path, "seg"), "x", "x.pdopt", cwd=tmp_path, **off)
    (tmp_path / "ran").unlink()


def test_loaders_of_yaml_keep_data_and_local_tags_and_refuse_code():
    guards.refuse_yaml_code()
    assert not guards.yaml_runs_code()
    yaml.add_constructor("!Local", lambda loader, node: "local")
    for loader in (yaml.Loader, yaml.FullLoader, yaml.UnsafeLoader):
        assert yaml.load("[!!python/tuple [1, 2], !Local {}]", Loader=loader) == [(1, 2), "local"]
        for tag in ("name:os.system", "module:os", "object:os.system", "object/new:os.system"):
            with pytest.raises(yaml.YAMLError):
                yaml.load(f"!!python/{tag} ['true']", Loader=loader)


@pytest.mark.slow
@pytest.mark.parametrize("hostile", ["pdparams", "pdopt"])
def test_resuming_a_segmentation_runs_no_code(tmp_path, hostile):
    tiny_seg.write_data(tmp_path)
    config = tiny_seg.write_config(tmp_path, tiny_seg.SEMANTIC_FPN)
    folder = tmp_path / "iter_2"
    folder.mkdir()
    for name in ("pdparams", "pdopt"):
        (folder / f"model.{name}").write_bytes(pickle.dumps({"x": Hostile()} if name == hostile else {}))
    run = tiny_seg.cyclemlp("seg", "train", "--config", config, "--resume_model", folder, cwd=tmp_path)
    assert run.returncode == 1
    assert f"model.{hostile}: refused: its pickle names builtins.exec" in run.stderr
    run = tiny_seg.cyclemlp("seg", script(tmp_path, "seg"), "x", folder / f"model.{hostile}", cwd=tmp_path)
    assert run.returncode == 1
    assert "refused: its pickle names builtins.exec" in run.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("hostile", ["pdparams", "pdopt", "pdema"])
def test_resuming_a_detection_runs_no_code(tmp_path, hostile):
    tiny_det.write_data(tmp_path)
    config = tiny_det.write_config(tmp_path, "retinanet", epoch=1, use_ema=True)
    status, output = tiny_det.cyclemlp("det", "train", "-c", config, cwd=tmp_path)
    assert status == 0, output
    checkpoint = tmp_path / "out" / "retinanet" / f"model_final.{hostile}"
    assert checkpoint.is_file()
    checkpoint.write_bytes(pickle.dumps({"x": Hostile()}))
    resume = ["-r", checkpoint.with_suffix(".pdparams")]
    status, output = tiny_det.cyclemlp("det", "train", "-c", config, *resume, cwd=tmp_path)
    assert status == 1
    assert f"model_final.{hostile}: refused: its pickle names builtins.exec" in output
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", pickle.dumps({"a": 1})[:-1], b"cos\nsystem\n(S'touch ran'\ntR.", b"text"])
def test_what_is_no_whole_pickle_is_refused(tmp_path, content):
    path = tmp_path / "model.pdopt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pdopt: "):
        guards.check_pickle(path)


def test_states_of_optimizers_are_whole(tmp_path):
    layer = paddle.nn.Linear(2, 2)
    rate = paddle.optimizer.lr.LinearWarmup(paddle.optimizer.lr.PiecewiseDecay([3], [0.1, 0.01]), 2, 0.0, 0.1)
    optimizer = paddle.optimizer.AdamW(rate, parameters=layer.parameters(), multi_precision=True)
    layer(paddle.ones([1, 2])).sum().backward()
    optimizer.step()
    state = {**optimizer.state_dict(), "master_weights": {"w": paddle.ones([2])}, "last_epoch": np.float64(3)}
    paddle.save(state, str(tmp_path / "model.pdopt"))
    guards.check_pickle(tmp_path / "model.pdopt")


def test_a_folder_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    guards.check_save_dir(tmp_path / "new" / "deeper")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(guards.os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(OSError, match=r"new.deeper takes no checkpoints: .* is not writable; give a folder"):
        guards.check_save_dir(tmp_path / "new" / "deeper")


class Records:
    """A data set of PaddleSeg, as far as its samples go."""

    num_classes, ignore_index = 300, 255

    def __init__(self, *files):
        self.file_list = [list(map(str, files))]

    def __getitem__(self, index):
        from PIL import Image

        return {"label": np.asarray(Image.open(self.file_list[index][1]))}


def test_masks_of_16_bits_keep_their_labels(tmp_path):
    from PIL import Image

    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    Image.new("RGB", (2, 1)).save(image)
    for labels, problem in (([3, 299], None), ([3, 300], "label 300"), ([255, 65535], "label 65535")):
        Image.fromarray(np.array([labels], np.uint16)).save(mask)
        samples = guards._Samples(Records(image, mask))
        if problem:
            with pytest.raises(SampleError, match=problem):
                samples[0]
        else:
            label = paddle.to_tensor(samples[0]["label"])
            assert label.astype("int64").tolist() == [labels]


READ = """
import sys, time
import numpy as np, paddle
from cyclemlp_backbones.adapters import guards

class Ones(paddle.io.Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return np.ones(1000, "float32")

if sys.argv[1] == "repaired":
    assert guards.workers_stay()
    guards.end_workers()
    assert not guards.workers_stay()
batches = iter(paddle.io.DataLoader(Ones(), batch_size=2, num_workers=2))
next(batches)
print(*(worker.pid for worker in batches._workers), flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_workers_end_when_their_trainer_is_killed(tmp_path):
    """Without the repair they, and their shared memory, stay for ever."""
    script = tmp_path / "read.py"
    script.write_text(READ)
    for repaired in (True, False):
        command = [sys.executable, script, "repaired" if repaired else "not"]
        environment = {**os.environ, "PYTHONPATH": str(tiny_seg.REPOSITORY)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as trainer:
            workers = [int(pid) for pid in trainer.stdout.readline().split()]
            trainer.kill()
        assert len(workers) == 2
        running, files = left_behind(workers, limit=10 if repaired else 2)
        for pid in running:
            os.kill(pid, signal.SIGKILL)
        for file in files:
            file.unlink()
        assert (running, files) == ([], []) if repaired else running == workers
