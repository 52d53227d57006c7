import sys

import pytest

from cyclemlp_backbones.adapters.launch import importing


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        ((3, 11, 7), r'PaddleSeg is not installed; `pip install "cyclemlp-backbones\[seg\]"`'),
        ((3, 12, 0), r"its wheel needs Python 3\.10 or 3\.11; a checkout runs: `cyclemlp seg PATH/tools/train\.py"),
    ],
)
def test_the_remedy_is_one_that_this_python_takes(monkeypatch, version, remedy):
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(ImportError, match=remedy), importing("PaddleSeg", "paddleseg", "seg"):
        raise ModuleNotFoundError("No module named 'paddleseg'", name="paddleseg")
