"""The forms that graphs for a CPU are exported in, against the network."""

import numpy as np
import paddle
import pytest

from cyclemlp_backbones import CycleNet
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
