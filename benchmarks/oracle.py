"""CycleMLP as its earlier implementations compute it: CycleFC on `deform_conv2d`, everything else in plain layers.

It shares no code with `cyclemlp_backbones` but the table of offsets, and takes the same state dict.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.vision.ops import deform_conv2d

from cyclemlp_backbones import VARIANTS, cycle_offsets


class DeformCycleFC(nn.Layer):
    """[N, H, W, C] -> [N, H, W, C]: a 1x1 deformable convolution whose offsets are constant."""

    def __init__(self, channels: int, kernel_size: tuple[int, int]):
        super().__init__()
        self.channels = channels
        self.weight = self.create_parameter([channels, channels, 1, 1])
        self.bias = self.create_parameter([channels], is_bias=True)
        offsets = cycle_offsets(channels, kernel_size).reshape([1, 2 * channels, 1, 1]).astype("float32")
        self.register_buffer("offset", paddle.to_tensor(offsets), persistable=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose([0, 3, 1, 2])  # (N, H, W, C) -> (N, C, H, W)
        offset = self.offset.expand([x.shape[0], -1, *x.shape[2:]])
        x = deform_conv2d(x, offset, self.weight, self.bias, deformable_groups=self.channels)
        return x.transpose([0, 2, 3, 1])  # (N, C, H, W) -> (N, H, W, C)


class Mlp(nn.Layer):
    def __init__(self, in_features: int, hidden_features: int, out_features: int):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Mixer(nn.Layer):
    """The paper's equations as they stand there: [N, H, W, C] -> [N, H, W, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.mlp_c = nn.Linear(channels, channels, bias_attr=False)
        self.sfc_h = DeformCycleFC(channels, (1, 3))
        self.sfc_w = DeformCycleFC(channels, (3, 1))
        self.reweight = Mlp(channels, channels // 4, channels * 3)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, _, channels = x.shape
        h, w, c = self.sfc_h(x), self.sfc_w(x), self.mlp_c(x)
        a = (h + w + c).transpose([0, 3, 1, 2]).flatten(2).mean(2)
        a = F.softmax(self.reweight(a).reshape([batch, channels, 3]).transpose([2, 0, 1]), axis=0)
        a = a.unsqueeze(2).unsqueeze(2)
        return self.proj(h * a[0] + w * a[1] + c * a[2])


class Block(nn.Layer):
    def __init__(self, channels: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, epsilon=1e-5)
        self.attn = Mixer(channels)
        self.norm2 = nn.LayerNorm(channels, epsilon=1e-5)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Projection(nn.Layer):
    """The stem, or the downsampling between stages; maps are channels-last outside."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int, *, image: bool
    ):
        super().__init__()
        self.proj = nn.Conv2D(in_channels, out_channels, kernel_size, stride, padding)
        self.image = image

    def forward(self, x: Tensor) -> Tensor:
        if not self.image:
            x = x.transpose([0, 3, 1, 2])  # (N, H, W, C) -> (N, C, H, W)
        return self.proj(x).transpose([0, 2, 3, 1])  # (N, C, H, W) -> (N, H, W, C)


class DeformCycleNet(nn.Layer):
    """The classifier of a variant, without stochastic depth: image [N, 3, H, W] -> logits [N, num_classes]."""

    def __init__(self, variant: str, num_classes: int = 1000):
        super().__init__()
        size = VARIANTS[variant]
        self.patch_embed = Projection(3, size.embed_dims[0], 7, 4, 2, image=True)
        self.network = nn.LayerList()
        for stage, (depth, channels, mlp_ratio) in enumerate(zip(size.depths, size.embed_dims, size.mlp_ratios)):
            if stage > 0:
                self.network.append(Projection(size.embed_dims[stage - 1], channels, 3, 2, 1, image=False))
            self.network.append(nn.Sequential(*[Block(channels, mlp_ratio) for _ in range(depth)]))
        self.norm = nn.LayerNorm(size.embed_dims[-1], epsilon=1e-5)
        self.head = nn.Linear(size.embed_dims[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        for layer in self.network:
            x = layer(x)
        return self.head(self.norm(x).flatten(1, 2).mean(1))
