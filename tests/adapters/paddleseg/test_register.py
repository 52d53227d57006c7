"""Registration in PaddleSeg."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import warnings

import numpy as np
import paddle
import pytest
from paddle import nn
from paddleseg.cvlibs import manager

from cyclemlp_backbones import VARIANTS, CycleNet, build_backbone
from cyclemlp_backbones.adapters.paddleseg import CycleMLP_B0, SemanticFPN, register_paddleseg
from tests.adapters.tiny_seg import python

ADAPTER = "cyclemlp_backbones.adapters.paddleseg"


def backbone(**arguments):
    return manager.BACKBONES["CycleMLP_B0"](**arguments)


def test_registration_is_idempotent_and_covers_every_variant():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_paddleseg()
    assert {f"CycleMLP_{name.upper()}" for name in VARIANTS} <= set(manager.BACKBONES.components_dict)
    assert manager.BACKBONES["CycleMLP_B0"] is CycleMLP_B0
    assert manager.MODELS["SemanticFPN"] is SemanticFPN


def test_what_the_registry_calls_documents_every_parameter():
    for component in (CycleMLP_B0, SemanticFPN, manager.OPTIMIZERS["AdamWLayerDecay"]):
        arguments = component.__doc__.partition("Args:")[2].split("\n")
        described = {name.strip() for line in arguments for name in line.partition(":")[0].split(",")}
        assert set(inspect.signature(component).parameters) <= described


def test_reloading_registers_what_was_loaded_anew():
    import cyclemlp_backbones.adapters.paddleseg.register as module

    before = manager.BACKBONES["CycleMLP_B1"]
    importlib.reload(module)
    package = importlib.reload(sys.modules[ADAPTER])
    assert manager.BACKBONES["CycleMLP_B1"] is package.CycleMLP_B1 is not before


@pytest.mark.slow
def test_importing_registers_and_repairs_nothing(tmp_path):
    code = (
        "import sys; from paddleseg.utils import metrics; area = metrics.calculate_area; "
        f"import {ADAPTER} as adapter; assert metrics.calculate_area is area; "
        "adapter.register_paddleseg(); assert metrics.calculate_area is area; "
        "adapter.register_paddleseg(repair=True); assert metrics.calculate_area is not area"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_another_component_of_our_name_is_refused():
    ours = manager.MODELS.components_dict.pop("SemanticFPN")
    try:
        manager.MODELS.add_component(type("SemanticFPN", (nn.Layer,), {}))
        with pytest.raises(ValueError, match="has a SemanticFPN already"):
            register_paddleseg()
    finally:
        manager.MODELS.components_dict["SemanticFPN"] = ours


def test_backbone_is_the_one_network_with_what_paddleseg_reads():
    network = backbone(in_channels=4, out_indices=[1, 3], frozen_stages=0)
    assert isinstance(network, CycleNet)
    assert list(network.state_dict()) == list(build_backbone("b0", out_indices=(1, 3)).state_dict())
    maps = network(paddle.zeros([1, 4, 64, 96]))
    assert network.feat_channels == [x.shape[1] for x in maps] == [64, 256]
    assert network.patch_embed.proj.weight.stop_gradient


def test_maskformer_reads_maps_by_the_names_of_their_shapes():
    network = backbone(out_indices=[1, 2, 3])
    assert network.output_shape() == {
        "res3": {"channels": 64, "stride": 8},
        "res4": {"channels": 160, "stride": 16},
        "res5": {"channels": 256, "stride": 32},
    }
    maps = network(paddle.zeros([1, 3, 64, 96]))
    assert [maps[name].shape[1] for name in network.output_shape()] == [x.shape[1] for x in maps] == [64, 160, 256]
    assert maps["res5"] is maps[2]


def test_backbone_takes_pretrained_weights(tmp_path):
    source = build_backbone("b0")
    paddle.save(source.state_dict(), str(tmp_path / "b0.pdparams"))
    loaded = backbone(pretrained=str(tmp_path / "b0.pdparams"))
    for name, value in source.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name].numpy(), value.numpy())


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            ModuleNotFoundError("No module named 'paddleseg'", name="paddleseg"),
            r'pip install "cyclemlp-backbones\[seg\]"',
        ),
        (ModuleNotFoundError("No module named 'skimage'", name="skimage.measure"), "pip install scikit-image"),
        (ImportError("numpy.core.multiarray failed to import"), r'multiarray failed.*pip install "numpy<2"'),
    ],
)
def test_unusable_paddleseg_is_an_import_error_with_the_remedy(monkeypatch, error, remedy):
    class Unusable(types.ModuleType):
        def __getattr__(self, name):
            raise error

    for name in [name for name in sys.modules if name.startswith(ADAPTER)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "paddleseg.cvlibs", Unusable("paddleseg.cvlibs"))
    with pytest.raises(ImportError, match=remedy):
        importlib.import_module(ADAPTER)
