"""Forms of the network that exported graphs run fast in on a CPU: an export's choice, the network itself has one form.

The plain graph was slower with Paddle's predictor, with and without oneDNN, and a little so with ONNX Runtime. On a GPU
these forms have not been measured, and exports for one keep the plain graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
