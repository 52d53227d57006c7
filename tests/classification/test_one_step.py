"""Two optimizer steps of the trainer against float64: the network in NumPy, gradients, clipping, AdamW, the average.

The gradients are those of a float64 twin of the network; its loss has to be NumPy's, and its gradients the slopes of
NumPy's loss.
"""

import math

import numpy as np
import paddle
import pytest

from classification.trainer import Trainer
from cyclemlp_backbones import CycleNet, load_weights
from tests.classification.tiny import tiny_config
from tests.reference import GOLDEN, reference_input, relative_error

DEPTHS, WIDTHS, RATIOS = [1, 1, 2, 1], [8, 16, 24, 32], [4, 4, 4, 4]
CLIP, DECAY, BETAS, AVERAGE, LR = 0.5, 0.05, (0.9, 0.999), 0.9, (0.01, 0.02)
erf = np.vectorize(math.erf)


def linear(x, p, name):
    """Paddle's Linear, weight [in, out], or a CycleFC's, weight [out, in, 1, 1]."""
    weight = p[f"{name}.weight"]
    return x @ (weight if weight.ndim == 2 else weight[:, :, 0, 0].T) + p.get(f"{name}.bias", 0.0)


def layer_norm(x, p, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def mlp(x, p, name):
    hidden = linear(x, p, f"{name}.fc1")
    return linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, p, f"{name}.fc2")


def convolution(x, p, name, stride, padding):
    """[N, H, W, C] -> [N, H', W', C']."""
    weight = p[f"{name}.weight"]  # (O, C, K, K)
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ocij->nhwo", windows, weight) + p[f"{name}.bias"]


def cycle(x, p, name, axis):
    """Channel i is read at its place plus 0, 1, -1, 0, 1, … along `axis`, zero outside, then weighed."""
    size, shifted = x.shape[axis], np.zeros_like(x)
    for channel in range(x.shape[3]):
        by = (channel + 1) % 3 - 1
        for place in range(max(0, -by), min(size, size - by)):
            here, there = [slice(None)] * 3, [slice(None)] * 3
            here[axis], there[axis] = place, place + by
            shifted[(*here, channel)] = x[(*there, channel)]
    return linear(shifted, p, name)


def network(image, p):
    """Logits of the tiny classifier for an image [N, 3, H, W]."""
    x = convolution(image.transpose(0, 2, 3, 1), p, "patch_embed.proj", 4, 2)
    for stage, depth in enumerate(DEPTHS):
        if stage:
            x = convolution(x, p, f"network.{2 * stage - 1}.proj", 2, 1)
        for block in range(depth):
            name = f"network.{2 * stage}.{block}"
            y = layer_norm(x, p, f"{name}.norm1")
            branches = [
                cycle(y, p, f"{name}.attn.sfc_h", 2),
                cycle(y, p, f"{name}.attn.sfc_w", 1),
                linear(y, p, f"{name}.attn.mlp_c"),
            ]
            gates = np.exp(mlp(sum(branches).mean((1, 2)), p, f"{name}.attn.reweight")).reshape(len(x), -1, 3)
            gates = gates / gates.sum(-1, keepdims=True)
            mixed = sum(branch * gates[:, None, None, :, n] for n, branch in enumerate(branches))
            x = x + linear(mixed, p, f"{name}.attn.proj")
            x = x + mlp(layer_norm(x, p, f"{name}.norm2"), p, f"{name}.mlp")
    return linear(layer_norm(x, p, "norm").mean((1, 2)), p, "head")


def loss(images, labels, p):
    logits = network(images, p)
    targets = np.full(logits.shape, 0.1 / 10)
    targets[np.arange(len(labels)), labels] += 0.9
    return float((targets * (np.log(np.exp(logits).sum(1, keepdims=True)) - logits)).sum(1).mean())


def arrays(model):
    return {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def twin():
    paddle.set_default_dtype("float64")
    try:
        return CycleNet(DEPTHS, WIDTHS, RATIOS, num_classes=10)
    finally:
        paddle.set_default_dtype("float32")


def gradients(twin, images, labels, p):
    for name, parameter in twin.named_parameters():
        parameter.set_value(p[name])
    twin.clear_gradients()
    log_probabilities = paddle.nn.functional.log_softmax(twin(paddle.to_tensor(images)), axis=1)
    targets = np.full((len(labels), 10), 0.1 / 10)
    targets[np.arange(len(labels)), labels] += 0.9
    value = -(paddle.to_tensor(targets) * log_probabilities).sum(1).mean()
    value.backward()
    return float(value), {name: parameter.grad.numpy() for name, parameter in twin.named_parameters()}


def test_numpys_network_is_the_reference():
    model = CycleNet(DEPTHS, WIDTHS, RATIOS, num_classes=10)
    load_weights(model, GOLDEN / "tiny_zip.pth")
    expected = np.load(GOLDEN / "tiny.logits.npz")["logits"]
    image = reference_input((2, 3, 64, 64)).astype(np.float64)
    assert relative_error(network(image, arrays(model)), expected) < 1e-5


def test_two_steps_equal_float64(digits, tmp_path, twin):
    changes = {"mix__mixup": 0.0, "mix__cutmix": 0.0, "model__drop_path_rate": 0.0, "optimizer__clip_norm": CLIP}
    size = {"model__depths": DEPTHS, "model__embed_dims": WIDTHS, "model__mlp_ratios": RATIOS}
    start = {"model__pretrained": str(GOLDEN / "tiny_zip.pth")}
    trainer = Trainer(tiny_config(digits, tmp_path, **changes, **size, **start, ema__decay=AVERAGE))
    trainer.parallel.train()
    p = arrays(trainer.model)
    average = dict(p)
    moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in p.items()}
    # Where a gradient is nearly zero, float32 decides its sign, and so AdamW's whole step.
    sure = {name: np.ones(value.shape, bool) for name, value in p.items()}
    clipped = []
    for step, (batch, lr) in enumerate(zip(trainer._micro_batches(), LR), start=1):
        images, labels = batch[0].numpy().astype(np.float64), batch[1].numpy()
        value, slopes = gradients(twin, images, labels, p)
        assert value == pytest.approx(loss(images, labels, p), rel=1e-12)
        if step == 1:
            check_slopes(images, labels, p, slopes)
        norm = math.sqrt(sum((slope**2).sum() for slope in slopes.values()))
        clipped.append(norm > CLIP)
        values = trainer._train_step([batch], lr)
        assert values["loss"] == pytest.approx(value, rel=1e-5)
        assert values["grad_norm"] == pytest.approx(norm, rel=1e-4)
        for name, slope in slopes.items():
            slope = slope * min(1.0, CLIP / norm)
            sure[name] &= np.abs(slope) > 3e-5
            first = moments[name][0] * BETAS[0] + slope * (1 - BETAS[0])
            second = moments[name][1] * BETAS[1] + slope**2 * (1 - BETAS[1])
            moments[name] = first, second
            move = first / (1 - BETAS[0] ** step) / (np.sqrt(second / (1 - BETAS[1] ** step)) + 1e-8)
            decay = DECAY if p[name].ndim > 1 else 0.0
            p[name] = p[name] * (1 - lr * decay) - lr * move
            average[name] = AVERAGE * average[name] + (1 - AVERAGE) * p[name]
    assert clipped == [True, True]
    after = arrays(trainer.model)
    for name in p:
        assert sure[name].mean() > 0.25, name  # on a map of one pixel, two thirds of a CycleFC see only zeros
        assert np.abs(after[name] - p[name])[sure[name]].max(initial=0) < 1e-4, name
        assert np.abs(trainer.average.values[name].numpy() - average[name])[sure[name]].max(initial=0) < 1e-5, name


def check_slopes(images, labels, p, slopes):
    """Along a random direction of every parameter, the loss rises as its gradient says."""
    rng = np.random.default_rng(0)
    for name, value in p.items():
        direction = rng.standard_normal(value.shape)
        direction *= 1e-4 / np.abs(direction).max()
        ends = [loss(images, labels, {**p, name: value + sign * direction}) for sign in (1, -1)]
        assert (ends[0] - ends[1]) / 2 == pytest.approx((slopes[name] * direction).sum(), rel=1e-4, abs=1e-10), name
