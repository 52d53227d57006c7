"""What can be said of PaddleX without it; tests/paddlex has its wheel."""

import sys

import pytest
import yaml

from cyclemlp_backbones.adapters import paddlex
from cyclemlp_backbones.cli import main
from cyclemlp_backbones.deploy.manifest import Preprocessing

BASE = """
class BaseRunner:
    def run_cmd(self, command, env=None):
        return command
"""
RUNNER = """
from paddlex.repo_apis.base import BaseRunner
class Runner(BaseRunner):
    pass
"""


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package of PaddleX's name with the class that starts scripts, and toolkits whose runners are its children."""
    apis = tmp_path / "paddlex" / "repo_apis"
    for name in ("base", "PaddleSeg_api", "PaddleDetection_api", "PaddleClas_api"):
        (apis / name).mkdir(parents=True)
        (apis / name / "__init__.py").write_text("")
        (apis / name / "runner.py").write_text(RUNNER)
    (apis / "base" / "__init__.py").write_text(BASE)
    for toolkit in ("PaddleSeg", "PaddleDetection"):
        (tmp_path / toolkit / "tools").mkdir(parents=True)
        (tmp_path / toolkit / "tools" / "train.py").touch()
        monkeypatch.setenv(f"PADDLE_PDX_{toolkit.upper()}_PATH", str(tmp_path / toolkit))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "paddlex"]:
        del sys.modules[name]


def runner(toolkit):
    __import__(f"paddlex.repo_apis.{toolkit}_api.runner")
    return sys.modules[f"paddlex.repo_apis.{toolkit}_api.runner"].Runner()


def test_scripts_are_started_by_our_command_once_and_by_paddles_launcher_too(wheel):
    paddlex.register_paddlex()
    paddlex.register_paddlex()
    script = ["tools/train.py", "--config", "a.yml"]
    ours = [str(paddlex.LAUNCHER), "seg", *script]
    assert runner("PaddleSeg").run_cmd(["python", *script], env={}) == ["python", *ours]
    several = ["python", "-m", "paddle.distributed.launch", "--devices", "0,1"]
    assert runner("PaddleSeg").run_cmd([*several, *script]) == [*several, *ours]
    assert runner("PaddleDetection").run_cmd(["python", *script])[2] == "det"
    assert runner("PaddleClas").run_cmd(["python", *script]) == ["python", *script]
    assert sys.path[-2:] == [str(wheel / "PaddleSeg"), str(wheel / "PaddleDetection")]


def test_a_folder_that_is_no_checkout_and_none_at_all_are_told(wheel, monkeypatch, caplog):
    monkeypatch.setenv("PADDLE_PDX_PADDLESEG_PATH", str(wheel / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"PADDLE_PDX_PADDLESEG_PATH is .*nowhere, no checkout of PaddleSeg"):
        paddlex.register_paddlex()
    for toolkit in ("PADDLESEG", "PADDLEDETECTION"):
        monkeypatch.delenv(f"PADDLE_PDX_{toolkit}_PATH")
    paddlex.register_paddlex()
    assert "PaddleX has no checkout and trains nothing; PADDLE_PDX_PADDLESEG_PATH and" in caplog.text


def test_without_paddlex_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "paddlex", None)
    assert main(["paddlex", "-c", "any.yaml"]) == 1
    assert 'pip install "paddlex[cv]==3.7.2"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("resize", "size", "seg", "det"),
    [
        ("none", (), None, None),
        ("exact", (96, 160), [[160, 96], False], [[96, 160], False]),
        ("within", (96, 160), [[160, 96], True], [[96, 160], True]),
    ],
)
def test_sizes_are_in_paddlexs_order(resize, size, seg, det):
    preprocessing = Preprocessing(resize=resize, size=size, interpolation="bicubic")
    for normalize, expected in (("Normalize", seg), ("NormalizeImage", det)):
        steps = yaml.safe_load(yaml.safe_dump(paddlex._transforms(preprocessing, normalize)))
        assert steps.pop() == {"type": normalize, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        assert [[step["target_size"], step["keep_ratio"]] for step in steps] == ([expected] if expected else [])
        assert all(step["interp"] == "BICUBIC" for step in steps)


def test_what_paddlex_cannot_take_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="ResizeByShort without max_size"):
        paddlex._transforms(Preprocessing(resize="short", size=(96,)), "Normalize")
    with pytest.raises(ValueError, match="takes a new folder"):
        paddlex.export_paddlex(None, tmp_path, "cpu")
    for flags in (["--task", "cls"], ["--task", "seg", "--config", "a.yml", "--force"]):
        assert main(["export", "a.pdparams", str(tmp_path / "new"), "--format", "paddlex", *flags]) == 1
        assert "--format paddlex takes the tasks seg and det, a new folder, and no --force" in capsys.readouterr().err
