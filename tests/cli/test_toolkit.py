import paddle
import pytest

from cyclemlp_backbones.adapters.paddleseg import launch as paddleseg_tools
from cyclemlp_backbones.cli import main


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
