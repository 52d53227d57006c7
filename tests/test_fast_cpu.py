"""The fast forms for a CPU against the plain ones; what they keep for backward; a network without them."""

import copy
import gc
import io
import shutil
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.autograd import saved_tensors_hooks
from paddle.distributed.fleet.utils import recompute

import cyclemlp_backbones
from cyclemlp_backbones import CycleFC, build_backbone, fast_cpu
from cyclemlp_backbones.cyclenet import CycleBlock, CycleMixer, Mlp
from cyclemlp_backbones.fast_cpu import REBUILDS, accelerate, rebuilt_in_backward

FORMS = {
    "linear": (lambda: nn.Linear(4, 6), (2, 3, 5, 4)),
    "linear of a row": (lambda: nn.Linear(4, 6), (4,)),
    "linear without bias": (lambda: nn.Linear(4, 6, bias_attr=False), (2, 3, 5, 4)),
    "mlp": (lambda: Mlp(4, 8, 5), (3, 7, 4)),
    "mlp in parts": (lambda: Mlp(4, 8, 5), (1, 350, 4)),
    **{
        f"cyclefc {kernel_size}, {what}": (lambda k=kernel_size, o=out: CycleFC(7, o, k), shape)
        for kernel_size in [(1, 3), (3, 1), (1, 4), (5, 1), (1, 1), (1, 9)]
        for what, out, shape in (("large map", 3, (2, 6, 7, 7)), ("small map", 40, (2, 2, 2, 7)))
    },
    "cyclefc without bias": (lambda: CycleFC(7, 40, (1, 3), bias=False), (2, 2, 2, 7)),
    "mixer, merged": (lambda: CycleMixer(6), (2, 5, 9, 6)),
    "mixer, merged, a row": (lambda: CycleMixer(5), (3, 1, 13, 5)),
    "mixer, small map": (lambda: CycleMixer(6), (2, 2, 2, 6)),
    "mixer, plain sum": (lambda: CycleMixer(6, reweight=False), (2, 5, 9, 6)),
    "block with a plain sum": (lambda: CycleBlock(6, 2.0, reweight=False), (2, 5, 9, 6)),
    "block": (lambda: CycleBlock(6, 2.0), (2, 5, 9, 6)),
    "block with recompute": (lambda: CycleBlock(6, 2.0, use_recompute=True), (2, 5, 9, 6)),
}


def both(make, shape):
    """A layer with random weights in float64, its fast form, and an input."""
    paddle.seed(4)
    plain = make().to(dtype="float64")
    for parameter in plain.parameters():
        parameter.set_value(paddle.randn(parameter.shape, dtype="float64") * 0.4)
    fast = accelerate(copy.deepcopy(plain))
    assert {type(layer).__name__ for layer in fast.sublayers(include_self=True)} & {
        "FastLinear",
        "FastMlp",
        "FastCycleFC",
        "FastMixer",
    }
    return plain, fast, paddle.randn(shape, dtype="float64")


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-12 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("ops", ["0", "1"], ids=["crop", "compiled"])
@pytest.mark.parametrize("form", FORMS)
def test_fast_form_equals_the_plain_one(form, ops, monkeypatch, request):
    """Values with and without gradients, first and second gradients, gradients of the input alone, of the parameters
    alone, hooks on every part, and the present weights after a change."""
    if ops == "1":
        request.getfixturevalue("built_ops")
    monkeypatch.setenv("CYCLEMLP_OPS", ops)
    monkeypatch.setattr(fast_cpu, "_HIDDEN_ELEMENTS", 800)  # Mlp in parts of 100 rows
    plain, fast, x = both(*FORMS[form])
    second_too = form.startswith(("linear", "cyclefc"))  # Paddle's gelu, softmax and recompute have none

    def everything(layer):
        image = x.clone()
        image.stop_gradient = False
        tensors = [image, *layer.parameters()]
        y = layer(image)
        results = [y, *paddle.grad((y**3).sum(), tensors, create_graph=second_too)]
        if second_too:
            wanted = [tensor for tensor in tensors if len(tensor.shape) > 1]
            results += paddle.grad(sum((gradient**2).sum() for gradient in results[1:]), wanted, allow_unused=False)
        results += paddle.grad((layer(image) ** 3).sum(), image)  # as a saliency map asks
        results += paddle.grad((layer(x) ** 3).sum(), layer.parameters())
        layer.eval()
        results += paddle.grad((layer(image) ** 3).sum(), tensors)  # gradients are taken in eval mode too
        with paddle.no_grad():
            results.append(layer(image))
        layer.train()
        return results

    assert_same(everything(fast), everything(plain))
    for name, _ in plain.named_sublayers():
        hooked = []
        for layer in (plain, fast):
            part = dict(layer.named_sublayers())[name]
            hook = part.register_forward_post_hook(lambda layer, inputs, output: output * 2)
            with paddle.no_grad():
                hooked.append(layer(x))
            hook.remove()
        assert_same(hooked[1:], hooked[:1])
        with paddle.no_grad():
            assert float((hooked[0] - plain(x)).abs().max()) > 1e-6, name
    for parameter, other in zip(plain.parameters(), fast.parameters(), strict=True):
        changed = parameter * 2 + 1
        for tensor in (parameter, other):
            tensor.set_value(changed)
    assert_same(everything(fast), everything(plain))


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


CHANGES = {
    "set_value of an array": lambda mixer: mixer.proj.bias.set_value(np.arange(6, dtype=np.float32)),
    "set_state_dict": reload,
    "an optimizer's step": optimizer_step,
    "an operation in place": lambda mixer: mixer.mlp_c.weight.add_(paddle.ones([6, 6])),
    "setting an element": lambda mixer: mixer.sfc_h.bias.__setitem__(0, 3.0),
    "another parameter": lambda mixer: setattr(mixer.sfc_w, "weight", mixer.create_parameter([6, 6, 1, 1])),
    "to(dtype) and back": lambda mixer: mixer.to(dtype="float64").to(dtype="float32"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [6, 2], ids=["merged", "a small map"])
def test_the_output_follows_every_change_of_the_weights(change, size):
    """The plain form's, and a copy's as well: nothing that depends on a weight is kept."""
    paddle.seed(3)
    plain = CycleMixer(6)
    for parameter in plain.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.4)
    fast = accelerate(copy.deepcopy(plain))
    x = paddle.randn([2, size, size, 6])
    with paddle.no_grad():
        before = fast(x)
    copied = copy.deepcopy(fast)
    for mixer in (plain, fast):
        paddle.seed(5)
        with paddle.set_grad_enabled(change == "an optimizer's step"):
            CHANGES[change](mixer)
    with paddle.no_grad():
        np.testing.assert_allclose(fast(x).numpy(), plain(x).numpy(), rtol=0, atol=5e-5)
        assert (copied(x).numpy() == before.numpy()).all()
        if "back" not in change:
            assert float((fast(x) - before).abs().max()) > 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_other_types_take_the_plain_form(dtype):
    assert not fast_cpu._runs_here(paddle.zeros([2]).astype(dtype))


def test_autocast_does_not_change_the_fast_forms():
    """Paddle's autocast does nothing on a CPU; if that changes, operands of two types would meet here."""
    mlp = accelerate(Mlp(4, 8, 4))
    x = paddle.randn([3, 4])
    with paddle.amp.auto_cast(dtype="bfloat16", level="O1"):
        y = mlp(x)
    assert y.dtype == paddle.float32
    assert (y.numpy() == mlp(x).numpy()).all()


def test_a_graph_holds_the_plain_forms_only(tmp_path):
    """The operators of an exported network, counted by name: none of those that only the fast forms use."""
    model = build_backbone("b0")
    model.eval()
    static = paddle.jit.to_static(
        model, input_spec=[paddle.static.InputSpec([None, 3, None, None], "float32")], full_graph=True
    )
    program = static.forward.main_program
    block = program.global_block()
    names = [op.name() for op in block.ops] if hasattr(block.ops[0], "name") else [op.type for op in block.ops]
    count = Counter(name.removeprefix("pd_op.").removesuffix("_v2").removesuffix("2") for name in names)
    assert not {"crop", "crop_tensor", "pad3d", "addmm"} & set(count)
    blocks = 8
    assert count["squeeze"] == blocks * 2 * (3 + 3)  # features and weights of two CycleFC, by residue
    assert count["matmul"] == blocks * (2 + 1 + 2 + 1 + 2)
    assert count["conv2d"] == 4


def test_a_network_without_this_file_has_the_golden_values(tmp_path):
    """The file deleted, and the two lines of CycleNet that call it."""
    package = Path(cyclemlp_backbones.__file__).parent
    shutil.copytree(package, tmp_path / "cyclemlp_backbones", ignore=shutil.ignore_patterns("__pycache__"))
    tests = Path(__file__).parent
    (tmp_path / "tests").mkdir()
    for name in ("__init__.py", "reference.py", "test_cyclenet.py", "golden"):
        copy_one = shutil.copytree if (tests / name).is_dir() else shutil.copy
        copy_one(tests / name, tmp_path / "tests" / name)
    (tmp_path / "cyclemlp_backbones" / "fast_cpu.py").unlink()
    network = tmp_path / "cyclemlp_backbones" / "cyclenet.py"
    lines = network.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if "fast_cpu" not in line]
    assert len(lines) - len(kept) == 2
    network.write_text("".join(kept), encoding="utf-8")
    golden = ["tests/test_cyclenet.py", "-k", "golden and not (logits and b5)"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *golden]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "6 passed" in run.stdout


# What backward computes again. `REBUILDS` is False on Paddle 2, where all is kept.

WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0]], "float32")


def exp_times_weight(x, rebuild):
    """exp(x) W; the gradient of W wants exp(x). Returns W too."""
    y, weight = x.exp(), paddle.to_tensor(WEIGHT, stop_gradient=False)
    with rebuilt_in_backward(y, rebuild):
        return paddle.matmul(y, weight), weight


def test_backward_asks_for_what_was_not_kept_and_uses_it():
    x = paddle.randn([3, 2])
    x.stop_gradient = False
    asked = []

    def rebuild():
        asked.append(paddle.is_grad_enabled())
        return x.exp()

    y, weight = exp_times_weight(x, rebuild)
    assert asked == []
    y.sum().backward()
    assert asked == [False] * REBUILDS  # and recorded nothing
    np.testing.assert_allclose(x.grad.numpy(), np.exp(x.numpy()) * WEIGHT.sum(1), rtol=1e-5)
    np.testing.assert_allclose(weight.grad.numpy(), np.exp(x.numpy()).sum(0)[:, None] * [[1, 1]], rtol=1e-5)
    y, weight = exp_times_weight(x, lambda: paddle.zeros([3, 2]))
    y.sum().backward()
    assert weight.grad.numpy().any() != REBUILDS  # nothing else was kept in its place


VIEWS = [lambda x: x.t(), lambda x: x.reshape([9]), lambda x: x[:2], lambda x: x.view("int32")]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_the_same_memory_is_kept_as_it_is(view):
    """It begins where `x` begins, and reads it in another shape, order or type."""
    x = paddle.randn([3, 3])
    x.stop_gradient = False
    assert view(x).data_ptr() == x.data_ptr()
    if REBUILDS:
        assert fast_cpu.is_same(x.detach(), x)
        assert not fast_cpu.is_same(view(x), x)


def test_nothing_waits_for_the_garbage_collector():
    """What is rebuilt closes over tensors, which a cycle of references would keep for many steps."""
    x = paddle.randn([3, 2])
    x.stop_gradient = False

    class Held:
        def __call__(self):
            return x.exp()

    gc.disable()
    try:
        held = Held()
        found = weakref.ref(held)
        y, _ = exp_times_weight(x, held)
        y.sum().backward()
        del held, y, _
        assert found() is None
    finally:
        gc.enable()


def test_everything_is_kept_without_gradients_and_within_hooks_of_a_callers_own():
    def never():
        raise AssertionError("asked")

    x = paddle.randn([3, 2])
    exp_times_weight(x, never)
    x.stop_gradient = False
    kept = []
    weight, more = (paddle.to_tensor(WEIGHT, stop_gradient=False) for _ in range(2))
    with saved_tensors_hooks(lambda saved: kept.append(saved.clone()) or len(kept) - 1, lambda number: kept[number]):
        with rebuilt_in_backward(x, never):
            y = paddle.matmul(x, weight)
        y = paddle.matmul(y, more)
    y.sum().backward()
    np.testing.assert_allclose(weight.grad.numpy(), np.outer(x.numpy().sum(0), WEIGHT.sum(1)), rtol=1e-5)
    assert len(kept) == 4  # the factors of both products


def test_hooks_end_with_the_block_even_by_an_error():
    x = paddle.randn([3, 4])
    x.stop_gradient = False
    with pytest.raises(ZeroDivisionError), rebuilt_in_backward(x, lambda: x):
        raise ZeroDivisionError
    with saved_tensors_hooks(lambda saved: saved.clone(), lambda saved: saved):  # Paddle would refuse a second pair
        pass


@pytest.fixture
def block():
    paddle.seed(3)
    block = accelerate(CycleBlock(8, 2.0))
    for parameter in block.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.4)
    return block


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradients_are_the_same_within_a_users_recompute(block, use_reentrant):
    x = paddle.randn([2, 5, 7, 8])
    x.stop_gradient = False
    options = {"use_reentrant": use_reentrant, **({} if use_reentrant else {"preserve_rng_state": False})}
    found = []
    for run in (block, lambda x: recompute(block, x, **options)):
        for tensor in (x, *block.parameters()):
            tensor.clear_gradient(False)
        y = run(x)
        (y * paddle.cos(paddle.arange(y.size, dtype="float32")).reshape(y.shape)).sum().backward()
        found.append([y.numpy(), x.grad.numpy(), *(parameter.grad.numpy() for parameter in block.parameters())])
    for actual, wanted in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))


def test_the_graph_gives_its_gradients_twice_where_it_is_retained(block):
    x = paddle.randn([1, 4, 4, 8])
    x.stop_gradient = False
    y = block(x).sum()
    first, second = (paddle.grad(y, x, retain_graph=True)[0].numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_block_keeps_neither_repeated_gates_nor_gated_sum_nor_activated_features(block, monkeypatch):
    """Counted where Paddle hands over what backward would keep."""
    rebuilt = []
    hooks = fast_cpu.saved_tensors_hooks

    def counting(pack, unpack):
        def count(saved):
            kept = pack(saved)
            if kept is None:
                rebuilt.append(tuple(saved.shape))
            return kept

        return hooks(count, unpack)

    monkeypatch.setattr(fast_cpu, "saved_tensors_hooks", counting)
    x = paddle.randn([2, 3, 3, 8])
    x.stop_gradient = False
    block(x)
    maps = [shape for shape in rebuilt if len(shape) == 4]
    assert maps == [(2, 3, 3, 8)] * 4 * REBUILDS  # three gates, the gated sum
    rows = [shape for shape in rebuilt if len(shape) == 2]
    assert rows == [(2, 2), (18, 16)] * REBUILDS  # of the gates' Mlp and of the block's
