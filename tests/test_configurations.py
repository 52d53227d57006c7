"""Configurations without their toolkits: merged as these merge them, and nothing run."""

import pytest
from paddleseg.cvlibs.config import parse_from_yaml
from ppdet.core import workspace

from cyclemlp_backbones.configurations import parse_options, read_configuration
from tests.adapters.tiny_seg import REPOSITORY

SEG = sorted((REPOSITORY / "seg_configs").glob("[!_]*/*.yml"))
DET = sorted((REPOSITORY / "det_configs").glob("[!_]*.yml")) + sorted(
    (REPOSITORY / "det_configs" / "demo").glob("*.yml")
)


@pytest.fixture
def detections(monkeypatch):
    """PaddleDetection's reading of a file, which it merges into a configuration global to the process: a new one."""

    def read(path):
        monkeypatch.setattr(workspace, "global_config", workspace.AttrDict())
        return workspace._load_config_with_base(path)

    return read


def test_shipped_configurations_are_read_as_their_toolkits_read_them(detections):
    assert len(SEG) > 10
    assert len(DET) > 20
    for path in SEG:
        assert read_configuration(path) == parse_from_yaml(str(path)), path
    for path in DET:
        assert read_configuration(path) == detections(str(path)), path


@pytest.mark.parametrize(("key", "winner"), [("_base_", "a"), ("_BASE_", "b")])
def test_of_two_bases_the_toolkits_prefer_different_ones(tmp_path, detections, key, winner):
    (tmp_path / "a.yml").write_text("part: {x: a, y: 1, lists: [1, 2]}\nonly: {z: 1}\n")
    (tmp_path / "b.yml").write_text("part: {x: b, lists: [3]}\nother: 2\n")
    path = tmp_path / "c.yml"
    path.write_text(f"{key}: [a.yml, b.yml]\npart: {{w: 0}}\n")
    merged = read_configuration(path)
    assert merged == (parse_from_yaml if key == "_base_" else detections)(str(path))
    assert merged["part"]["x"] == winner


def test_a_section_that_inherits_nothing_replaces_its_bases(tmp_path):
    (tmp_path / "a.yml").write_text("part: {x: a, y: 1}\n")
    path = tmp_path / "c.yml"
    path.write_text("_base_: a.yml\npart: {_inherited_: false, x: 3}\n")
    assert read_configuration(path) == parse_from_yaml(str(path)) == {"part": {"x": 3}}


def test_local_tags_are_names_and_python_tags_are_refused(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text("TrainDataset:\n  !COCODataSet\n    image_dir: images\n    data_fields: ['image']\nx: !Empty\n")
    whole = {"name": "COCODataSet", "image_dir": "images", "data_fields": ["image"]}
    assert read_configuration(path) == {"TrainDataset": whole, "x": {"name": "Empty"}}
    for text, message in (
        ("x: !!python/object/apply:os.getcwd []\n", "c.yml is no valid YAML: could not determine a constructor"),
        ("x: [\n", "c.yml is no valid YAML"),
        ("- 1\n", "c.yml holds a list; a configuration is a mapping"),
        ("_BASE_: [c.yml]\n", "c.yml: its _base_ leads back to itself"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_configuration(path)


def test_options_are_yaml_with_nested_keys():
    options = ["a.b=1", "a.c=[x, 2]", "d=1e-4", "e=null", "f=text"]
    assert parse_options(options) == {"a": {"b": 1, "c": ["x", 2]}, "d": 1e-4, "e": None, "f": "text"}
    with pytest.raises(ValueError, match=r"-o takes KEY=VALUE.*given 'use_gpu'"):
        parse_options(["use_gpu"])
    with pytest.raises(ValueError, match=r"--opts a=\["):
        parse_options(["a=["], "--opts")
    with pytest.raises(ValueError, match="another option gives a a value"):
        parse_options(["a=1", "a.b=2"])
    with pytest.raises(ValueError, match="-o a"):
        parse_options(["a=!!python/object/apply:os.getcwd []"])
