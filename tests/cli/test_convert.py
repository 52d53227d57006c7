"""`cyclemlp convert`: what it writes, and what it refuses."""

import numpy as np
import paddle
from safetensors.numpy import save_file

from cyclemlp_backbones import (
    CycleNet,
    read_checkpoint,
)
from cyclemlp_backbones.cli import main
from cyclemlp_backbones.weights.formats import write_checkpoint
from tests.reference import GOLDEN
from tests.weights.test_loading import SIZE, TINY, equal, reference_state, state, torch_arrays


def test_half_precision_survives_convert(tmp_path):
    source = GOLDEN / "tiny_ddp_fp16.pth"
    assert main(["convert", str(source), str(tmp_path / "x.safetensors"), "--dtype", "float16"]) == 0
    arrays = read_checkpoint(tmp_path / "x.safetensors")
    original = read_checkpoint(source)["head.weight"]
    assert arrays["head.weight"].dtype == np.float16
    np.testing.assert_array_equal(arrays["head.weight"], original.T)


def test_convert_takes_the_backbone_of_a_toolkits_checkpoint(tmp_path, capsys):
    pyramid = CycleNet(*SIZE[:2], [4, 4, 2.5, 1], out_indices=(1, 2), in_channels=5)
    whole = {f"backbone.{name}": value for name, value in pyramid.state_dict().items()}
    paddle.save(whole | {"fpn.weight": paddle.ones([1])}, str(tmp_path / "model.pdparams"))
    assert main(["convert", str(tmp_path / "model.pdparams"), str(tmp_path / "x.safetensors")]) == 0
    assert equal(read_checkpoint(tmp_path / "x.safetensors"), state(pyramid))
    assert "not for this network: fpn.weight" in capsys.readouterr().out


def test_convert_refuses_what_is_incomplete_and_leaves_files_alone(tmp_path, capsys):
    target = tmp_path / "x.pdparams"
    arrays = torch_arrays()
    del arrays["network.4.1.mlp.fc2.weight"]
    write_checkpoint(tmp_path / "gap.safetensors", arrays, layout="torch")
    write_checkpoint(tmp_path / "other.pdparams", {"conv.weight": np.zeros(1, np.float32)})
    arrays = reference_state()
    arrays["head.weight"][0, 0] = 1e6
    write_checkpoint(tmp_path / "large.pdparams", arrays)
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    target.write_bytes(b"mine")
    for arguments, message in (
        (["gap.safetensors", "y.pdparams"], "missing (1): network.4.1.mlp.fc2.weight"),
        (["other.pdparams", "y.pdparams"], "not the weights of a CycleMLP"),
        (["large.pdparams", "y.pdparams", "--dtype", "float16"], "too large for float16: head.weight"),
        (["gap.safetensors", "y.pth"], "has to end in .pdparams or .safetensors"),
        (["gap.safetensors", "none/y.pdparams"], "no folder"),
        (["gap.safetensors", "x.pdparams"], "exists already"),
        (["none.pth", "y.pdparams"], "no weights file"),
    ):
        paths = [str(tmp_path / argument) if "." in argument else argument for argument in arguments]
        assert main(["convert", *paths]) == 1
        assert message in capsys.readouterr().err
    assert target.read_bytes() == b"mine"
    assert not (tmp_path / "y.pdparams").exists()
    assert main(["convert", str(TINY), str(target), "--force"]) == 0
    assert equal(read_checkpoint(target), reference_state())


def test_convert_asks_for_the_layout_where_the_file_is_silent(tmp_path, capsys):
    save_file(
        {name: np.asarray(array, order="C") for name, array in torch_arrays().items()}, tmp_path / "x.safetensors"
    )
    arguments = ["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "x.pdparams")]
    assert main(arguments) == 1
    assert "layout='torch'" in capsys.readouterr().err
    assert main([*arguments, "--layout", "torch"]) == 0
    assert equal(read_checkpoint(tmp_path / "x.pdparams"), reference_state())
