"""The whole network against the reference implementation's values, and what it promises to its users."""

import gc
import json
import subprocess
import sys

import numpy as np
import paddle
import pytest

from cyclemlp_backbones import VARIANTS, CycleNet, build_backbone, build_classifier, list_variants
from cyclemlp_backbones.complexity import multiply_adds
from cyclemlp_backbones.cyclenet import CycleBlock, CycleMixer, Mlp
from tests.reference import GOLDEN, fill_parameters, picked_positions, random_state, reference_input, relative_error

TINY = {"depths": (1, 1, 2, 1), "embed_dims": (8, 16, 24, 32), "mlp_ratios": (4, 4, 4, 4)}


def parameters(model):
    return dict(model.named_parameters())


def gradients(model, image):
    """The gradient of every parameter for a loss that weighs all outputs unevenly."""
    model.clear_gradients()
    outputs = model(image)
    loss = sum((y * paddle.cos(paddle.arange(y.size, dtype="float32")).reshape(y.shape)).sum() for y in outputs)
    loss.backward()
    return {name: None if p.grad is None else p.grad.numpy().copy() for name, p in parameters(model).items()}


@pytest.mark.parametrize("variant", ["b1", "b5"])
def test_logits_equal_the_golden_values(variant):
    model = build_classifier(variant)
    fill_parameters(model)
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.to_tensor(reference_input((2, 3, 224, 224)))).numpy()
    assert relative_error(logits, np.load(GOLDEN / f"{variant.upper()}.logits.npz")["logits"]) <= 1e-4


@pytest.mark.parametrize(
    ("variant", "file", "shape"),
    [
        ("b1", "B1.features", (2, 3, 96, 160)),
        ("b1", "B1.features_odd", (1, 3, 97, 131)),
        ("b5", "B5.features", (2, 3, 96, 160)),
    ],
)
def test_pyramid_equals_the_golden_values(variant, file, shape):
    golden = np.load(GOLDEN / f"{file}.npz")
    model = build_backbone(variant)
    fill_parameters(model)
    model.eval()
    with paddle.no_grad():
        maps = [y.numpy() for y in model(paddle.to_tensor(reference_input(shape)))]
    assert len(maps) == 4
    for index, y in enumerate(maps):
        assert list(y.shape) == golden[f"shape{index}"].tolist()
        assert relative_error(y.ravel()[picked_positions(y.size)], golden[f"picked{index}"]) <= 1e-4
        assert abs(y.mean() - golden[f"mean{index}"]) <= 1e-5
        assert abs(y.std() - golden[f"std{index}"]) <= 1e-5


@pytest.mark.parametrize("use_recompute", [False, True])
def test_gradients_of_all_parameters_equal_the_golden_values(use_recompute):
    golden = np.load(GOLDEN / "B1.grads.npz")
    model = build_backbone("b1", drop_path_rate=0.0, use_recompute=use_recompute)
    fill_parameters(model)
    image = paddle.to_tensor(reference_input((1, 3, 64, 96)), stop_gradient=False)
    loss = 0
    for index, y in enumerate(model(image)):
        cotangent = random_state(f"public/cotangent{index}").standard_normal(y.shape).astype(np.float32)
        loss = loss + (y * paddle.to_tensor(cotangent)).sum() / y.size**0.5
    loss.backward()
    assert abs(float(loss) - float(golden["loss"])) <= 1e-4 * abs(float(golden["loss"]))
    assert relative_error(image.grad.numpy().ravel()[picked_positions(image.size)], golden["dx"]) <= 1e-4
    norms = {name: float(np.linalg.norm(p.grad.numpy())) for name, p in parameters(model).items()}
    assert norms.keys() == {str(name) for name in golden["names"]}
    for name, norm in zip(golden["names"], golden["norms"]):
        assert abs(norms[str(name)] - norm) <= 2e-3 * norm, name


@pytest.mark.parametrize("variant", list_variants())
def test_parameters_have_the_published_count_names_and_shapes(variant):
    model = build_classifier(variant)
    ours = {name: list(p.shape) for name, p in model.named_parameters()}
    assert sum(p.size for p in model.parameters()) == VARIANTS[variant].parameters
    if variant == "b0" or VARIANTS[variant].swin_like:  # ours, not published; a reconstruction
        return
    assert VARIANTS[variant].parameters == json.loads((GOLDEN / "params.json").read_text())[variant.upper()]["params"]
    published = json.loads((GOLDEN / f"{variant.upper()}.shapes.json").read_text())
    published = {name: shape for name, shape in published.items() if not name.endswith(".offset")}
    assert ours == {name: shape[::-1] if len(shape) == 2 else shape for name, shape in published.items()}


@pytest.mark.parametrize(("variant", "millions", "giga"), [("t", 28, 4.4), ("s", 50, 8.5), ("b", 88, 15.2)])
def test_a_reconstruction_has_the_published_sizes(variant, millions, giga):
    row = VARIANTS[variant]  # which the test above compares with the network
    assert round(row.parameters / 1e6) == millions
    assert round(multiply_adds(row) / 1e9, 1) == giga


def test_a_swin_like_network_sums_its_branches_and_merges_two_by_two():
    """Against the same network with even gates, a third each, and merging written as a matrix product."""
    paddle.seed(3)
    model = CycleNet(**TINY, swin_like=True)
    model.eval()
    gated = CycleNet(**TINY)
    gated.eval()
    for index in (0, 2, 4, 6):
        for plain, other in zip(model.network[index], gated.network[index]):
            even = {name: paddle.zeros_like(p) for name, p in other.named_parameters() if "reweight" in name}
            other.set_state_dict({**plain.state_dict(), **even})
            other.attn.proj.weight.set_value(plain.attn.proj.weight * 3)
    x = model.patch_embed(paddle.to_tensor(reference_input((2, 3, 97, 67))))
    for index, norm in enumerate((model.norm0, model.norm2, model.norm4, model.norm6)):
        x = gated.network[2 * index](x)
        expected = norm(x).transpose([0, 3, 1, 2])
        found = model(paddle.to_tensor(reference_input((2, 3, 97, 67))))[index]
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)
        if index < 3:  # rows and columns of zeros make the sizes even
            x = paddle.nn.functional.pad(x, [0, 0, 0, x.shape[1] % 2, 0, x.shape[2] % 2, 0, 0])
            n, h, w, c = x.shape
            merged = x.reshape([n, h // 2, 2, w // 2, 2, c]).transpose([0, 1, 3, 5, 2, 4]).flatten(3)
            downsampling = model.network[2 * index + 1].proj
            x = merged @ downsampling.weight.flatten(1).t() + downsampling.bias


@pytest.mark.parametrize("variant", list_variants())
def test_every_parameter_gets_a_gradient_and_every_output_is_as_declared(variant):
    model = build_backbone(variant, drop_path_rate=0.0)
    image = paddle.randn([1, 3, 64, 64])
    found = gradients(model, image)
    assert [name for name, gradient in found.items() if gradient is None or not np.abs(gradient).any()] == []
    for spec, y in zip(model.stage_specs, model(image)):
        assert y.shape == [1, spec.channels, 64 // spec.stride, 64 // spec.stride]


def test_any_size_from_32_up_may_follow_another():
    model = CycleNet(**TINY)
    model.eval()
    for height, width in ((32, 32), (33, 47), (64, 32), (100, 35), (32, 129)):
        h, w = (height + 1) // 4, (width + 1) // 4
        for y, channels in zip(model(paddle.randn([2, 3, height, width])), TINY["embed_dims"]):
            assert y.shape == [2, channels, h, w]
            h, w = (h + 1) // 2, (w + 1) // 2


def test_samples_of_a_batch_do_not_see_each_other():
    model = CycleNet(**TINY)
    model.eval()
    images = paddle.randn([3, 3, 41, 50])
    together = model(images)
    for index in range(3):
        for y, whole in zip(model(images[index : index + 1]), together):
            np.testing.assert_allclose(y.numpy()[0], whole.numpy()[index], atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 3, 31, 64], r"\[1, 3, 31, 64\].*\[N, 3, H, W\], heights and widths of 32 pixels and more: resize or pad"),
        ([1, 3, 64, 16], r"\[1, 3, 64, 16\].*32 pixels"),
        ([3, 64, 64], r"\[3, 64, 64\].*\[N, 3, H, W\]"),
        ([1, 64, 64, 3], r"\[1, 64, 64, 3\].*\[N, 3, H, W\]"),
    ],
)
def test_a_wrong_image_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        CycleNet(**TINY)(paddle.zeros(shape))


def test_an_empty_batch_gives_empty_results():
    image = paddle.zeros([0, 3, 65, 90])
    backbone = CycleNet(**TINY, out_indices=(0, 3))
    expected = [y.shape for y in backbone(paddle.zeros([1, 3, 65, 90]))]
    assert [y.shape for y in backbone(image)] == [[0, *shape[1:]] for shape in expected]
    assert CycleNet(**TINY, num_classes=7)(image).shape == [0, 7]


@pytest.mark.parametrize(("given", "out_indices"), [((-1,), (3,)), ([1, -2], (1, 2)), ((-4, -3, -2, -1), (0, 1, 2, 3))])
def test_negative_out_indices_count_from_the_end(given, out_indices):
    model = CycleNet(**TINY, out_indices=given)
    assert model.out_indices == out_indices
    assert model.stage_specs == CycleNet(**TINY, out_indices=out_indices).stage_specs


@pytest.mark.parametrize("out_indices", [(0,), (3,), (1, 3), (1, 2, 3), [0, 1, 2, 3]])
def test_only_the_asked_outputs_and_their_norms_exist(out_indices):
    paddle.seed(3)
    whole = CycleNet(**TINY)
    model = CycleNet(**TINY, out_indices=out_indices)
    norms = {name.split(".")[0] for name in parameters(model) if name.startswith("norm")}
    assert norms == {f"norm{2 * index}" for index in out_indices}
    model.set_state_dict({name: value for name, value in whole.state_dict().items() if name in model.state_dict()})
    whole.eval()
    model.eval()
    image = paddle.randn([1, 3, 40, 40])
    maps = whole(image)
    for y, index in zip(model(image), out_indices):
        assert (y.numpy() == maps[index].numpy()).all()
    assert [spec.stride for spec in model.stage_specs] == [4 * 2**index for index in out_indices]


@pytest.mark.parametrize(
    "out_indices", [(), (3, 1), (1, 1), (0, 4), (-5,), (3, -1), (-1, 0), "0123", 3, (0.0,), (True,)]
)
def test_wrong_out_indices_are_refused(out_indices):
    with pytest.raises(ValueError, match=r"out_indices is .*increasing subset of \[0, 1, 2, 3\]"):
        CycleNet(**TINY, out_indices=out_indices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": (1, 1, 1)}, r"depths is \(1, 1, 1\).*4 integers"),
        ({"embed_dims": (8, 16, 24, 3)}, r"embed_dims is \(8"),
        ({"mlp_ratios": (4, 4, -1, 4)}, r"mlp_ratios is \(4"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate is 1\.0"),
        ({"drop_path_rate": float("nan")}, "drop_path_rate is nan"),
        ({"frozen_stages": 5}, "frozen_stages is 5.*from -1 to 4"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 5, "out_indices": (3,)}, "classifier"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CycleNet(**{**TINY, **arguments})


@pytest.mark.parametrize("name", ["b1", "B1", "cyclemlp_b1", "CycleMLP_B1"])
def test_a_variant_has_several_spellings(name):
    assert build_backbone(name).stage_specs[0].channels == 64


@pytest.mark.parametrize("name", ["b9", "", "resnet50", None, 1])
def test_an_unknown_variant_is_refused_with_the_names(name):
    with pytest.raises(ValueError, match=r"b0, b1, b2, b3, b4, b5, t, s, b"):
        build_classifier(name)


def test_drop_path_ramps_linearly_over_all_blocks():

    model = CycleNet(**TINY, drop_path_rate=0.2)
    blocks = [block for stage in list(model.network)[::2] for block in stage]
    assert [block.drop_path_rate for block in blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_recompute_gives_the_same_gradients_with_drop_path():
    image = paddle.randn([4, 3, 40, 48])
    found = []
    for use_recompute in (False, True):
        paddle.seed(1)
        model = CycleNet(**TINY, drop_path_rate=0.5, use_recompute=use_recompute)
        paddle.seed(2)
        found.append(gradients(model, image))
    for name, gradient in found[0].items():
        np.testing.assert_allclose(
            found[1][name], gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max(), err_msg=name
        )


def test_branches_are_computed_again_only_where_it_is_asked_and_gradients_follow():
    image = paddle.randn([1, 3, 32, 32])
    for arguments, expected in (({}, 1), ({"use_recompute": True}, 2), ({"use_recompute": False}, 1)):
        model, calls = CycleNet(**TINY, **arguments), []
        norm = model.network[0][0].norm1
        norm.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        for train, times in ((True, expected), (False, 1)):
            (model.train if train else model.eval)()
            sum(y.sum() for y in model(image)).backward()
            assert len(calls) == times
            calls.clear()
        model.train()
        with paddle.no_grad():
            model(image)
        assert len(calls) == 1


def test_the_same_samples_are_dropped_in_double_precision():
    factors = []
    for dtype in ("float32", "float64"):
        paddle.set_default_dtype(dtype)
        try:
            model = CycleNet(**TINY, drop_path_rate=0.5)
            paddle.seed(3)
            factors.append(model.network[6][0].draw(paddle.zeros([64, 1, 1, 32])).numpy())
        finally:
            paddle.set_default_dtype("float32")
    assert (factors[0] == factors[1]).all()
    assert {*factors[0].ravel()} == {0.0, 2.0}


def test_the_smallest_network_works():
    sizes = {"depths": (1, 1, 1, 1), "embed_dims": (4, 4, 4, 4), "mlp_ratios": (1, 1, 1, 1)}
    assert CycleNet(**sizes, in_channels=1, num_classes=1)(paddle.zeros([2, 1, 32, 32])).shape == [2, 1]


MEMORY = """
import pathlib, re, sys
import paddle
from cyclemlp_backbones import build_backbone
model = build_backbone("b1", use_recompute=sys.argv[1] == "recompute")
sum(y.mean() for y in model(paddle.randn([1, 3, 32, 32]))).backward()
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before = peak()
sum(y.mean() for y in model(paddle.randn([8, 3, 160, 160]))).backward()
print(peak() - before)
"""


def test_recompute_needs_less_memory():
    commands = {mode: [sys.executable, "-c", MEMORY, mode] for mode in ("keep", "recompute")}
    runs = {mode: subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for mode, command in commands.items()}
    growth = {mode: int(run.communicate()[0]) for mode, run in runs.items()}
    assert growth["recompute"] < 0.75 * growth["keep"], growth  # 0.47 on Paddle 3.3.1, 0.62 on 2.6.2


@pytest.mark.parametrize("use_recompute", [False, True])
@pytest.mark.parametrize("frozen_stages", range(-1, 5))
def test_frozen_stages_get_no_gradient_and_all_others_do(frozen_stages, use_recompute):
    model = CycleNet(**TINY, frozen_stages=frozen_stages, use_recompute=use_recompute)
    frozen = ["patch_embed."] if frozen_stages >= 0 else []
    for stage in range(frozen_stages):
        frozen += [f"network.{2 * stage}.", f"norm{2 * stage}."] + ([f"network.{2 * stage - 1}."] if stage else [])
    expected = {name for name in parameters(model) if name.startswith(tuple(frozen))} if frozen else set()
    if frozen_stages == 4:
        assert expected == set(parameters(model))
        assert all(p.stop_gradient for p in model.parameters())
        return
    found = gradients(model, paddle.randn([2, 3, 40, 40]))
    assert {name for name, gradient in found.items() if gradient is None} == expected
    assert {name for name, p in parameters(model).items() if p.stop_gradient} == expected


def test_frozen_stages_drop_no_branch():
    """Also where a parent's train() sets the mode of every sublayer."""
    model = CycleNet(**TINY, drop_path_rate=0.9, frozen_stages=3)
    parent = paddle.nn.Sequential(model)
    image = paddle.randn([4, 3, 40, 40])
    model.eval()
    expected = [y.numpy() for y in model(image)]
    for train in (model.train, parent.train):
        train()
        maps = [y.numpy() for y in model(image)]
        for index in range(3):
            assert (maps[index] == expected[index]).all()
        assert (maps[3] != expected[3]).any()


def test_initialisation():
    """Linear and CycleFC: truncated normal, deviation 0.02, biases 0; LayerNorm 1 and 0."""
    paddle.seed(0)
    model = build_classifier("b0")
    for name, p in parameters(model).items():
        value = p.numpy()
        layer = name.rsplit(".", 1)[0]
        if "norm" in layer:
            assert (value == (1 if name.endswith("weight") else 0)).all(), name
        elif layer in ("patch_embed.proj", "network.1.proj", "network.3.proj", "network.5.proj"):
            continue  # convolutions keep Paddle's own
        elif name.endswith("bias"):
            assert not value.any(), name
        else:
            assert 0.016 < value.std() < 0.022, name


@pytest.fixture
def frozen_heap():
    """Paddle's tracer of bytecode collects all garbage at each of 80 translations: half a second each, and more where
    other tests have filled the memory."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen_heap")
@pytest.mark.parametrize("num_classes", [None, 6])
def test_to_static_equals_dygraph_at_changing_sizes(tmp_path, num_classes):
    model = CycleNet(**TINY, num_classes=num_classes, drop_path_rate=0.1)
    model.eval()
    path = str(tmp_path / "net")
    paddle.jit.save(model, path, input_spec=[paddle.static.InputSpec([None, 3, None, None], name="image")])
    loaded = paddle.jit.load(path)
    static = paddle.jit.to_static(CycleNet(**TINY, num_classes=num_classes))
    static.set_state_dict(model.state_dict())
    static.eval()
    for shape in ([1, 3, 32, 32], [2, 3, 45, 64], [3, 3, 97, 33]):
        image = paddle.randn(shape)
        expected = model(image) if num_classes is None else [model(image)]
        for other in (loaded, static):
            with paddle.no_grad():  # Paddle 3.3.1 would keep the eval graph, which has no backward, for later training
                outputs = other(image)
            for y, z in zip(outputs if isinstance(outputs, (list, tuple)) else [outputs], expected, strict=True):
                np.testing.assert_allclose(y.numpy(), z.numpy(), atol=2e-6 * float(z.abs().max()) + 1e-6)


def test_to_static_trains_like_dygraph():
    paddle.seed(5)
    model = CycleNet(**TINY)
    image = paddle.randn([2, 3, 40, 52])
    expected = gradients(model, image)
    static = paddle.jit.to_static(model)
    static.train()
    for name, gradient in gradients(static, image).items():
        np.testing.assert_allclose(
            gradient, expected[name], rtol=1e-4, atol=1e-5 * np.abs(expected[name]).max(), err_msg=name
        )


def test_branches_are_weighted_unless_said_otherwise():
    for layer in (CycleMixer(8), CycleBlock(8, 2.0).attn):
        assert isinstance(layer.reweight, Mlp)
    assert CycleBlock(8, 2.0, reweight=False).attn.reweight is None
