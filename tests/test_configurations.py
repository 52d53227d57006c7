"""Configurations without their toolkits: merged as these merge them, and nothing run."""

import pytest

from cyclemlp_backbones.configurations import parse_options


def test_options_are_yaml_with_nested_keys():
    options = ["a.b=1", "a.c=[x, 2]", "d=1e-4", "e=null", "f=text"]
    assert parse_options(options) == {"a": {"b": 1, "c": ["x", 2]}, "d": 1e-4, "e": None, "f": "text"}
    with pytest.raises(ValueError, match=r"-o takes KEY=VALUE.*given 'use_gpu'"):
        parse_options(["use_gpu"])
    with pytest.raises(ValueError, match=r"-o a=\["):
        parse_options(["a=["])
    with pytest.raises(ValueError, match="another option gives a a value"):
        parse_options(["a=1", "a.b=2"])
    with pytest.raises(ValueError, match="-o a"):
        parse_options(["a=!!python/object/apply:os.getcwd []"])
