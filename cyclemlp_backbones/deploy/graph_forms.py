"""Forms that exported graphs run, or run fast, in: an export's choice, the network itself has one form.

On a GPU these forms have not been measured, and exports for one keep the plain graph.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from cyclemlp_backbones.cyclenet import CycleBlock, CycleMixer, CycleNet, with_zeros

_END = 2**31 - 1  # of a slice that goes on to the end
_PADDLE_2 = paddle.__version__.startswith("2.")  # whose convolution wants to know the channels of an open map


@contextlib.contextmanager
def cpu_graph_forms(model: nn.Layer, *, onnx: bool = False) -> Iterator[None]:
    """While it lasts, every CycleNet in `model` is recorded in the form for a CPU, `GraphNet`, which has its weights.

    `onnx`: with F.pad, which corrupts memory under Paddle's oneDNN.
    """
    networks = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, CycleNet)]
    for network in networks:
        network.graph = GraphNet(network, onnx)
        network.__dict__["forward_features"] = network.graph.forward
    try:
        yield
    finally:
        for network in networks:
            del network.graph, network.__dict__["forward_features"]


class _Map(NamedTuple):
    """What the blocks of a stage share, which hangs on the size of its map alone."""

    sizes: Tensor
    """N, H, W, C."""
    ones: Tensor
    """[N, H, W, 1]."""
    share: Tensor
    """[N, 1, H * W], of a position in a mean, which both runtimes take faster as a product."""
    borders: tuple[Tensor, ...]
    """Zeros [N, 1, W, C] and [N, H + 2, 1, C]; nothing where F.pad pads."""


class GraphNet(nn.Layer):
    """A CycleNet's `forward_features` in few operators, on copies of its weights that are rearranged once, here.

    Features are rows, [N, H * W, C]: oneDNN and ONNX Runtime fuse their products with what follows, and each operator
    on a map [N, H, W, C] reads or makes a shift. Within a stage, channels are in the order of their residues by 3, so
    that those which a mixer reads at one offset are one slice. The mixers of the first two stages are merged: their
    maps have the more positions than twice their channels, where that pays. A graph with open sizes cannot ask.
    """

    def __init__(self, network: CycleNet, onnx: bool):
        super().__init__()
        self.onnx = onnx
        self.projections, self.stages, self.norms = nn.LayerList(), nn.LayerList(), nn.LayerList()
        self.natural: list[list[int]] = []  # where the natural order's channels are, for stages that are given out
        order = np.arange(network.in_channels)
        for stage, index in enumerate((0, 2, 4, 6)):
            old = network.network[index - 1].proj if stage else network.patch_embed.proj
            given, channels = order, old.weight.shape[0]
            order = np.concatenate([np.arange(residue, channels, 3) for residue in range(3)])
            projection = nn.Conv2D(len(given), channels, old._kernel_size, old._stride, old._padding)
            self.projections.append(_with(projection, old.weight.numpy()[order][:, given], old.bias.numpy()[order]))
            self.stages.append(nn.LayerList([_Block(block, order, stage < 2) for block in network.network[index]]))
            name = network._norms.get(stage)
            self.norms.append(nn.Identity() if name is None else _norm(getattr(network, name), order))
            self.natural.append([] if name is None else np.argsort(order).tolist())

    def forward(self, image: Tensor) -> list[Tensor]:
        """As `CycleNet.forward_features`."""
        maps, x = [], image
        for projection, blocks, norm, natural in zip(self.projections, self.stages, self.norms, self.natural):
            x = projection(x).transpose([0, 2, 3, 1])
            sizes, ones = paddle.shape(x), paddle.ones_like(x[:, :, :, :1])
            borders = () if self.onnx else (x[:, :1], with_zeros(x, 1, 1, 1)[:, :, :1])
            share = F.softmax(ones.reshape([0, 1, -1]))
            stage = _Map(sizes, ones, share, tuple(paddle.zeros_like(border) for border in borders))
            known = [sizes[0], sizes[1], sizes[2], x.shape[3]] if _PADDLE_2 else sizes
            x = x.reshape([0, -1, x.shape[3]])
            for block in blocks:
                x = block(x, stage)
            if natural:
                y = norm(x).reshape(known).transpose([0, 3, 1, 2])
                maps.append(paddle.gather(y, paddle.to_tensor(natural), axis=1))
            x = x.reshape(known).transpose([0, 3, 1, 2])
        return maps


def _with(layer: nn.Layer, weight: np.ndarray, bias: np.ndarray | None) -> nn.Layer:
    layer.weight.set_value(weight)
    if bias is not None:
        layer.bias.set_value(bias)
    return layer


def _norm(old: nn.LayerNorm, order: np.ndarray) -> nn.Layer:
    return _with(nn.LayerNorm(len(order), old._epsilon), old.weight.numpy()[order], old.bias.numpy()[order])


def _linear(weight: np.ndarray, bias: np.ndarray | None = None) -> nn.Layer:
    return _with(nn.Linear(*weight.shape, bias_attr=None if bias is not None else False), weight, bias)


class _Block(nn.Layer):
    def __init__(self, block: CycleBlock, order: np.ndarray, merged: bool):
        super().__init__()
        self.norm1, self.norm2 = _norm(block.norm1, order), _norm(block.norm2, order)
        kind = _Sum if block.attn.reweight is None else _Merged if merged else _Gated
        self.mixer = kind(block.attn, order)
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        self.fc1 = _linear(fc1.weight.numpy()[order], fc1.bias.numpy())
        self.fc2 = _linear(fc2.weight.numpy()[:, order], fc2.bias.numpy()[order])

    def forward(self, x: Tensor, stage: _Map) -> Tensor:
        x = x + self.mixer(self.norm1(x), stage)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class _Mixer(nn.Layer):
    """Reading, for the forms of CycleMixer below: rows [N, H * W, C] -> rows, in a stage's order of channels."""

    def __init__(self, mixer: CycleMixer, order: np.ndarray):
        super().__init__()
        channels = self.channels = mixer.channels
        self.first, self.second = (int(np.sum(order % 3 < residue)) for residue in (1, 2))  # where residues begin
        c, h, w = mixer.mlp_c, mixer.sfc_h, mixer.sfc_w
        weights = [c.weight.numpy(), *(one.weight.numpy().reshape([channels, channels]).T for one in (h, w))]
        self.weights = np.stack(weights)[:, order]  # [3, C_in, C_out]
        self.biases = np.stack([np.zeros(channels, np.float32), np.asarray(h.bias), np.asarray(w.bias)])  # [3, C_out]

    def shifted(self, x: Tensor, borders: tuple[Tensor, ...]) -> list[Tensor]:
        """Residues 1 and 2 of a map as `sfc_h` reads them, along the width, and as `sfc_w` does, along the height."""
        if borders:
            row, column = borders
            x = paddle.concat([column, paddle.concat([row, x, row], axis=1), column], axis=2)
        else:
            x = F.pad(x, [0, 0, 1, 1, 1, 1, 0, 0])
        return [
            paddle.slice(x, [1, 2, 3], [1, 2, self.first], [-1, _END, self.second]),
            paddle.slice(x, [1, 2, 3], [1, 0, self.second], [-1, -2, _END]),
            paddle.slice(x, [1, 2, 3], [2, 1, self.first], [_END, -1, self.second]),
            paddle.slice(x, [1, 2, 3], [0, 1, self.second], [-2, -1, _END]),
        ]

    def rows_of_all(self, weights: np.ndarray, before: int = 0) -> np.ndarray:
        """Rows for x and `shifted` of it, [before + 7 C / 3, C_out], of the branches' [3, before + C, C_out].

        All branches read residue 0, and the `before` rows, in one place.
        """
        first = before + self.first
        return np.concatenate([weights[:, :first].sum(0), *weights[:, first:]])


class _Sum(_Mixer):
    """The branches and projection without `reweight` as one matrix."""

    def __init__(self, mixer: CycleMixer, order: np.ndarray):
        super().__init__(mixer, order)
        weight, bias = mixer.proj.weight.numpy()[:, order], mixer.proj.bias.numpy()[order]
        self.proj = _linear(self.rows_of_all(self.weights) @ weight, self.biases.sum(0) @ weight + bias)

    def forward(self, x: Tensor, stage: _Map) -> Tensor:
        x = x.reshape(stage.sizes)
        read = paddle.concat([x, *self.shifted(x, stage.borders)], axis=3)
        return self.proj(read.reshape([0, -1, self.proj.weight.shape[0]]))


class _Merged(_Mixer):
    """The branches, gates and projection as one matrix per sample, a linear map of 1 and what the branches read.

    A row and a column more hold the biases: a branch takes [1, x] to [y, 1], the gates' sum to [y, 1] too.
    """

    def __init__(self, mixer: CycleMixer, order: np.ndarray):
        super().__init__(mixer, order)
        weights = np.zeros([3, self.channels + 1, self.channels + 1], np.float32)
        weights[:, 1:, :-1], weights[:, 0, :-1], weights[:, 0, -1] = self.weights, self.biases, 1
        self.branches = self.create_parameter(
            [1, *weights.shape],  # oneDNN wants as many axes as the gates have
            default_initializer=nn.initializer.Assign(weights[None]),
        )
        fc1, fc2 = mixer.reweight.fc1, mixer.reweight.fc2
        weight = self.rows_of_all(weights[:, :, :-1], 1) @ fc1.weight.numpy()
        weight[0] += fc1.bias.numpy()
        self.fc1 = _linear(weight)
        self.fc2 = _linear(*_by_branch(fc2, 1))
        self.proj = _linear(np.concatenate([mixer.proj.weight.numpy(), mixer.proj.bias.numpy()[None]])[:, order])

    def forward(self, x: Tensor, stage: _Map) -> Tensor:
        x = x.reshape(stage.sizes)
        read = paddle.concat([stage.ones, x, *self.shifted(x, stage.borders)], axis=3)
        read = read.reshape([0, -1, self.fc1.weight.shape[0]])
        hidden = F.gelu(self.fc1(paddle.matmul(stage.share, read)))
        gates = F.softmax(self.fc2(hidden).reshape([-1, 3, 1, self.channels + 1]), axis=1)
        gated = gates * self.branches  # as `rows_of_all`:
        by_all = paddle.slice(gated, [2], [0], [1 + self.first]).sum(1)
        by_one = paddle.slice(gated, [2], [1 + self.first], [_END])
        by_one = by_one.reshape([-1, 3 * (self.channels - self.first), self.channels + 1])
        return paddle.matmul(read, self.proj(paddle.concat([by_all, by_one], axis=1)))


class _Gated(_Mixer):
    """The branches, gated one by one."""

    def __init__(self, mixer: CycleMixer, order: np.ndarray):
        super().__init__(mixer, order)
        c, h, w = self.weights
        self.c, self.h, self.w = _linear(c), _linear(h, self.biases[1]), _linear(w, self.biases[2])
        fc1, fc2 = mixer.reweight.fc1, mixer.reweight.fc2
        self.fc1 = _linear(fc1.weight.numpy(), fc1.bias.numpy())
        self.fc2 = _linear(*_by_branch(fc2, 0))
        self.proj = _linear(mixer.proj.weight.numpy()[:, order], mixer.proj.bias.numpy()[order])

    def forward(self, x: Tensor, stage: _Map) -> Tensor:
        rows, x = x, x.reshape(stage.sizes)
        x0, (h1, h2, w1, w2) = paddle.slice(x, [3], [0], [self.first]), self.shifted(x, stage.borders)
        h, w = (paddle.concat(read, axis=3).reshape([0, -1, self.channels]) for read in ([x0, h1, h2], [x0, w1, w2]))
        c, h, w = self.c(rows), self.h(h), self.w(w)
        hidden = F.gelu(self.fc1(paddle.matmul(stage.share, h + w + c)))
        gates = F.softmax(self.fc2(hidden).reshape([-1, 3, self.channels]), axis=1).split(3, axis=1)
        return self.proj(c * gates[0] + h * gates[1] + w * gates[2])


def _by_branch(fc2: nn.Linear, columns: int) -> Iterator[np.ndarray]:
    """Weight and bias of a `reweight.fc2` that gives [N, 3, C + `columns`], as rows: the gates branch by branch, in the
    order of `_Mixer`; those of the columns more are equal."""
    for part in (fc2.weight.numpy(), fc2.bias.numpy()):
        c, h, w = (part.reshape([*part.shape[:-1], -1, 3])[..., branch] for branch in (2, 0, 1))
        gates = np.stack([c, h, w], axis=-2)
        yield np.pad(gates, [(0, 0)] * (gates.ndim - 1) + [(0, columns)]).reshape([*part.shape[:-1], -1])


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
