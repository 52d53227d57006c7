"""`cyclemlp weights`: lists, fetches and checks files."""

import json

import numpy as np
import pytest

from cyclemlp_backbones import CycleNet, build_backbone, build_classifier, write_checkpoint
from cyclemlp_backbones.cli import main
from cyclemlp_backbones.files import sha256
from cyclemlp_backbones.weights import loading
from tests.reference import fill_parameters


def save(model, path):
    fill_parameters(model)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write_checkpoint(path, arrays, layout="paddle")
    return arrays


def test_list_names_every_published_file_and_those_that_are_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CYCLEMLP_HOME", str(tmp_path))
    from cyclemlp_backbones.weights.download import cached_path

    here = cached_path(loading.PUBLISHED["b2"])
    here.parent.mkdir(parents=True, exist_ok=True)
    here.write_bytes(b"x")
    assert main(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[name, url] for name, url in loading.PUBLISHED.items()]
    assert [str(here) in line for line in lines] == [False, True, False, False, False]
    assert main(["weights", "list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: row["url"] for name, row in told.items()} == loading.PUBLISHED
    assert [row["path"] for row in told.values()] == [None, str(here), None, None, None]


def test_check_tells_size_hash_and_what_the_network_says(capsys, tmp_path):
    model = build_classifier("b0", num_classes=7)
    save(model, tmp_path / "w.pdparams")
    assert main(["weights", "check", str(tmp_path / "w.pdparams")]) == 0
    out = capsys.readouterr().out
    assert f"sha256 {sha256(tmp_path / 'w.pdparams')}" in out
    assert "CycleMLP b0, blocks [2, 2, 2, 2]" in out
    model.eval()
    import paddle

    image = np.sin(np.arange(3 * 224 * 224) / 997).astype("float32").reshape([1, 3, 224, 224])
    best = model(paddle.to_tensor(image)).numpy()[0].argsort()[::-1][:5]
    assert [int(word.split()[0]) for word in out.split("five best: ")[1].split(", ")] == best.tolist()
    save(build_backbone("b0", out_indices=(1, 3)), tmp_path / "p.pdparams")
    assert main(["weights", "check", str(tmp_path / "p.pdparams")]) == 0
    assert "stride 32: mean" in capsys.readouterr().out


def test_a_file_of_another_network_is_reported_with_its_names(capsys, tmp_path):
    write_checkpoint(tmp_path / "w.pdparams", {"layers.0.fc.weight": np.zeros((3, 4), "float32")}, layout="paddle")
    for more in ([], ["--names"]):
        assert main(["weights", "check", str(tmp_path / "w.pdparams"), *more]) == 1
        said = capsys.readouterr()
        assert said.out.count("  layers.0.fc.weight [3, 4] float32\n1 arrays of 12 numbers\n") == 1
        assert "not the weights of a CycleMLP" in said.err


def test_a_reconstruction_is_told_by_its_file_and_the_names_of_another_are_printed(capsys, tmp_path):
    sizes = {"depths": (2, 2, 6, 2), "embed_dims": (96, 192, 384, 768), "mlp_ratios": (4, 4, 4, 4)}
    arrays = save(CycleNet(**sizes, swin_like=True, num_classes=2), tmp_path / "t.pdparams")
    assert main(["weights", "check", str(tmp_path / "t.pdparams")]) == 0
    assert "CycleMLP t, blocks [2, 2, 6, 2]" in capsys.readouterr().out
    merging = {name.replace("network.1.proj", "layers.0.downsample.reduction"): array for name, array in arrays.items()}
    write_checkpoint(tmp_path / "other.pdparams", merging, layout="paddle")
    assert main(["weights", "check", str(tmp_path / "other.pdparams")]) == 1
    assert "layers.0.downsample.reduction.weight [192, 96, 2, 2] float32" in capsys.readouterr().out


def test_a_variant_without_published_weights_is_an_error_that_names_the_others(capsys):
    assert main(["weights", "get", "b0"]) == 1
    assert "no weights are published for CycleMLP b0, only for b1, b2, b3, b4, b5" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["get", "check"])
def test_a_missing_file_is_named(action, capsys, tmp_path):
    assert main(["weights", action, str(tmp_path / "none.pth")]) == 1
    assert "none.pth" in capsys.readouterr().err
