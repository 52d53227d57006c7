"""The mixer's merged form against its plain one, and the weights that it must never keep."""

import copy
import io

import numpy as np
import paddle
import pytest

from cyclemlp_backbones.mixer import CycleMixer


def random_mixer(channels, dtype="float64"):
    mixer = CycleMixer(channels).to(dtype=dtype)
    for parameter in mixer.parameters():
        parameter.set_value(paddle.randn(parameter.shape, dtype=dtype) * 0.4)
    return mixer


def plain(mixer, x):
    """The definition: branches, gates, projection, where `mixer(x)` may be the merged form."""
    h, w, c = mixer.sfc_h(x), mixer.sfc_w(x), mixer.mlp_c(x)
    logits = mixer.reweight((h + w + c).mean([1, 2])).reshape([x.shape[0], mixer.channels, 3])
    gates = paddle.nn.functional.softmax(logits, axis=-1).unsqueeze([1, 2])
    return mixer.proj(h * gates[..., 0] + w * gates[..., 1] + c * gates[..., 2])


@pytest.mark.parametrize("shape", [(1, 7, 9, 8), (3, 11, 4, 5), (2, 1, 13, 6), (2, 40, 1, 4)])
def test_merged_form_equals_the_definition(shape):
    paddle.seed(1)
    mixer = random_mixer(shape[-1])
    x = paddle.randn(shape, dtype="float64")
    with paddle.no_grad():
        assert mixer._merging_pays(x)
        merged = mixer(x)
    np.testing.assert_allclose(merged.numpy(), plain(mixer, x).numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("frozen", ["nothing", "the input", "the parameters"])
def test_gradients_equal_the_definitions_in_eval_mode_too(frozen):
    paddle.seed(2)
    mixer = random_mixer(6)
    mixer.eval()
    x = paddle.randn([2, 5, 9, 6], dtype="float64")
    x.stop_gradient = frozen == "the input"
    for parameter in mixer.parameters():
        parameter.stop_gradient = frozen == "the parameters"
    wanted = [tensor for tensor in (x, *mixer.parameters()) if not tensor.stop_gradient]
    cotangent = paddle.randn(x.shape, dtype="float64")
    actual = paddle.grad(mixer(x), wanted, grad_outputs=cotangent)
    expected = paddle.grad(plain(mixer, x), wanted, grad_outputs=cotangent)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-12)


def optimizer_step(mixer):
    optimizer = paddle.optimizer.AdamW(0.1, parameters=mixer.parameters())
    mixer(paddle.ones([1, 6, 6, 6])).sum().backward()
    optimizer.step()


def reload(mixer):
    state = {name: value * 2 for name, value in mixer.state_dict().items()}
    buffer = io.BytesIO()
    paddle.save(state, buffer)
    buffer.seek(0)
    mixer.set_state_dict(paddle.load(buffer))


def add_in_place(mixer):
    with paddle.no_grad():
        mixer.mlp_c.weight.add_(paddle.ones([6, 6]))


def replace_parameter(mixer):
    weight = mixer.create_parameter([6, 6, 1, 1])
    mixer.sfc_w.weight = weight


CHANGES = {
    "set_value": lambda mixer: mixer.sfc_h.weight.set_value(paddle.randn([6, 6, 1, 1])),
    "set_value of an array": lambda mixer: mixer.proj.bias.set_value(np.arange(6, dtype=np.float32)),
    "set_state_dict": reload,
    "an optimizer's step": optimizer_step,
    "an operation in place": add_in_place,
    "setting an element": lambda mixer: mixer.sfc_h.bias.__setitem__(0, 3.0),
    "another parameter": replace_parameter,
    "to(dtype) and back": lambda mixer: mixer.to(dtype="float64").to(dtype="float32"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [6, 2], ids=["merged", "a small map"])
def test_the_output_follows_every_change_of_the_weights(change, size):
    paddle.seed(3)
    mixer = random_mixer(6, "float32")
    x = paddle.randn([2, size, size, 6])
    with paddle.no_grad():
        mixer(x)
        copied = copy.deepcopy(mixer)
        CHANGES[change](mixer)
    if change == "an optimizer's step":
        optimizer_step(mixer)
    CHANGES["set_value"](copied)
    with paddle.no_grad():
        for changed in (mixer, copied):
            np.testing.assert_allclose(changed(x).numpy(), plain(changed, x).numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["mlp_c", "sfc_h", "sfc_w", "reweight", "proj"])
def test_a_hook_on_any_part_is_called_and_heeded(name):
    mixer = random_mixer(4)
    x = paddle.randn([1, 9, 9, 4], dtype="float64")
    part = getattr(mixer, name)
    with paddle.no_grad():
        before = mixer(x)
        hook = part.register_forward_post_hook(lambda layer, inputs, output: output * 2)
        assert float((mixer(x) - before).abs().max()) > 1e-3
        hook.remove()
        assert (mixer(x).numpy() == before.numpy()).all()
