"""Registration in PaddleDetection, the backbone, its weights, and the optimizer's form."""

from __future__ import annotations

import importlib
import inspect
import sys
import types

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from cyclemlp_backbones import CheckpointError, CycleNet, build_backbone, build_classifier, load_weights
from tests.adapters.tiny_det import DETECTORS, cyclemlp, in_process, write_config, write_data

ADAPTER = "cyclemlp_backbones.adapters.paddledet"


def test_backbone_is_the_one_network_and_declares_what_it_returns():
    from cyclemlp_backbones.adapters.paddledet import CycleMLP

    network = CycleMLP(arch="b0", out_indices=[1, 3], frozen_stages=0)
    assert isinstance(network, CycleNet)
    assert list(network.state_dict()) == list(build_backbone("b0", out_indices=(1, 3)).state_dict())
    maps = network({"image": paddle.zeros([1, 3, 64, 96])})
    assert [(spec.channels, spec.stride) for spec in network.out_shape] == [(64, 8), (256, 32)]
    assert [list(x.shape) for x in maps] == [[1, 64, 8, 12], [1, 256, 2, 3]]
    assert network.patch_embed.proj.weight.stop_gradient
    assert CycleMLP("b0", in_channels=4)({"image": paddle.zeros([1, 4, 32, 32])})[0].shape == [1, 32, 8, 8]


def test_registration_is_idempotent_and_refuses_another_component_of_our_name():
    from ppdet.core import workspace

    from cyclemlp_backbones.adapters import paddledet

    paddledet.register_paddledet()
    ours = workspace.global_config.pop("CycleMLP")
    assert ours.pymodule is sys.modules[f"{ADAPTER}.register"]
    try:
        workspace.register(type("CycleMLP", (paddle.nn.Layer,), {"__module__": __name__}))
        with pytest.raises(ValueError, match=f"has a CycleMLP already, from {__name__}"):
            paddledet.register_paddledet()
    finally:
        workspace.global_config["CycleMLP"] = ours


def reloaded():
    """Whether PaddleDetection builds the class of before and after a reload, and repairs stay applied once."""
    from ppdet.core.workspace import create
    from ppdet.optimizer import optimizer

    from cyclemlp_backbones.adapters.paddledet import register, register_paddledet

    original = optimizer.build_adamwdl
    before = type(create("CycleMLP"))
    register_paddledet()
    assert optimizer.build_adamwdl is original
    register_paddledet(repair=True)
    repaired = optimizer.build_adamwdl
    importlib.reload(register)
    register.register_paddledet(repair=True)
    assert optimizer.build_adamwdl is repaired is not original
    return type(create("CycleMLP")) is register.CycleMLP is not before


@pytest.mark.slow
def test_importing_repairs_nothing_and_reloading_registers_what_was_loaded_anew():
    assert in_process(reloaded)


def numpy_2_gets_the_table_that_imgaug_reads():
    vars(np).pop("sctypes", None)
    from cyclemlp_backbones.adapters.paddledet import register

    assert register.np is np
    return all(getattr(np, f"{kind}32") in np.sctypes[kind] for kind in ("float", "int", "uint"))


@pytest.mark.slow
def test_numpy_2_gets_the_table_that_imgaug_reads():
    assert in_process(numpy_2_gets_the_table_that_imgaug_reads)


def test_every_parameter_is_documented():
    from cyclemlp_backbones.adapters.paddledet import CycleMLP

    described = {line.partition(":")[0].strip() for line in CycleMLP.__doc__.split("\n")}
    assert set(inspect.signature(CycleMLP).parameters) <= described


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ModuleNotFoundError("No module named 'ppdet'", name="ppdet"), r'pip install "cyclemlp-backbones\[det\]"'),
        (ModuleNotFoundError("No module named 'imgaug'", name="imgaug.augmentables"), "pip install imgaug"),
        (ImportError("numpy.core.multiarray failed to import"), r'multiarray failed.*pip install "numpy<2"'),
    ],
)
def test_unusable_paddledetection_is_an_import_error_with_the_remedy(monkeypatch, error, remedy):
    class Unusable(types.ModuleType):
        def __getattr__(self, name):
            raise error

    for name in [name for name in sys.modules if name.startswith(ADAPTER)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ppdet.core.workspace", Unusable("ppdet.core.workspace"))
    with pytest.raises(ImportError, match=remedy):
        importlib.import_module(ADAPTER)


def save_sources(folder):
    """The same b0 network in three files: a classifier's, a backbone's, and a detector's with all four maps."""
    classifier = build_classifier("b0", num_classes=7)
    paddle.save(classifier.state_dict(), str(folder / "classifier.pdparams"))
    pyramid = build_backbone("b0")
    load_weights(pyramid, folder / "classifier.pdparams")
    paddle.save(pyramid.state_dict(), str(folder / "backbone.pdparams"))
    detector = {f"backbone.{name}": value for name, value in pyramid.state_dict().items()}
    paddle.save({**detector, "neck.fpn.weight": paddle.zeros([1])}, str(folder / "detector.pdparams"))
    return classifier


def backbone_of(config, pretrained):
    from ppdet.core.workspace import create, load_config

    from cyclemlp_backbones.adapters.paddledet import register_paddledet

    register_paddledet(repair=True)

    settings = load_config(str(config))
    settings["CycleMLP"]["pretrained"] = str(pretrained)
    model = create(settings.architecture)
    return {name: value.numpy() for name, value in model.backbone.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_weights_of_a_classifier_backbone_or_detector_load_into_each_detector(tmp_path, detector):
    classifier = save_sources(tmp_path)
    config = write_config(tmp_path, detector)
    expected = {name: value.numpy() for name, value in classifier.state_dict().items() if name.split(".")[0] != "head"}
    expected.pop("norm.weight"), expected.pop("norm.bias")
    for source in ("classifier", "backbone", "detector"):
        loaded = in_process(backbone_of, config, tmp_path / f"{source}.pdparams")
        for name, value in expected.items():
            np.testing.assert_array_equal(loaded[name], value, err_msg=f"{source}: {name}")


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_weights_that_do_not_fit_are_an_error(tmp_path, detector):
    config = write_config(tmp_path, detector)
    paddle.save(build_backbone("b1").state_dict(), str(tmp_path / "other.pdparams"))
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight is \[64, 3, 7, 7\], needs \[32, 3, 7, 7\]"):
        in_process(backbone_of, config, tmp_path / "other.pdparams")
    # A pyramid without the norm of a map that the detector takes.
    paddle.save(build_backbone("b0", out_indices=(1, 2)).state_dict(), str(tmp_path / "fewer.pdparams"))
    with pytest.raises(CheckpointError, match=r"missing .*norm6\.weight"):
        in_process(backbone_of, config, tmp_path / "fewer.pdparams")
    with pytest.raises(FileNotFoundError, match=r"no weights file .*missing\.pdparams"):
        in_process(backbone_of, config, tmp_path / "missing.pdparams")


def test_a_stem_of_other_channels_is_adapted_and_the_layout_may_be_told(tmp_path):
    from cyclemlp_backbones.adapters.paddledet import CycleMLP

    source = {name: value.numpy() for name, value in build_backbone("b0").state_dict().items()}
    save_file(source, tmp_path / "b0.safetensors")
    with pytest.raises(CheckpointError, match="does not tell in which layout"):
        CycleMLP("b0", pretrained=tmp_path / "b0.safetensors")
    network = CycleMLP("b0", in_channels=4, pretrained=tmp_path / "b0.safetensors", layout="paddle")
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    stem = source.pop("patch_embed.proj.weight")
    np.testing.assert_allclose(state["patch_embed.proj.weight"], stem[:, [0, 1, 2, 0]] * 0.75, rtol=1e-6)
    for name, value in source.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def decayed(detector, folder):
    """Names whose values one step without any gradient changes, and those that it leaves, of a detector's optimizer."""
    from ppdet.core.workspace import create, load_config

    from cyclemlp_backbones.adapters.paddledet import register_paddledet

    register_paddledet(repair=True)

    settings = load_config(str(write_config(folder, detector)))
    model = create(settings.architecture)
    for parameter in model.parameters():
        parameter.set_value(paddle.ones_like(parameter))
    optimizer = create("OptimizerBuilder")(0.1, model)
    assert not any(isinstance(group, dict) for group in optimizer._param_groups)  # GradScaler takes tensors only
    for parameter in model.parameters():
        parameter.grad = paddle.zeros_like(parameter)
    optimizer.step()
    values = {name: float(parameter.max()) for name, parameter in model.named_parameters()}
    return [name for name, value in values.items() if value < 1], [name for name, value in values.items() if value == 1]


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_weight_decay_spares_norms_and_biases(tmp_path, detector):
    changed, left = in_process(decayed, detector, tmp_path)
    assert all(name.endswith((".weight", "_weight")) and "norm" not in name for name in changed)
    assert "backbone.network.0.0.attn.sfc_h.weight" in changed
    assert all(name.endswith("bias") or "norm" in name for name in left)
    assert {"backbone.network.0.0.norm1.weight", "backbone.patch_embed.proj.bias", "backbone.norm6.weight"} <= set(left)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("CycleMLP.arch=b9", "unknown CycleMLP variant 'b9'; choose from b0, b1"),
        ("CycleMLP.out_indices=[3, 1]", "out_indices is [3, 1]; it takes a non-empty, increasing subset"),
        ("CycleMLP.frozen_stages=5", "frozen_stages is 5"),
        (
            "CycleMLP.drop_pth_rate=0.1",
            "CycleMLP takes arch, drop_path_rate, frozen_stages, in_channels, layout, out_in",
        ),
    ],
)
def test_wrong_argument_is_named_with_what_is_allowed(tmp_path, option, message):
    write_data(tmp_path)
    status, output = cyclemlp("det", "train", "-c", write_config(tmp_path, "retinanet"), "-o", option, cwd=tmp_path)
    assert status == 1
    assert message in output
    assert "Traceback" not in output
