"""What numbers the network can take, and how far its results depend on company, on precision and on its form."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from cyclemlp_backbones import VARIANTS, CycleNet, fast_cpu
from tests.reference import fill_parameters, reference_input, relative_error

FAMILIES = ("b0", "b2", "b3", "b5", "t")
"""The kinds of widths, ratios and skeletons that the variants have."""


@pytest.fixture(params=["fast", "plain"])
def form(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(fast_cpu, "accelerate", lambda layer: layer)
    return request.param


@pytest.fixture(params=FAMILIES)
def network(request, form):
    """A pyramid of a variant's family, a quarter as wide, a block or two a stage, with the reference weights."""
    row = VARIANTS[request.param]
    narrow = {"depths": (1, 1, 2, 1), "embed_dims": [dim // 4 for dim in row.embed_dims]}
    model = CycleNet(**{**row.network, **narrow}, drop_path_rate=0.1)
    fill_parameters(model)
    model.eval()
    kinds = {type(layer).__name__ for layer in model.sublayers()}
    assert ("FastMixer" in kinds) == (form == "fast")
    return model


def results(model, images) -> list[np.ndarray]:
    """The maps, without and with a graph, and the images' gradient of the sum of their squares."""
    images = paddle.to_tensor(images, stop_gradient=False)
    with paddle.no_grad():
        maps = [y.numpy() for y in model(images)]
    outputs = model(images)
    sum((y**2).sum() for y in outputs).backward()
    return [*maps, *(y.numpy() for y in outputs), images.grad.numpy()]


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e4, -1e4, 1e15])
@pytest.mark.parametrize("constant", [True, False])
def test_outputs_and_gradients_are_finite(network, value, constant):
    """A variance is a square: from 1e19 on it is infinite in single precision."""
    image = np.full((2, 3, 41, 50), value, np.float32) if constant else reference_input((2, 3, 41, 50)) * value
    assert all(np.isfinite(array).all() for array in results(network, image.astype(np.float32)))
    gradients = {name: p.grad.numpy() for name, p in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if not np.isfinite(gradient).all()] == []


def test_a_sample_does_not_depend_on_its_batch(network):
    images = reference_input((5, 3, 41, 50))
    images[3] *= 100
    together = results(network, images)
    for chosen in ([0], [3], [4, 0], [1, 2, 3]):
        for part, whole in zip(results(network, images[chosen]), together, strict=True):
            for one, other in zip(part, whole[chosen]):
                assert relative_error(one, other) <= 3e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_image(network, value):
    images = reference_input((3, 3, 41, 50))
    expected = results(network, images)
    images[1, 2, 20, 30] = value
    for index, (array, clean) in enumerate(zip(results(network, images), expected, strict=True)):
        assert not np.isfinite(array[1]).all()
        assert (array[[0, 2]] == clean[[0, 2]]).all(), index


def test_single_precision_is_near_double_precision(network):
    images = reference_input((2, 3, 41, 50))
    single = results(network, images)
    double = results(network.to(dtype="float64"), images.astype(np.float64))
    assert {array.dtype for array in double} == {np.dtype(np.float64)}
    assert max(relative_error(*pair) for pair in zip(single, double)) <= 1e-5
