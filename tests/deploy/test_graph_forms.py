"""The forms that graphs for a CPU are exported in, against the network."""

from collections import Counter

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from cyclemlp_backbones import CycleNet
from cyclemlp_backbones.deploy import graph_forms
from cyclemlp_backbones.deploy.export import IMAGE, Exportable, export
from cyclemlp_backbones.deploy.manifest import Preprocessing
from cyclemlp_backbones.deploy.runtime import DeployedModel
from tests.deploy.conftest import ONNX, SHAPES
from tests.test_cyclenet import TINY


def exportable(model):
    task, classes = ("cls", tuple(map(str, range(model.num_classes)))) if model.num_classes else ("features", ())
    outputs = ("logits",) if model.num_classes else tuple(f"stride{spec.stride}" for spec in model.stage_specs)
    return Exportable(model, task, "CycleNet", None, ("image",), outputs, [IMAGE], Preprocessing(), classes)


def program(folder):
    return next(path for path in (folder / "model.json", folder / "model.pdmodel") if path.exists()).read_bytes()


FORMS = [("paddle", "cpu"), ("paddle", "gpu")] + [("onnx", "cpu"), ("onnx", "gpu")] * ONNX


@pytest.mark.parametrize(("num_classes", "swin_like"), [(None, False), (6, False), (None, True)])
def test_all_forms_compute_what_the_network_does_and_leave_it_as_it_was(tmp_path, num_classes, swin_like):
    paddle.seed(1)
    model = CycleNet(**TINY, num_classes=num_classes, swin_like=swin_like)
    for parameter in model.parameters():  # norms and biases that count
        parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    model.eval()
    parts, names = [(name, type(part)) for name, part in model.named_sublayers()], list(model.state_dict())
    for format, device in FORMS:
        export(exportable(model), tmp_path / format / device, format=format, device=device)
        assert [(name, type(part)) for name, part in model.named_sublayers()] == parts
        assert list(model.state_dict()) == names
        assert "forward_features" not in vars(model)
    programs = [program(tmp_path / "paddle" / device) for device in ("cpu", "gpu")]
    assert programs[0] != programs[1]
    for shape in SHAPES:
        image = paddle.randn([shape[0], 3, *shape[1:]])
        with paddle.no_grad():
            expected = model(image) if num_classes is None else [model(image)]
        for format, device in FORMS:
            found = DeployedModel(tmp_path / format / device).run({"image": image.numpy()})
            for y, z in zip(found, expected, strict=True):
                np.testing.assert_allclose(y, z.numpy(), rtol=0, atol=5e-6 * float(z.abs().max()) + 1e-6)


def test_an_export_that_fails_leaves_the_network_as_it_was():
    model = CycleNet(**TINY)
    names = list(model.state_dict())
    with pytest.raises(ZeroDivisionError), graph_forms.cpu_graph_forms(model):
        raise ZeroDivisionError
    assert list(model.state_dict()) == names
    assert "forward_features" not in vars(model)


def computed_of_constants(nodes):
    """Kinds of nodes that nothing but constants goes into; paddle2onnx writes an Identity for each."""
    constant, kinds = set(), set()
    for node in nodes:
        if all(name in constant for name in node.input):  # a Constant has no input
            constant |= {*node.output}
            kinds.add(node.op_type)
    return kinds - {"Constant", "Identity"}


def test_a_graph_for_a_cpu_rearranges_no_weights_and_shifts_once_a_block(tmp_path):
    if not ONNX:
        return
    import onnx

    model = CycleNet(**TINY)
    model.eval()
    nodes = {}
    for device in ("cpu", "gpu"):
        export(exportable(model), tmp_path / device, format="onnx", device=device)
        nodes[device] = onnx.load(str(tmp_path / device / "model.onnx")).graph.node
    assert {"Transpose", "Concat"} <= computed_of_constants(nodes["gpu"])
    assert computed_of_constants(nodes["cpu"]) <= {"Reshape", "Unsqueeze"}  # of sizes
    counts = {
        device: Counter(node.op_type for node in some if node.op_type not in ("Constant", "Identity"))
        for device, some in nodes.items()
    }
    blocks, stages = sum(TINY["depths"]), len(TINY["depths"])
    assert counts["cpu"]["Pad"] == blocks
    assert counts["cpu"]["Transpose"] == 3 * stages - 1  # to rows, to the next convolution, to an output
    assert counts["cpu"]["LayerNormalization"] == 2 * blocks + stages
    assert counts["cpu"]["Slice"] < 6 * blocks + 8 * stages
    assert counts["cpu"].total() < 45 * blocks + 30 * stages < counts["gpu"].total()


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
