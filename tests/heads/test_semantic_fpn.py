"""Semantic FPN on its own: no toolkit is imported."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle import nn

from cyclemlp_backbones import CheckpointError, build_backbone
from cyclemlp_backbones.heads.semantic_fpn import SemanticFPN


def backbone(variant="b0", **arguments):
    network = build_backbone(variant, **arguments)
    network.feat_channels = [spec.channels for spec in network.stage_specs]
    return network


@pytest.mark.slow
def test_importing_it_needs_no_toolkit():
    code = (
        "import sys, cyclemlp_backbones.heads.semantic_fpn; "
        "sys.exit(not {'paddleseg', 'ppdet'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("variant", "millions"), [("b1", 18.91), ("b2", 30.56), ("b3", 42.14), ("b4", 55.55), ("b5", 79.35)]
)
def test_semantic_fpn_has_the_papers_size(variant, millions):
    model = SemanticFPN(150, backbone(variant))
    count = sum(int(np.prod(p.shape)) for p in model.parameters() if not p.stop_gradient)
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("align_corners", [False, True])
def test_semantic_fpn_gives_every_parameter_a_gradient_at_odd_sizes(align_corners):
    paddle.seed(0)
    model = SemanticFPN(5, backbone(), align_corners=align_corners, dropout_ratio=0.0)
    image = paddle.to_tensor(np.random.RandomState(0).standard_normal((2, 3, 75, 101)).astype("float32"))
    (logits,) = model(image)
    assert logits.shape == [2, 5, 75, 101]
    (logits**2).mean().backward()
    without = [name for name, p in model.named_parameters() if not p.stop_gradient and not p.grad.abs().max() > 0]
    assert without == []


def test_semantic_fpn_levels_pass_their_convolutions_and_upsamplings():
    """Stride 4: one convolution; 8: one and an upsampling; 16 and 32: two and three of both."""
    model = SemanticFPN(5, backbone())
    assert [len(layers) for layers in model.head.scale_heads] == [1, 1, 2, 3]
    assert model.head.doublings == [0, 1, 2, 3]
    skipping = SemanticFPN(5, backbone(out_indices=[0, 3]))
    assert [len(layers) for layers in skipping.head.scale_heads] == [1, 3]
    model.eval()
    maps = [paddle.zeros([1, 256, 64 // 2**level, 64 // 2**level]) for level in range(4)]
    blank = model.head(maps)
    for level in range(4):
        lit = list(maps)
        lit[level] = paddle.ones_like(maps[level])
        assert float((model.head(lit) - blank).abs().max()) > 0


def test_pyramid_adds_the_coarser_map_by_nearest_upsampling():
    neck = SemanticFPN(2, backbone(), fpn_channels=1).neck
    for conv in [*neck.lateral_convs, *neck.fpn_convs]:
        kernel = np.zeros(conv.weight.shape, "float32")
        kernel[0, 0, conv.weight.shape[2] // 2, conv.weight.shape[3] // 2] = 1  # hands the first channel on
        conv.weight.set_value(kernel)
    random = np.random.RandomState(0)
    maps = [
        random.standard_normal((1, width, size, size)).astype("float32")
        for width, size in zip((32, 64, 160, 256), (13, 7, 4, 2))
    ]
    expected = maps[3][0, 0]
    outputs = neck([paddle.to_tensor(x) for x in maps])
    np.testing.assert_allclose(outputs[3].numpy()[0, 0], expected, atol=1e-6)
    for level in (2, 1, 0):
        size, coarse = maps[level].shape[2], expected.shape[0]
        index = np.arange(size) * coarse // size
        expected = maps[level][0, 0] + expected[np.ix_(index, index)]
        np.testing.assert_allclose(outputs[level].numpy()[0, 0], expected, atol=1e-5)


def test_semantic_fpn_loads_its_own_weights_strictly(tmp_path):
    model = SemanticFPN(5, backbone())
    path = str(tmp_path / "model.pdparams")
    paddle.save(model.state_dict(), path)
    loaded = SemanticFPN(5, backbone(), pretrained=path)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name].numpy(), value.numpy())
    with pytest.raises(
        CheckpointError, match=r"does not fit.*misshapen \(2\): head\.conv_seg\.weight is \[5, 128, 1, 1\]"
    ):
        SemanticFPN(6, backbone(), pretrained=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"dropout_ratio": 1.0}, "dropout_ratio is 1.0"),
        ({"backbone": nn.Linear(1, 1)}, "backbone Linear has no feat_channels"),
    ],
)
def test_semantic_fpn_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        SemanticFPN(**{"num_classes": 5, "backbone": backbone(), **arguments})
