"""What a backward pass computes again rather than keep: gradients stay, and the tensors are not kept.

`REBUILDS` is False on Paddle 2, where all is kept.
"""

import numpy as np
import paddle
import pytest
from paddle.autograd import saved_tensors_hooks
from paddle.distributed.fleet.utils import recompute

from cyclemlp_backbones import operators
from cyclemlp_backbones.cyclenet import CycleBlock
from cyclemlp_backbones.operators import REBUILDS, rebuilt_in_backward

WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0]], "float32")


def exp_times_weight(x, rebuild):
    """exp(x) W; the gradient of W wants exp(x). Returns W too."""
    y, weight = x.exp(), paddle.to_tensor(WEIGHT, stop_gradient=False)
    with rebuilt_in_backward(y, rebuild):
        return paddle.matmul(y, weight), weight


def test_backward_asks_for_what_was_not_kept_and_uses_it():
    x = paddle.randn([3, 2])
    x.stop_gradient = False
    asked = []

    def rebuild():
        asked.append(paddle.is_grad_enabled())
        return x.exp()

    y, weight = exp_times_weight(x, rebuild)
    assert asked == []
    y.sum().backward()
    assert asked == [False] * REBUILDS  # and recorded nothing
    np.testing.assert_allclose(x.grad.numpy(), np.exp(x.numpy()) * WEIGHT.sum(1), rtol=1e-5)
    np.testing.assert_allclose(weight.grad.numpy(), np.exp(x.numpy()).sum(0)[:, None] * [[1, 1]], rtol=1e-5)
    y, weight = exp_times_weight(x, lambda: paddle.zeros([3, 2]))
    y.sum().backward()
    assert weight.grad.numpy().any() != REBUILDS  # nothing else was kept in its place


def test_everything_is_kept_without_gradients_and_within_hooks_of_a_callers_own():
    def never():
        raise AssertionError("asked")

    x = paddle.randn([3, 2])
    exp_times_weight(x, never)
    x.stop_gradient = False
    kept = []
    weight, more = (paddle.to_tensor(WEIGHT, stop_gradient=False) for _ in range(2))
    with saved_tensors_hooks(lambda saved: kept.append(saved.clone()) or len(kept) - 1, lambda number: kept[number]):
        with rebuilt_in_backward(x, never):
            y = paddle.matmul(x, weight)
        y = paddle.matmul(y, more)
    y.sum().backward()
    np.testing.assert_allclose(weight.grad.numpy(), np.outer(x.numpy().sum(0), WEIGHT.sum(1)), rtol=1e-5)
    assert len(kept) == 4  # the factors of both products


def test_hooks_end_with_the_block_even_by_an_error():
    x = paddle.randn([3, 4])
    x.stop_gradient = False
    with pytest.raises(ZeroDivisionError), rebuilt_in_backward(x, lambda: x):
        raise ZeroDivisionError
    with saved_tensors_hooks(lambda saved: saved.clone(), lambda saved: saved):  # Paddle would refuse a second pair
        pass


@pytest.fixture
def block():
    paddle.seed(3)
    block = CycleBlock(8, 2.0, 0.0)
    for parameter in block.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.4)
    return block


def run_and_differentiate(run, block, x):
    for tensor in (x, *block.parameters()):
        tensor.clear_gradient(False)
    y = run(x)
    (y * paddle.cos(paddle.arange(y.size, dtype="float32")).reshape(y.shape)).sum().backward()
    return [y.numpy(), x.grad.numpy(), *(parameter.grad.numpy() for parameter in block.parameters())]


def plain(block):
    def run(x):
        with saved_tensors_hooks(lambda saved: saved.clone(), lambda saved: saved):
            return block(x)

    return run


@pytest.mark.parametrize(
    "wrap",
    [
        lambda block: block,
        lambda block: block.recomputing,
        lambda block: lambda x: recompute(block, x, use_reentrant=True),
        lambda block: lambda x: recompute(block, x, use_reentrant=False, preserve_rng_state=False),
    ],
    ids=["rebuilding", "use_recompute", "a user's recompute", "a user's recompute by hooks"],
)
def test_gradients_are_the_same(block, wrap):
    x = paddle.randn([2, 5, 7, 8])
    x.stop_gradient = False
    expected = run_and_differentiate(plain(block), block, x)
    for actual, wanted in zip(run_and_differentiate(wrap(block), block, x), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))


def test_the_graph_gives_its_gradients_twice_where_it_is_retained(block):
    x = paddle.randn([1, 4, 4, 8])
    x.stop_gradient = False
    y = block(x).sum()
    first, second = (paddle.grad(y, x, retain_graph=True)[0].numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_block_keeps_neither_repeated_gates_nor_gated_sum_nor_activated_features(block, monkeypatch):
    """Counted where Paddle hands over what backward would keep."""
    rebuilt = []
    hooks = operators.saved_tensors_hooks

    def counting(pack, unpack):
        def count(saved):
            kept = pack(saved)
            if kept is None:
                rebuilt.append(tuple(saved.shape))
            return kept

        return hooks(count, unpack)

    monkeypatch.setattr(operators, "saved_tensors_hooks", counting)
    x = paddle.randn([2, 3, 3, 8])
    x.stop_gradient = False
    block(x)
    maps = [shape for shape in rebuilt if len(shape) == 4]
    assert maps == [(2, 3, 3, 8)] * 4 * REBUILDS  # three gates, the gated sum
    rows = [shape for shape in rebuilt if len(shape) == 2]
    assert rows == [(2, 2), (18, 16)] * REBUILDS  # of the gates' Mlp and of the block's
