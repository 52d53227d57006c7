"""The forms that graphs for a CPU are exported in, against the network."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from cyclemlp_backbones import CycleNet
from cyclemlp_backbones.deploy import graph_forms
from cyclemlp_backbones.deploy.export import IMAGE, Exportable, export
from cyclemlp_backbones.deploy.manifest import Preprocessing
from cyclemlp_backbones.deploy.runtime import DeployedModel
from tests.test_cyclenet import TINY


def exportable(model):
    task, classes = ("cls", tuple(map(str, range(model.num_classes)))) if model.num_classes else ("features", ())
    outputs = ("logits",) if model.num_classes else tuple(f"stride{spec.stride}" for spec in model.stage_specs)
    return Exportable(model, task, "CycleNet", None, ("image",), outputs, [IMAGE], Preprocessing(), classes)


def program(folder):
    return next(path for path in (folder / "model.json", folder / "model.pdmodel") if path.exists()).read_bytes()


@pytest.mark.parametrize(("num_classes", "swin_like"), [(None, False), (6, False), (None, True)])
def test_both_forms_compute_what_the_network_does_and_leave_it_as_it_was(tmp_path, num_classes, swin_like):
    paddle.seed(1)
    model = CycleNet(**TINY, num_classes=num_classes, swin_like=swin_like)
    model.eval()
    kinds = [type(layer) for layer in model.sublayers()]
    for device in ("cpu", "gpu"):
        export(exportable(model), tmp_path / device, format="paddle", device=device)
        assert [type(layer) for layer in model.sublayers()] == kinds
    programs = [program(tmp_path / device) for device in ("cpu", "gpu")]
    assert programs[0] != programs[1]
    for shape in ([1, 3, 32, 32], [2, 3, 45, 64], [3, 3, 97, 33]):
        image = paddle.randn(shape)
        with paddle.no_grad():
            expected = model(image) if num_classes is None else [model(image)]
        for device in ("cpu", "gpu"):
            found = DeployedModel(tmp_path / device).run({"image": image.numpy()})
            for y, z in zip(found, expected, strict=True):
                np.testing.assert_allclose(y, z.numpy(), rtol=0, atol=2e-6 * float(z.abs().max()) + 1e-6)


def test_another_device_is_refused(tmp_path):
    with pytest.raises(ValueError, match="device is 'tpu'; choose from cpu, gpu"):
        export(exportable(CycleNet(**TINY)), tmp_path / "x", format="paddle", device="tpu")


def resampled(x):
    """A map pooled to cells and interpolated in every way that necks and heads do."""
    height, width = x.shape[2:]
    sizes = [(height, width), (2 * height, 2 * width), (height + 3, width + 8), (1, 1), (max(1, height - 2), 31)]
    for cells in (1, 2, 3, 6, (2, 5)):
        yield F.adaptive_avg_pool2d(x, cells)
    for mode, corners in (("bilinear", False), ("bilinear", True), ("nearest", False)):
        yield F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=corners)
        for size in sizes:
            yield F.interpolate(x, paddle.to_tensor(size), mode=mode, align_corners=corners)
            yield F.interpolate(x, size, mode=mode, align_corners=corners)


@pytest.mark.parametrize("shape", [[1, 4, 1, 1], [2, 3, 5, 7], [1, 4, 6, 3], [3, 1, 2, 13], [1, 2, 33, 17]])
def test_products_pool_and_interpolate_as_paddle_does(shape, monkeypatch):
    x = paddle.randn(shape)
    expected = list(resampled(x))
    counted, product = [], graph_forms._resampled
    monkeypatch.setattr(graph_forms, "_resampled", lambda *given: counted.append(1) or product(*given))
    with graph_forms.open_size_forms(products=True):
        found = list(resampled(x))
    assert len(counted) == len(found) == len(expected)
    for y, z in zip(found, expected):
        np.testing.assert_allclose(y.numpy(), z.numpy(), rtol=0, atol=1e-5)


def test_what_has_no_product_is_interpolated_as_it_was():
    x = paddle.randn([2, 3, 9, 8])
    ways = [{"mode": "bicubic"}, {"mode": "bilinear", "align_mode": 1}, {"mode": "bilinear", "data_format": "NHWC"}]
    expected = [F.interpolate(x, [5, 4], **way) for way in ways] + [F.interpolate(x[0], [5], mode="linear")]
    with graph_forms.open_size_forms(products=True):
        found = [F.interpolate(x, [5, 4], **way) for way in ways] + [F.interpolate(x[0], [5], mode="linear")]
    for y, z in zip(found, expected):
        np.testing.assert_array_equal(y.numpy(), z.numpy())
