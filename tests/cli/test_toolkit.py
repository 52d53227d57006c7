"""Interrupts, of a command of ours and of a checkout's script."""

import re
import shutil

import paddle
import pytest

from cyclemlp_backbones.adapters.paddleseg import launch as paddleseg_tools
from cyclemlp_backbones.cli import main
from tests.adapters.tiny_det import cyclemlp


class Interrupted(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        raise KeyboardInterrupt


def within_backward(args):
    x = paddle.ones([1])
    x.stop_gradient = False
    Interrupted.apply(x).backward()


def between_operations(args):
    raise KeyboardInterrupt


@pytest.mark.parametrize("interrupted", [within_backward, between_operations])
def test_an_interrupt_is_one_wherever_it_arrives(interrupted, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(paddleseg_tools, "run_train", interrupted)
    assert main(["seg", "train", "--config", "any.yml", "--save_dir", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_another_error_is_not_taken_for_an_interrupt(monkeypatch, tmp_path, capsys):
    def fail(args):
        raise ValueError("no such class")

    monkeypatch.setattr(paddleseg_tools, "run_train", fail)
    assert main(["seg", "train", "--config", "any.yml", "--save_dir", str(tmp_path)]) == 1
    assert "no such class" in capsys.readouterr().err


SEG_SCRIPT = """
import pathlib, pickle
folder = pathlib.Path("mine", "iter_7")
folder.mkdir(parents=True)
(folder / "model.pdparams").write_bytes(pickle.dumps({}))
(folder / "model.pdopt").write_bytes(pickle.dumps({})[: None if WHOLE else -1])
raise KeyboardInterrupt
"""
DET_SCRIPT = """
import pathlib, pickle
from ppdet.core.workspace import global_config
global_config.update(save_dir="mine", filename="retinanet")
folder = pathlib.Path("mine", "retinanet")
folder.mkdir(parents=True)
(folder / "7.pdparams").write_bytes(pickle.dumps({}))
(folder / "7.pdopt").write_bytes(pickle.dumps({})[: None if WHOLE else -1])
raise KeyboardInterrupt
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "source", "last"),
    [
        ("seg", SEG_SCRIPT, "--resume_model mine/iter_7"),
        ("det", DET_SCRIPT, "-r mine/retinanet/7.pdparams"),
        ("det", DET_SCRIPT.replace('Path("mine", "retinanet")', 'Path("mine")'), "-r mine/7.pdparams"),  # 2.7 and later
    ],
)
def test_an_interrupt_of_a_checkouts_script_says_how_to_go_on(tmp_path, command, source, last):
    script = tmp_path / "tools" / "train.py"
    script.parent.mkdir()
    told = last.split()[1].removesuffix(".pdparams")
    torn = rf"left out: {told}[a-z/]*\.pdopt: .*such files\ninterrupted; mine.* has no whole checkpoint"
    for whole, message in ((True, f"^interrupted; go on with {last}\n$"), (False, torn)):
        script.write_text(source.replace("mkdir(parents=True)", f"mkdir(parents=True); WHOLE = {whole}"))
        status, output = cyclemlp(command, script, "--config", "x.yml", "--save_dir", "mine", cwd=tmp_path)
        assert status == 130, output
        assert re.search(message, output), output
        shutil.rmtree(tmp_path / "mine")
