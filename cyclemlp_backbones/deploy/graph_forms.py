"""Forms that exported graphs run, or run fast, in: an export's choice, the network itself has one form.

The plain graph was slower with Paddle's predictor, with and without oneDNN, and a little so with ONNX Runtime. On a GPU
these forms have not been measured, and exports for one keep the plain graph.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from cyclemlp_backbones.cyclenet import CycleMixer, CycleNet, Mlp, by_residue, with_zeros
from cyclemlp_backbones.fast_cpu import rows_of_all

_END = 2**31 - 1  # of a slice that goes on to the end


@contextlib.contextmanager
def cpu_graph_forms(model: nn.Layer) -> Iterator[None]:
    """While it lasts, every CycleNet in `model` is recorded in the forms for a CPU.

    The mixers of the first two stages are merged, one matrix per sample: their maps have the more positions than twice
    their channels, where that pays. A graph with open sizes cannot ask.
    """
    networks = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, CycleNet)]
    before = {}
    for network in networks:
        for layer in network.sublayers():
            if isinstance(layer, Mlp):
                before[layer] = type(layer)
                layer.__class__ = _RowsMlp
        for block in [*network.network[0], *network.network[2]]:
            if block.attn.reweight is not None:  # a plain sum is one graph of products already
                before[block.attn] = type(block.attn)
                block.attn.__class__ = _MergedMixer
    try:
        yield
    finally:
        for layer, kind in before.items():
            layer.__class__ = kind


class _RowsMlp(Mlp):
    """Mlp over a matrix of rows, of which oneDNN and ONNX Runtime fuse more."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.fc2(F.gelu(self.fc1(x.reshape([-1, x.shape[-1]]))))
        sizes = paddle.shape(x)
        return rows.reshape([*(sizes[axis] for axis in range(len(x.shape) - 1)), rows.shape[-1]])


class _MergedMixer(CycleMixer):
    """The branches, gates and projection as one matrix per sample, a linear map of what the branches read."""

    def forward(self, x: Tensor) -> Tensor:
        groups = by_residue(x, 3)
        one, two = groups[1:]
        shifted = [_read_next(one, 2), _read_last(two, 2), _read_next(one, 1), _read_last(two, 1)]
        read = paddle.concat([*groups, *shifted], axis=3)
        weights = [self.sfc_h.weight.flatten(1), self.sfc_w.weight.flatten(1), self.mlp_c.weight.t()]  # [C_out, C_in]
        weights = [paddle.concat(by_residue(weight, 3), axis=1).t() for weight in weights]
        biases = [self.sfc_h.bias, self.sfc_w.bias]

        gates = self.gates(paddle.matmul(read.mean([1, 2]), rows_of_all(*weights)) + biases[0] + biases[1])
        gated = [weight * gate.unsqueeze(1) for weight, gate in zip(weights, gates)]
        merged = paddle.matmul(rows_of_all(*gated), self.proj.weight)
        bias = self.proj(biases[0] * gates[0] + biases[1] * gates[1])

        y = paddle.matmul(read.reshape([0, -1, read.shape[3]]), merged) + bias.unsqueeze(1)
        sizes = paddle.shape(x)
        return y.reshape([sizes[0], sizes[1], sizes[2], self.channels])


def _read_next(x: Tensor, axis: int) -> Tensor:
    """`x` read at p + 1 along `axis`, zero outside."""
    return paddle.slice(with_zeros(x, axis, 0, 1), [axis], [1], [_END])


def _read_last(x: Tensor, axis: int) -> Tensor:
    """`x` read at p - 1 along `axis`, zero outside."""
    return paddle.slice(with_zeros(x, axis, 1, 0), [axis], [0], [-1])


@contextlib.contextmanager
def open_size_forms(*, products: bool) -> Iterator[None]:
    """While it lasts, `F.interpolate` and `F.adaptive_avg_pool2d` record what every runtime reads with open sizes.

    Paddle 3.3.1 hands no list of doubles, which an interpolation's factors are, to its oneDNN kernels; nor does
    paddle2onnx read one, or convert pooling to cells of an open map. Interpolation goes by sizes, or with `products`,
    as pooling always, by products with a small matrix for each axis.
    """
    pool, interpolate = F.adaptive_avg_pool2d, F.interpolate
    signature = inspect.signature(interpolate)

    @paddle.jit.not_to_static
    @functools.wraps(pool)
    def pool_by_products(x: Any, output_size: Any, data_format: str = "NCHW", name: str | None = None) -> Any:
        cells = output_size if isinstance(output_size, (list, tuple)) else [output_size] * 2
        if data_format != "NCHW" or not all(isinstance(count, int) for count in cells):
            return pool(x, output_size, data_format, name)
        sizes = paddle.shape(x)
        return _resampled(x, *(_cells(sizes[axis], count) for axis, count in zip((2, 3), cells)))

    @paddle.jit.not_to_static
    @functools.wraps(interpolate)
    def by_size(*arguments: Any, **named: Any) -> Any:
        given = signature.bind(*arguments, **named)
        given.apply_defaults()
        told = given.arguments
        x, size, factor, mode = (told[name] for name in ("x", "size", "scale_factor", "mode"))
        if len(x.shape) == 4 and isinstance(factor, (int, float)) and factor == int(factor):
            size = paddle.shape(x)[2:] * int(factor)
        if len(x.shape) == 4 and hasattr(size, "reshape"):
            # ONNX's checker wants two of them, and does not know the shape of every map that they are taken from.
            told.update(size=size * paddle.ones([2], size.dtype), scale_factor=None)
        known = mode == "bilinear" or (mode == "nearest" and not told["align_corners"])
        others = (told["scale_factor"], told["align_mode"] or None, told.get("antialias") or None)
        if not (products and known and others == (None,) * 3 and told["data_format"] in (None, "NCHW")):
            return interpolate(*given.args, **given.kwargs)
        sizes = paddle.shape(x)
        matrices = (_between(sizes[axis + 2], told["size"][axis], mode, told["align_corners"]) for axis in (0, 1))
        return _resampled(x, *matrices)

    F.adaptive_avg_pool2d, F.interpolate = pool_by_products, by_size
    try:
        yield
    finally:
        F.adaptive_avg_pool2d, F.interpolate = pool, interpolate


def _resampled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`x` [N, C, H, W] by `rows` [H', H] and `columns` [W', W]: [N, C, H', W'].

    oneDNN multiplies a convolution's map in the layout that it has, which three dimensions undo. With one column on the
    left, Paddle 3.3.1's reads beyond it: a column of zeros is added.
    """
    channels = x.shape[1]
    sizes, height, width = paddle.shape(x), paddle.shape(rows)[0], paddle.shape(columns)[0]
    x, columns = with_zeros(x.reshape([-1, sizes[2], sizes[3]]), 2, 0, 1), with_zeros(columns, 1, 0, 1)
    y = paddle.matmul(paddle.matmul(rows, x).reshape([-1, sizes[3] + 1]), columns, transpose_y=True)
    return y.reshape([sizes[0], channels, height, width])


def _cells(size: Tensor, count: int) -> Tensor:
    """[count, size]: the mean over each of `count` cells, which share a position where `size` is no multiple."""
    ends = paddle.arange(0, count + 1, dtype="float32").unsqueeze(1) * size.astype("float32") / count
    first, end = paddle.floor(ends[:-1]), paddle.ceil(ends[1:])
    positions = paddle.arange(0, size, dtype="float32")
    return F.relu(paddle.minimum(positions + 1, end) - paddle.maximum(positions, first)) / (end - first)


def _between(size: Tensor, target: Any, mode: str, corners: bool) -> Tensor:
    """[target, size]: the shares that an axis's positions have in those it is interpolated to."""
    positions, place = (paddle.arange(0, count, dtype="float32") for count in (size, target))
    size, target = (paddle.shape(counted)[0].astype("float32") for counted in (positions, place))
    factor = size / target * (target > 1).astype("float32")  # Paddle takes the first position where it wants one
    if mode == "nearest":
        place = paddle.floor(place * factor)
    elif corners:
        place = place * ((size - 1) / paddle.clip(target - 1, min=1.0))
    else:
        place = paddle.clip((place + 0.5) * factor - 0.5, min=0.0)
    return F.relu(1 - paddle.abs(paddle.minimum(place, size - 1).unsqueeze(1) - positions))
