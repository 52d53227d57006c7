"""CycleFC, plain and in its fast form, against the reference implementation's values, deform_conv2d and NumPy."""

import re

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddle.vision.ops import deform_conv2d

from cyclemlp_backbones import CycleFC, cycle_offsets
from cyclemlp_backbones.cyclenet import CycleBlock
from cyclemlp_backbones.fast_cpu import accelerate
from tests.properties import examples
from tests.reference import GOLDEN, random_state, reference_parameter, relative_error

GOLDEN_LAYERS = np.load(GOLDEN / "cyclefc.npz")
KEYS = sorted({name.rsplit("/", 1)[0] for name in GOLDEN_LAYERS})


def shifted_by_numpy(x: np.ndarray, kernel_size: tuple[int, int]) -> np.ndarray:
    """The definition, element by element: [N, H, W, C] -> [N, H, W, C], channels in their natural order."""
    out = np.zeros_like(x)
    _, height, width, channels = x.shape
    for channel, (dy, dx) in enumerate(cycle_offsets(channels, kernel_size)):
        for row in range(height):
            for column in range(width):
                if 0 <= row + dy < height and 0 <= column + dx < width:
                    out[:, row, column, channel] = x[:, row + dy, column + dx, channel]
    return out


@pytest.mark.parametrize("form", [lambda layer: layer, accelerate], ids=["plain", "fast"])
@pytest.mark.parametrize("key", KEYS)
def test_layer_and_its_gradients_equal_the_golden_values(key, form):
    kh, kw, n, c, o, h, w = map(int, re.fullmatch(r"k(\d+)x(\d+)_(\d+)x(\d+)x(\d+)x(\d+)x(\d+)", key).groups())
    layer = form(CycleFC(c, o, (kh, kw)))
    layer.weight.set_value(reference_parameter(f"{key}.weight", (o, c, 1, 1)))
    layer.bias.set_value(reference_parameter(f"{key}.bias", (o,)))
    image = random_state(f"public{key}/input/{n}x{c}x{h}x{w}").standard_normal((n, c, h, w)).astype(np.float32)
    cotangent = random_state(f"public{key}g/input/{n}x{o}x{h}x{w}").standard_normal((n, o, h, w)).astype(np.float32)
    x = paddle.to_tensor(image, stop_gradient=False)
    y = layer(x.transpose([0, 2, 3, 1])).transpose([0, 3, 1, 2])
    (y * paddle.to_tensor(cotangent)).sum().backward()
    for name, value in (("y", y), ("dx", x.grad), ("dw", layer.weight.grad), ("db", layer.bias.grad)):
        assert value.shape == list(GOLDEN_LAYERS[f"{key}/{name}"].shape)
        assert relative_error(value.numpy(), GOLDEN_LAYERS[f"{key}/{name}"]) <= 1e-5, name


@examples
@given(
    length=st.integers(1, 9),
    vertical=st.booleans(),
    batch=st.integers(1, 2),
    channels=st.integers(1, 13),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
)
def test_layer_equals_deform_conv2d(length, vertical, batch, channels, height, width):
    kernel_size = (length, 1) if vertical else (1, length)
    paddle.seed(1)
    layer = CycleFC(channels, 2 * channels, kernel_size)
    x = paddle.randn([batch, height, width, channels])
    offsets = paddle.to_tensor(cycle_offsets(channels, kernel_size).reshape(1, -1, 1, 1), dtype="float32")
    expected = deform_conv2d(
        x.transpose([0, 3, 1, 2]),
        offsets.expand([batch, 2 * channels, height, width]),
        layer.weight,
        layer.bias,
        deformable_groups=channels,
    )
    for form in (layer, accelerate(layer)):
        np.testing.assert_allclose(form(x).numpy(), expected.transpose([0, 2, 3, 1]).numpy(), atol=1e-6)


@pytest.mark.parametrize("kernel_size", [(1, 3), (3, 1)])
@pytest.mark.parametrize("form", [lambda layer: layer, accelerate], ids=["plain", "fast"])
def test_a_long_map_is_read_to_its_end(form, kernel_size):
    layer = form(CycleFC(4, 4, kernel_size, bias=False))
    layer.weight.set_value(np.eye(4, dtype="float32").reshape(4, 4, 1, 1))
    x = np.random.RandomState(0).standard_normal((1, 2, 300, 4) if kernel_size == (1, 3) else (1, 300, 2, 4))
    x = x.astype("float32")
    assert (layer(paddle.to_tensor(x)).numpy() == shifted_by_numpy(x, kernel_size)).all()


@examples
@given(channels=st.integers(1, 700), length=st.integers(1, 40), vertical=st.booleans())
def test_each_channel_has_the_offset_of_its_residue_nearest_to_the_middle(channels, length, vertical):
    """d(i) = i modulo K, and -K // 2 <= d(i) < K - K // 2: there is one such number."""
    offsets = cycle_offsets(channels, (length, 1) if vertical else (1, length))
    along, across = offsets.T if vertical else offsets.T[::-1]
    assert offsets.shape == (channels, 2)
    assert offsets.dtype == np.int64
    assert not across.any()
    assert not ((along - np.arange(channels)) % length).any()
    assert (-(length // 2) <= along).all()
    assert (along < length - length // 2).all()


@pytest.mark.parametrize(
    ("kernel_size", "residues"), [((1, 3), [0, 1, -1]), ((1, 2), [-1, 0]), ((1, 5), [0, 1, 2, -2, -1])]
)
def test_offsets_cycle_over_the_channels(kernel_size, residues):
    offsets = cycle_offsets(7, kernel_size)
    expected = [residues[channel % len(residues)] for channel in range(7)]
    if kernel_size == (1, 2):  # d(i) = (i + 1) % 2 - 1
        expected = [0 if channel % 2 == 0 else -1 for channel in range(7)]
    assert offsets[:, 1].tolist() == expected
    assert not offsets[:, 0].any()
    assert cycle_offsets(7, kernel_size[::-1]).tolist() == offsets[:, ::-1].tolist()


def test_float64_gradients_equal_numpys():
    paddle.seed(0)
    layer = CycleFC(7, 5, (1, 3)).to(dtype="float64")
    x = paddle.randn([2, 4, 5, 7], dtype="float64")
    x.stop_gradient = False
    cotangent = paddle.randn([2, 4, 5, 5], dtype="float64")
    y = layer(x)
    assert y.dtype == paddle.float64
    (y * cotangent).sum().backward()
    weight = layer.weight.numpy()[:, :, 0, 0]
    shifted = shifted_by_numpy(x.numpy(), (1, 3))
    np.testing.assert_allclose(y.numpy(), shifted @ weight.T + layer.bias.numpy(), rtol=0, atol=1e-14)
    expected = np.einsum("nhwo,nhwc->oc", cotangent.numpy(), shifted)
    np.testing.assert_allclose(layer.weight.grad.numpy()[:, :, 0, 0], expected, rtol=0, atol=1e-12)
    # The input's gradient is the shift's transpose: <dx, v> = <g, layer(v) - bias> for every v.
    v = np.random.RandomState(3).standard_normal(x.shape)
    inner = (cotangent.numpy() * (shifted_by_numpy(v, (1, 3)) @ weight.T)).sum()
    assert abs((x.grad.numpy() * v).sum() - inner) <= 1e-12 * abs(inner)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32"])
@pytest.mark.parametrize("kernel_size", [(1, 3), (3, 1), (1, 4), (9, 1)])
def test_shift_is_exact_in_every_dtype(dtype, kernel_size):
    values = np.random.RandomState(0).randint(-9, 9, (2, 3, 4, 8)).astype(np.float32)
    shifted = CycleFC(8, 1, kernel_size).shift(paddle.to_tensor(values).astype(dtype))
    assert str(shifted.dtype).endswith(dtype)
    length = max(kernel_size)
    groups = -(-8 // length)
    actual = shifted.astype("float32").numpy()
    expected = shifted_by_numpy(values, kernel_size)
    for residue in range(length):
        channels = list(range(residue, 8, length))
        group = actual[..., residue * groups : (residue + 1) * groups]
        assert (group[..., : len(channels)] == expected[..., channels]).all()
        assert not group[..., len(channels) :].any()


def test_a_nan_reaches_only_the_positions_that_read_it():
    layer = CycleFC(3, 2, (1, 3))
    x = paddle.zeros([1, 1, 9, 3])
    x[0, 0, 4, 1] = float("nan")  # channel 1 is read at p + 1: by position 3 alone
    assert np.isnan(layer(x).numpy()[0, 0, :, 0]).nonzero()[0].tolist() == [3]


@pytest.mark.parametrize("kernel_size", [(1, 1), (1, 3), (5, 1)])
def test_an_empty_batch_gives_an_empty_result(kernel_size):
    layer = CycleFC(4, 6, kernel_size)
    for form in (layer, accelerate(layer)):
        assert form(paddle.zeros([0, 5, 7, 4])).shape == [0, 5, 7, 6]
        assert form(paddle.zeros([2, 0, 7, 4])).shape == [2, 0, 7, 6]


@pytest.mark.parametrize("kernel_size", [(1, 3), (7, 1), (1, 1)])
def test_static_graph_with_open_sizes_equals_dygraph(tmp_path, kernel_size):
    layer = CycleFC(7, 5, kernel_size)
    path = str(tmp_path / "layer")
    paddle.jit.save(layer, path, input_spec=[paddle.static.InputSpec([None, None, None, 7])])
    loaded = paddle.jit.load(path)
    for shape in ([1, 1, 1, 7], [2, 3, 9, 7], [3, 8, 2, 7]):
        x = paddle.randn(shape)
        np.testing.assert_allclose(loaded(x).numpy(), layer(x).numpy(), atol=1e-6)


@pytest.mark.parametrize("kernel_size", [(2, 2), (3, 3), (0, 1), (1,), 3, (1, 2.0), (1, -3), (True, 1)])
def test_a_kernel_that_is_no_row_or_column_is_refused(kernel_size):
    with pytest.raises(ValueError, match=r"kernel_size is .*\(1, K\) or \(K, 1\)"):
        CycleFC(4, 4, kernel_size)


def test_a_misshapen_input_is_refused():
    layer = CycleFC(4, 4, (1, 3))
    with pytest.raises(ValueError, match=r"\[2, 5, 6, 3\].*\[N, H, W, 4\]"):
        layer(paddle.zeros([2, 5, 6, 3]))
    with pytest.raises(ValueError, match=r"\[2, 5, 4\]"):
        layer(paddle.zeros([2, 5, 4]))


def test_a_layer_tells_its_sizes():
    layer = CycleFC(4, 6, (3, 1), bias=False)
    assert (layer.in_channels, layer.out_channels, layer.kernel_size) == (4, 6, (3, 1))
    assert repr(layer) == "CycleFC(4, 6, kernel_size=(3, 1), bias=False)"
    assert repr(accelerate(CycleFC(4, 6, (1, 5)))) == "FastCycleFC(4, 6, kernel_size=(1, 5), bias=True)"
    for sizes, message in (((0, 4), "in_channels is 0"), ((4, 0), "out_channels is 0")):
        with pytest.raises(ValueError, match=f"{message}; it takes an integer of at least 1"):
            CycleFC(*sizes, (1, 3))
    with pytest.raises(ValueError, match=r"^channels is 0"):
        cycle_offsets(0, (1, 3))


def test_initialisation():
    paddle.seed(0)
    layer = CycleFC(400, 200, (1, 3))
    weight = layer.weight.numpy()
    assert 0.0172 < weight.std() < 0.0203  # Paddle 2.6 cuts at two deviations, which makes it 0.0176; 3.x cuts at +-2
    assert abs(weight.mean()) < 5e-4
    assert not layer.bias.numpy().any()


def test_stochastic_depth_drops_whole_samples_and_keeps_the_expectation():
    paddle.seed(0)
    block = CycleBlock(4, 2.0, drop_path_rate=0.25)
    assert not block.use_recompute
    x = paddle.randn([4000, 2, 2, 4])
    branch = block.attn(block.norm1(x)).numpy()
    factor = block.draw(x)
    y = block.add_branch(x, block.norm1, block.attn, factor).numpy()
    dropped = factor.numpy().ravel() == 0
    assert abs(dropped.mean() - 0.25) < 0.03
    assert (y[dropped] == x.numpy()[dropped]).all()
    np.testing.assert_allclose(y[~dropped], (x.numpy() + branch / 0.75)[~dropped], atol=1e-5)
    assert CycleBlock(4, 2.0).draw(x) is None  # no random numbers where nothing is dropped
    block.eval()
    assert block.draw(x) is None
