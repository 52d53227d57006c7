"""The block's mixer: three branches, weighted per channel and sample. Feature maps are [N, H, W, C]."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from cyclemlp_backbones.layers import CycleFC, Linear, Mlp
from cyclemlp_backbones.operators import (
    in_dygraph,
    linear,
    rebuilt_in_backward,
    repeat_rows,
    reshape_positions,
    runs_on_cpu,
    scale_channels,
    spatial_mean,
    wants_gradient,
)
from cyclemlp_backbones.shift import cross_rows, cross_shift, group_by_offset


def _gated_sum(branches: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """Branches [N, H, W, C], each weighted by its gates [N, C], and summed."""
    h, w, c = map(scale_channels, branches, gates)
    return h + w + c


class CycleMixer(nn.Layer):
    """Spatial and channel mixing of a block (paper section 3.3): [N, H, W, C] -> [N, H, W, C].

    Three branches, CycleFC along the width, CycleFC along the height and a plain Linear, are weighted per channel and
    sample by a softmax over the branches, which is computed from the mean of their sum; then a Linear projects the sum.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.mlp_c = Linear(channels, channels, bias=False)
        self.sfc_h = CycleFC(channels, channels, (1, 3))  # published name; it shifts along the width
        self.sfc_w = CycleFC(channels, channels, (3, 1))  # published name; it shifts along the height
        self.reweight = Mlp(channels, channels // 4, channels * 3)
        self.proj = Linear(channels, channels)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        if self._merging_pays(x):
            return self._merged(x)
        h, w, c = self.sfc_h(x), self.sfc_w(x), self.mlp_c(x)
        gates = self._gates(spatial_mean(h + w + c))
        if runs_on_cpu(x):
            return self._project_on_cpu([h, w, c], gates)
        return self.proj(_gated_sum([h, w, c], gates))

    def _project_on_cpu(self, branches: list[Tensor], gates: list[Tensor]) -> Tensor:
        total = _gated_sum(branches, gates)
        kept, kept_gates = [branch.detach() for branch in branches], [gate.detach() for gate in gates]
        with rebuilt_in_backward(total, lambda: _gated_sum(kept, kept_gates)):
            y = self.proj(total)
        return y

    def _gates(self, summary: Tensor) -> list[Tensor]:
        """The weights of `sfc_h`, `sfc_w` and `mlp_c`, each [N, C], from the mean [N, C] of the branches' sum."""
        # Branch is the fastest axis of the published weights: (N, 3C) -> (N, C, 3).
        return F.softmax(self.reweight(summary).reshape([0, self.channels, 3]), axis=-1).unbind(-1)

    def _merging_pays(self, x: Tensor) -> bool:
        """One matrix per sample costs as much as the product with about 2 C positions; its gradient costs far more."""
        if in_dygraph():
            if not runs_on_cpu(x) or x.shape[1] * x.shape[2] <= 2 * self.channels or x.shape[0] == 0:
                return False
            if paddle.is_grad_enabled() and wants_gradient(x, *self.parameters()):
                return False
        elif self.training or self.channels > 128:  # a graph's map has no size yet; wide stages have small ones
            return False
        # A hook on a branch wants the branch's own output.
        merged = (self.mlp_c, self.sfc_h, self.sfc_w, self.proj)
        return not any(layer._forward_pre_hooks or layer._forward_post_hooks for layer in merged)

    def _merged(self, x: Tensor) -> Tensor:
        """The branches, gates and projection as one matrix per sample: linear maps of what the branches read."""
        merged_input = cross_shift(x)
        biases = paddle.stack([self.sfc_h.bias, self.sfc_w.bias])
        weights = [group_by_offset(w, 3) for w in (self.sfc_h.weight, self.sfc_w.weight, self.mlp_c.weight.t())]

        gates = self._gates(paddle.matmul(spatial_mean(merged_input), cross_rows(*weights)) + biases.sum(0))
        rows = weights[0].shape[0]
        gated = [weight * repeat_rows(gate.unsqueeze(1), rows) for weight, gate in zip(weights, gates)]
        merged_weight = paddle.matmul(cross_rows(*gated), self.proj.weight)
        bias = (biases * paddle.stack(gates[:2], axis=1)).sum(1)
        bias = linear(bias, self.proj.weight, self.proj.bias).unsqueeze(1)

        y = paddle.matmul(merged_input.reshape([0, -1, merged_input.shape[-1]]), merged_weight)
        y = y + (repeat_rows(bias, y.shape[1]) if in_dygraph() else bias)
        return reshape_positions(y, x)
