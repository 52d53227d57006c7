"""Semantic FPN as the CycleMLP and PVT papers use it. Pure Paddle: PaddleSeg only registers it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from cyclemlp_backbones.checks import check_fraction, check_integer
from cyclemlp_backbones.weights.loading import load_model_weights

_STRIDES = (4, 8, 16, 32)


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, initializer: nn.initializer.Initializer, *, bias: bool
) -> nn.Conv2D:
    return nn.Conv2D(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        weight_attr=paddle.ParamAttr(initializer=initializer),
        bias_attr=paddle.ParamAttr(initializer=nn.initializer.Constant(0.0)) if bias else False,
    )


def _size(x: Tensor) -> Sequence[int] | Tensor:
    """Height and width of `x`; as a tensor where a graph is built, so that an exported model takes any size."""
    return x.shape[2:] if paddle.in_dynamic_mode() else paddle.shape(x)[2:]


class FeaturePyramid(nn.Layer):
    """FPN (Lin et al., 2017): maps [N, C_i, H_i, W_i], high to low resolution -> as many of [N, channels, H_i, W_i].

    1x1 laterals, nearest upsampling to the exact size of the finer map, 3x3 outputs; biases, no norm, no activation.
    """

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        xavier = nn.initializer.XavierUniform()
        self.lateral_convs = nn.LayerList([_conv(width, channels, 1, xavier, bias=True) for width in in_channels])
        self.fpn_convs = nn.LayerList([_conv(channels, channels, 3, xavier, bias=True) for _ in in_channels])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps)]
        merged = [laterals[-1]]
        for lateral in reversed(laterals[:-1]):
            merged.insert(0, lateral + F.interpolate(merged[0], size=_size(lateral), mode="nearest"))
        return [conv(x) for conv, x in zip(self.fpn_convs, merged)]


class ConvNormReLU(nn.Layer):
    """3x3 convolution without bias, BatchNorm, ReLU: [N, in_channels, H, W] -> [N, out_channels, H, W]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = _conv(in_channels, out_channels, 3, nn.initializer.KaimingNormal(), bias=False)
        self.norm = nn.BatchNorm2D(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class SemanticFPNHead(nn.Layer):
    """Semantic branch of Panoptic FPN (Kirillov et al., 2019, section 3): pyramid -> logits at the finest map's size.

    A level whose stride is 2^k times the finest one's has max(1, k) convolutions, each followed by an upsampling by two
    if k > 0. Their sum goes through 2-d dropout and a 1x1 classifier.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        channels: int,
        strides: Sequence[int],
        *,
        dropout_ratio: float,
        align_corners: bool,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.doublings = [(stride // strides[0]).bit_length() - 1 for stride in strides]
        self.scale_heads = nn.LayerList()
        for doublings in self.doublings:
            widths = [in_channels] + [channels] * max(1, doublings)
            self.scale_heads.append(nn.LayerList([ConvNormReLU(*pair) for pair in itertools.pairwise(widths)]))
        self.dropout = nn.Dropout2D(dropout_ratio)
        self.conv_seg = _conv(channels, num_classes, 1, nn.initializer.Normal(std=0.01), bias=True)

    def _resize(self, x: Tensor, size: Sequence[int] | Tensor) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        total, size = None, _size(maps[0])
        for x, layers, doublings in zip(maps, self.scale_heads, self.doublings):
            for layer in layers:
                x = layer(x)
                if doublings:
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=self.align_corners)
            # Sides that are no multiple of the stride were rounded up, so that x may be larger than the finest map.
            total = x if total is None else total + self._resize(x, size)
        return self.conv_seg(self.dropout(total))


class SemanticFPN(nn.Layer):
    """Semantic FPN on a feature pyramid: image [N, C, H, W] -> [logits [N, num_classes, H, W]].

    H and W may be any that the backbone takes. The layout is that of the paper's segmentation results, FPN and FPNHead
    of mmsegmentation: FPN width 256, head width 128, dropout 0.1. The list has one entry, as PaddleSeg expects.

    Args:
        num_classes: classes to tell apart.
        backbone: a layer whose `feat_channels` lists the channels of the maps that it returns, high to low resolution.
            Their strides are those of `stage_specs` if it has that, else 4, 8, 16, 32.
        fpn_channels: width of the pyramid.
        head_channels: width of the head.
        dropout_ratio: 2-d dropout before the classifier.
        align_corners: how bilinear resizing maps positions; True suits odd sizes such as 769.
        pretrained: path or URL of a weights file of this whole model, which has to fit exactly.

    Raises ValueError for a backbone that does not say its channels or a value that is not allowed, CheckpointError for
    weights that do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Layer,
        *,
        fpn_channels: int = 256,
        head_channels: int = 128,
        dropout_ratio: float = 0.1,
        align_corners: bool = False,
        pretrained: str | os.PathLike | None = None,
    ):
        super().__init__()
        check_integer("num_classes", num_classes, 1)
        check_integer("fpn_channels", fpn_channels, 1)
        check_integer("head_channels", head_channels, 1)
        check_fraction("dropout_ratio", dropout_ratio)
        feat_channels = getattr(backbone, "feat_channels", None)
        if not feat_channels:
            raise ValueError(
                f"the backbone {type(backbone).__name__} has no feat_channels; SemanticFPN takes a backbone that lists "
                "the channels of its maps there"
            )
        self.backbone = backbone
        self.neck = FeaturePyramid(feat_channels, fpn_channels)
        self.head = SemanticFPNHead(
            num_classes,
            fpn_channels,
            head_channels,
            _strides(backbone, len(feat_channels)),
            dropout_ratio=dropout_ratio,
            align_corners=align_corners,
        )
        self.align_corners = align_corners
        if pretrained is not None:
            load_model_weights(self, pretrained)

    def forward(self, image: Tensor) -> list[Tensor]:
        logits = self.head(self.neck(self.backbone(image)))
        return [F.interpolate(logits, size=_size(image), mode="bilinear", align_corners=self.align_corners)]


def _strides(backbone: nn.Layer, levels: int) -> tuple[int, ...]:
    specs = getattr(backbone, "stage_specs", None)
    if specs is not None:
        return tuple(spec.stride for spec in specs)
    if levels != len(_STRIDES):
        raise ValueError(
            f"the backbone {type(backbone).__name__} returns {levels} maps and has no stage_specs; "
            f"without them SemanticFPN takes {len(_STRIDES)} maps of strides {', '.join(map(str, _STRIDES))}"
        )
    return _STRIDES
