"""CycleMLP as its earlier implementations compute it: the plain network, with CycleFC on `deform_conv2d`."""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.vision.ops import deform_conv2d

from cyclemlp_backbones import CycleFC, CycleNet, build_classifier, cycle_offsets, fast_cpu


class DeformCycleFC(CycleFC):
    """CycleFC as a 1x1 deformable convolution whose offsets are constant: [N, H, W, C_in] -> [N, H, W, C_out]."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose([0, 3, 1, 2])  # (N, H, W, C) -> (N, C, H, W)
        offset = self.offset.expand([x.shape[0], -1, *x.shape[2:]])
        x = deform_conv2d(x, offset, self.weight, self.bias, deformable_groups=self.in_channels)
        return x.transpose([0, 2, 3, 1])  # (N, C, H, W) -> (N, H, W, C)


def deform_classifier(variant: str, num_classes: int = 1000) -> CycleNet:
    """The classifier of a variant without stochastic depth and without the fast forms for a CPU."""
    model = build_classifier(variant, num_classes=num_classes, drop_path_rate=0.0)
    for layer in model.sublayers():
        if type(layer).__module__ == fast_cpu.__name__:
            layer.__class__ = type(layer).__bases__[0]
        if type(layer) is CycleFC:
            offsets = cycle_offsets(layer.in_channels, layer.kernel_size).reshape([1, 2 * layer.in_channels, 1, 1])
            layer.register_buffer("offset", paddle.to_tensor(offsets, dtype="float32"), persistable=False)
            layer.__class__ = DeformCycleFC
    return model
