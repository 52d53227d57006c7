"""Layer-wise decay: each parameter's factor by name, and that the toolkits' optimizers and Paddle's follow it."""

from __future__ import annotations

import paddle
import pytest
from paddle import nn

from cyclemlp_backbones import CycleNet
from cyclemlp_backbones.layer_decay import apply_layer_decay, layer_decay_factor
from tests.adapters.tiny_det import in_process, write_config

DEPTHS = (1, 2, 1, 1)
WIDTHS = (8, 8, 8, 8)
# The distance of each module from the head; all parameters below it share it.
DISTANCES = {
    "patch_embed": 6,
    "network.0.0": 5,
    "network.1": 4,
    "network.2.0": 4,
    "network.2.1": 3,
    "network.3": 2,
    "network.4.0": 2,
    "network.5": 1,
    "network.6.0": 1,
    "norm0": 0,
    "norm2": 0,
    "norm4": 0,
    "norm6": 0,
    "norm": 0,
    "head": 0,
}
BLOCK = (
    "norm1.weight norm1.bias attn.mlp_c.weight attn.sfc_h.weight attn.sfc_h.bias attn.sfc_w.weight attn.sfc_w.bias "
    "attn.reweight.fc1.weight attn.reweight.fc1.bias attn.reweight.fc2.weight attn.reweight.fc2.bias attn.proj.weight "
    "attn.proj.bias norm2.weight norm2.bias mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias"
)


def expected_factors(decay, tops):
    names = {}
    for module, distance in DISTANCES.items():
        if module.startswith("network") and module.count(".") == 2:
            tails = BLOCK.split()
        elif module.startswith(("network", "patch_embed")):
            tails = ["proj.weight", "proj.bias"]
        elif module in tops:
            tails = ["weight", "bias"]
        else:
            continue
        names.update({f"{module}.{tail}": decay**distance for tail in tails})
    return names


@pytest.mark.parametrize(
    ("arguments", "tops"), [({}, ("norm0", "norm2", "norm4", "norm6")), ({"num_classes": 3}, ("norm", "head"))]
)
def test_each_parameter_has_its_factor(arguments, tops):
    network = CycleNet(DEPTHS, WIDTHS, (1, 1, 1, 1), **arguments)
    assert apply_layer_decay(network, 0.5) == expected_factors(0.5, tops)
    for name, parameter in network.named_parameters():
        assert parameter.optimize_attr["learning_rate"] == layer_decay_factor(name, DEPTHS, 0.5)


def test_a_toolkits_prefix_counts_and_its_heads_do_not():
    assert layer_decay_factor("backbone.network.2.1.mlp.fc1.weight", DEPTHS, 0.5) == 0.5**3
    assert layer_decay_factor("backbone.norm2.weight", DEPTHS, 0.5) == 1
    assert layer_decay_factor("bbox_head.network.0.0.weight", DEPTHS, 0.5) == 1


@pytest.mark.parametrize(
    ("name", "decay", "message"),
    [
        ("network.2.2.norm1.weight", 0.5, r"no parameter 'network\.2\.2\.norm1\.weight' in a network of depths \(1, 2"),
        ("network.1.0.norm1.weight", 0.5, "no parameter"),
        ("network.8.0.norm1.weight", 0.5, "no parameter"),
        ("head.weight", 0.0, "layer-wise decay is 0.0; it takes a number above 0 and at most 1"),
        ("head.weight", 1.5, "layer-wise decay is 1.5"),
    ],
)
def test_wrong_name_or_decay_is_refused(name, decay, message):
    with pytest.raises(ValueError, match=message):
        layer_decay_factor(name, DEPTHS, decay)


def test_model_without_a_cyclemlp_is_refused():
    with pytest.raises(ValueError, match="for a CycleMLP, but the model Linear has no backbone"):
        apply_layer_decay(nn.Linear(1, 1), 0.5)


def steps_under(optimizer, model):
    """How far the first element of each parameter moves under a gradient of ones, over the factor-less move."""
    before = {name: parameter.numpy().copy() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = paddle.ones_like(parameter)
    optimizer.step()
    return {
        name: float((before[name] - p.numpy()).flat[0]) for name, p in model.named_parameters() if not p.stop_gradient
    }


@pytest.mark.parametrize("kind", ["SGD", "Momentum", "AdamW"])
def test_paddles_optimizers_follow_the_factors(kind):
    network = CycleNet(DEPTHS, WIDTHS, (1, 1, 1, 1), num_classes=3)
    arguments = {"weight_decay": 0.0} if kind == "AdamW" else {}
    optimizer = getattr(paddle.optimizer, kind)(0.01, parameters=network.parameters(), **arguments)
    factors = apply_layer_decay(network, 0.5)
    for name, step in steps_under(optimizer, network).items():
        assert step == pytest.approx(0.01 * factors[name], rel=1e-2), name


def test_paddlesegs_optimizer_follows_the_factors():
    from paddleseg.cvlibs import manager

    from cyclemlp_backbones.adapters.paddleseg import register_paddleseg

    register_paddleseg(repair=True)

    backbone = manager.BACKBONES["CycleMLP_B0"](drop_path_rate=0.0)
    model = manager.MODELS["SemanticFPN"](2, backbone, fpn_channels=8, head_channels=8)
    build = manager.OPTIMIZERS["AdamWLayerDecay"](
        layer_decay=0.5, weight_decay=0.0, custom_cfg=[{"name": "head", "lr_mult": 3.0}]
    )
    steps = steps_under(build(model, 0.01), model)
    for name, step in steps.items():
        factor = 3.0 if "head" in name else layer_decay_factor(name, (2, 2, 2, 2), 0.5)
        assert step == pytest.approx(0.01 * factor, rel=1e-2), name


def detectors_steps(folder, function):
    from ppdet.core.workspace import create, load_config

    from cyclemlp_backbones.adapters.paddledet import register_paddledet

    register_paddledet(repair=True)

    optimizer = {"layer_decay": 0.5, "set_param_lr_func": function, "weight_decay": 0.0}
    settings = load_config(str(write_config(folder, "retinanet", OptimizerBuilder={"optimizer": optimizer})))
    model = create(settings.architecture)
    return steps_under(create("OptimizerBuilder")(0.01, model), model)


# PaddleDetection gives them twice the rate of the others.
TWICE = [f"head.conv_feat.fcos_head_{kind}_tower_conv_0.conv.bias" for kind in ("cls", "reg")]


@pytest.mark.slow
def test_paddledetections_optimizer_follows_the_factors(tmp_path):
    steps = in_process(detectors_steps, tmp_path, "cyclemlp_layer_decay")
    for name, step in steps.items():
        factor = 2.0 if name in TWICE else layer_decay_factor(name, (2, 2, 2, 2), 0.5)
        assert step == pytest.approx(0.01 * factor, rel=1e-2, abs=2e-6), name


@pytest.mark.slow
def test_paddledetections_own_function_is_refused_since_it_does_nothing_here(tmp_path):
    with pytest.raises(ValueError, match="'layerwise_lr_decay', which does not know CycleMLP's parameters"):
        in_process(detectors_steps, tmp_path, "layerwise_lr_decay")


@pytest.mark.slow
def test_without_it_all_parameters_have_one_rate(tmp_path):
    steps = in_process(detectors_steps, tmp_path, None)
    assert [steps.pop(name) for name in TWICE] == pytest.approx([0.02, 0.02], rel=1e-2)
    assert list(steps.values()) == pytest.approx([0.01] * len(steps), rel=1e-2)
