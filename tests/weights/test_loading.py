"""Weights get into a network whole and in the right layout, or not at all."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from cyclemlp_backbones import (
    CheckpointError,
    CycleNet,
    LoadReport,
    build_backbone,
    build_classifier,
    from_weights,
    load_weights,
    read_checkpoint,
)
from cyclemlp_backbones.cli import main
from cyclemlp_backbones.factory import read_network
from cyclemlp_backbones.weights import loading
from cyclemlp_backbones.weights.formats import write_checkpoint
from cyclemlp_backbones.weights.loading import load_model_weights
from tests.reference import GOLDEN, fill_parameters, reference_input, relative_error
from tests.weights import pickles

SIZE = ([1, 1, 2, 1], [8, 16, 24, 32], [4, 4, 4, 4])
TINY = GOLDEN / "tiny_zip.pth"


def classifier(**options) -> CycleNet:
    return CycleNet(*SIZE, num_classes=10, **options)


def state(model: CycleNet) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


@functools.cache
def _reference_state() -> Mapping[str, np.ndarray]:
    model = classifier()
    fill_parameters(model)
    return state(model)


def reference_state() -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in _reference_state().items()}


def equal(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def torch_arrays() -> dict[str, np.ndarray]:
    return read_checkpoint(TINY)


@pytest.mark.parametrize(
    ("file", "tolerance"), [("tiny_zip.pth", 1e-4), ("tiny_legacy.pth", 1e-4), ("tiny_ddp_fp16.pth", 5e-3)]
)
@pytest.mark.parametrize("converted", [None, ".pdparams", ".safetensors"])
def test_the_authors_files_give_the_golden_logits(tmp_path, file, tolerance, converted):
    path = GOLDEN / file
    if converted is not None:
        path = tmp_path / f"x{converted}"
        assert main(["convert", str(GOLDEN / file), str(path)]) == 0
    model = classifier()
    model.eval()
    report = load_weights(model, path)
    assert len(report.loaded) == len(model.state_dict())
    assert report.checked_offsets == (10 if converted is None else 0)
    logits = model(paddle.to_tensor(reference_input((2, 3, 64, 64)))).numpy()
    assert relative_error(logits, np.load(GOLDEN / "tiny.logits.npz")["logits"]) <= tolerance


def test_square_matrices_are_transposed_by_layout():
    arrays = torch_arrays()
    name = "network.0.0.attn.mlp_c.weight"
    assert arrays[name].shape == (8, 8)
    model = classifier()
    load_weights(model, arrays, layout="torch")
    np.testing.assert_array_equal(state(model)[name], arrays[name].T)
    convolution = "network.0.0.attn.sfc_h.weight"
    np.testing.assert_array_equal(state(model)[convolution], arrays[convolution])
    load_weights(model, state(model), layout="paddle")
    np.testing.assert_array_equal(state(model)[name], arrays[name].T)


def test_a_paddle_port_with_offsets_loads(tmp_path):
    content = reference_state() | {name: array for name, array in torch_arrays().items() if name.endswith(".offset")}
    paddle.save({name: paddle.to_tensor(array) for name, array in content.items()}, str(tmp_path / "x.pdparams"))
    model = classifier()
    report = load_weights(model, tmp_path / "x.pdparams")
    assert (report.layout, report.checked_offsets) == ("paddle", 10)
    assert equal(state(model), reference_state())


def test_the_layout_has_to_be_told_where_the_file_does_not(tmp_path):
    arrays = {name: np.asarray(array, order="C") for name, array in torch_arrays().items()}
    save_file(arrays, tmp_path / "x.safetensors")
    model = classifier()
    for source in (tmp_path / "x.safetensors", arrays):
        with pytest.raises(CheckpointError, match="layout='torch'"):
            load_weights(model, source)
        load_weights(model, source, layout="torch")
        assert equal(state(model), reference_state())
    assert from_weights(tmp_path / "x.safetensors", layout="torch").num_classes == 10
    write_checkpoint(tmp_path / "ours.safetensors", arrays, layout="torch")
    save_file(arrays, tmp_path / "torch.safetensors", metadata={"format": "pt"})
    for file in ("ours", "torch"):
        assert load_weights(classifier(), tmp_path / f"{file}.safetensors").layout == "torch"
    with pytest.raises(ValueError, match="'jax'"):
        load_weights(model, TINY, layout="jax")
    with pytest.raises(CheckpointError, match="misshapen"):
        load_weights(model, TINY, layout="paddle")


def test_paddle_tensors_need_no_layout():
    model = classifier()
    fill_parameters(model)
    other = classifier()
    assert load_weights(other, model.state_dict()).layout == "paddle"
    assert equal(state(other), reference_state())


def test_a_classifiers_file_loads_into_a_pyramid():
    model = CycleNet(*SIZE, out_indices=(1, 3))
    initial = state(model)
    report = load_weights(model, TINY)
    assert report.skipped == ("norm.weight", "norm.bias", "head.weight", "head.bias")
    assert set(report.fresh) == {"norm2.weight", "norm2.bias", "norm6.weight", "norm6.bias"}
    expected = reference_state()
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, initial[name] if name in report.fresh else expected[name])
    for name in (*report.skipped, *report.fresh):
        assert name in str(report)


def test_a_pyramids_file_loads_into_a_pyramid_with_its_norms_but_into_no_classifier(tmp_path):
    pyramid = CycleNet(*SIZE)
    fill_parameters(pyramid)
    write_checkpoint(tmp_path / "x.pdparams", state(pyramid))
    other = CycleNet(*SIZE)
    report = load_weights(other, tmp_path / "x.pdparams")
    assert (report.skipped, report.fresh) == ((), ())
    assert equal(state(other), state(pyramid))
    with pytest.raises(CheckpointError, match=r"missing \(4\)(.|\n)*unexpected \(8\): norm0.weight"):
        load_weights(classifier(), tmp_path / "x.pdparams")


def test_a_toolkits_checkpoint_gives_its_backbone(tmp_path):
    pyramid = CycleNet(*SIZE)
    fill_parameters(pyramid)
    whole = {f"backbone.{name}": value for name, value in pyramid.state_dict().items()}
    heads = {
        "fpn.lateral.weight": paddle.ones([2, 2]),
        "head.weight": paddle.ones([3]),
        "norm.weight": paddle.ones([1]),
    }
    paddle.save(whole | heads, str(tmp_path / "model.pdparams"))
    other = CycleNet(*SIZE)
    report = load_weights(other, tmp_path / "model.pdparams")
    assert report.skipped == tuple(heads)
    assert equal(state(other), state(pyramid))


def test_a_whole_network_around_a_backbone_keeps_its_names():
    class Segmenter(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.backbone = CycleNet(*SIZE)
            self.head = paddle.nn.Linear(3, 3)

    model, other = Segmenter(), Segmenter()
    load_weights(other, model.state_dict())
    assert equal(state(other), state(model))
    with pytest.raises(CheckpointError, match=r"missing \(111\): backbone\.patch_embed"):
        load_weights(other, TINY)


def test_all_that_does_not_fit_is_listed_and_nothing_is_changed():
    model = classifier()
    initial = state(model)
    arrays = torch_arrays()
    del arrays["network.0.0.norm1.bias"]
    arrays["extra.weight"] = np.zeros(1, np.float32)
    arrays["head.bias"] = np.zeros(1000, np.float32)
    arrays["network.2.0.attn.sfc_w.weight"] = arrays["network.2.0.attn.sfc_w.weight"][:, :, 0, 0]
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, arrays, layout="torch")
    message = str(caught.value)
    assert "missing (1): network.0.0.norm1.bias" in message
    assert "unexpected (1): extra.weight" in message
    assert "misshapen (2): " in message
    assert "head.bias is [1000], needs [10]" in message
    assert "network.2.0.attn.sfc_w.weight is [16, 16], needs [16, 16, 1, 1]" in message
    assert equal(state(model), initial)


def test_ignored_names_are_neither_read_nor_asked_for():
    model = classifier()
    initial = state(model)
    arrays = torch_arrays()
    del arrays["norm.bias"]
    arrays["head.weight"] = np.zeros((1000, 32), np.float32)
    arrays["extra.weight"] = np.zeros(1, np.float32)
    report = load_weights(model, arrays, layout="torch", ignore=("head.*", "norm.bias", "extra.*", "matches nothing"))
    assert report.ignored == ("extra.weight", "head.bias", "head.weight", "norm.bias")
    expected = reference_state()
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, initial[name] if name in report.ignored else expected[name])
    with pytest.raises(ValueError, match="sequence of patterns"):
        load_weights(model, TINY, ignore="head.*")


def test_offsets_of_another_operator_are_refused():
    model = classifier()
    initial = state(model)
    arrays = torch_arrays()
    name = "network.2.0.attn.sfc_h.offset"
    assert arrays[name].shape == (1, 32, 1, 1)
    arrays[name] = arrays[name].reshape(1, 16, 2, 1)[:, :, ::-1].reshape(1, 32, 1, 1)  # dx, dy
    with pytest.raises(CheckpointError, match=name):
        load_weights(model, arrays, layout="torch")
    assert equal(state(model), initial)
    assert load_weights(model, arrays, layout="torch", ignore=("*.offset",)).checked_offsets == 0

    arrays = torch_arrays()
    arrays["network.2.0.attn.mlp_c.offset"] = arrays[name]
    with pytest.raises(CheckpointError, match=r"unexpected \(1\): network.2.0.attn.mlp_c.offset"):
        load_weights(model, arrays, layout="torch")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    model = classifier()
    initial = state(model)
    arrays = torch_arrays()
    arrays["head.weight"][3, 4] = value
    with pytest.raises(CheckpointError, match=r"not finite.*head\.weight"):
        load_weights(model, arrays, layout="torch")
    assert equal(state(model), initial)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_values_take_the_networks_dtype(dtype):
    model = classifier()
    model.to(dtype=dtype)
    load_weights(model, TINY)
    reference = reference_state()
    for name, value in model.state_dict().items():
        assert value.dtype == getattr(paddle, dtype)
        expected = paddle.to_tensor(reference[name]).astype(dtype).astype("float32")
        np.testing.assert_array_equal(value.astype("float32").numpy(), expected.numpy())


def test_integers_are_no_weights():
    arrays = torch_arrays()
    arrays["norm.bias"] = np.zeros(32, np.int64)
    with pytest.raises(CheckpointError, match=r"norm.bias \(int64\)"):
        load_weights(classifier(), arrays, layout="torch")


def test_the_report_is_logged_and_immutable(caplog):
    with caplog.at_level(logging.INFO, logger="cyclemlp_backbones"):
        report = load_weights(classifier(), TINY)
    assert str(report) in caplog.text
    assert f"loaded 107 parameters from {TINY} (torch layout); 10 offset buffers agree" in str(report)
    assert isinstance(report, LoadReport)
    with pytest.raises(AttributeError):
        report.layout = "paddle"


def test_frozen_parameters_are_loaded_and_stay_frozen():
    model = CycleNet(*SIZE, frozen_stages=1)
    load_weights(model, TINY)
    np.testing.assert_array_equal(model.patch_embed.proj.bias.numpy(), reference_state()["patch_embed.proj.bias"])
    assert model.patch_embed.proj.weight.stop_gradient


def test_pretrained_takes_a_path_and_fits_classifier_and_backbone(tmp_path):
    source = build_classifier("b0", num_classes=3)
    write_checkpoint(tmp_path / "b0.pdparams", state(source))
    assert equal(state(build_classifier("b0", num_classes=3, pretrained=tmp_path / "b0.pdparams")), state(source))
    backbone = build_backbone("b0", pretrained=str(tmp_path / "b0.pdparams"))
    np.testing.assert_array_equal(backbone.patch_embed.proj.weight.numpy(), state(source)["patch_embed.proj.weight"])
    with pytest.raises(CheckpointError, match=r"head.bias is \[3\], needs \[1000\]"):
        load_weights(build_classifier("b0"), tmp_path / "b0.pdparams")


def test_published_sources(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loading, "fetch", lambda url: asked.append(url) or tmp_path / "x.pth")
    for variant in ("b1", "CycleMLP_B5"):
        assert loading.locate_weights(True, variant) == tmp_path / "x.pth"
    loading.locate_weights("https://example.org/x.pth", "b0")
    release = "https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1"
    assert asked == [f"{release}/CycleMLP_B1.pth", f"{release}/CycleMLP_B5.pth", "https://example.org/x.pth"]
    with pytest.raises(ValueError, match="no weights are published for CycleMLP b0, only for b1"):
        build_backbone("b0", pretrained=True)
    with pytest.raises(FileNotFoundError, match=r"no weights file .*missing.pth.*pretrained=True"):
        build_backbone("b0", pretrained=tmp_path / "missing.pth")
    for wrong in (3, ""):
        with pytest.raises(ValueError, match=f"pretrained is {wrong!r}; it takes None, True, a path or a URL"):
            build_backbone("b0", pretrained=wrong)


# Another number of channels or classes


def stem(model: CycleNet) -> np.ndarray:
    return model.patch_embed.proj.weight.numpy()


@pytest.mark.parametrize("in_channels", [1, 2, 4, 7])
def test_a_stem_for_other_channels_is_adapted_as_timm_does_it_and_the_report_says_so(in_channels, caplog):
    original = reference_state()["patch_embed.proj.weight"]
    model = CycleNet(*SIZE, in_channels=in_channels, num_classes=10)
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight is \[8, 3, 7, 7\], needs"):
        load_weights(model, TINY)
    report = load_weights(model, TINY, adapt=True)
    assert report.adapted == ("patch_embed.proj.weight",)
    assert "adapted to another number of channels: patch_embed.proj.weight" in caplog.text
    if in_channels == 1:
        expected = original[:, 0] + original[:, 1] + original[:, 2]
        np.testing.assert_allclose(stem(model)[:, 0], expected, rtol=1e-6, atol=1e-7)
    else:
        for channel in range(in_channels):
            expected = original[:, channel % 3] * np.float32(3 / in_channels)
            np.testing.assert_allclose(stem(model)[:, channel], expected, rtol=1e-6)
    others = [name for name in reference_state() if name != "patch_embed.proj.weight"]
    assert all(np.array_equal(state(model)[name], reference_state()[name]) for name in others)


def test_a_grey_image_gives_the_same_through_one_channel_as_through_three():
    coloured, grey = from_weights(TINY), from_weights(TINY, in_channels=1)
    coloured.eval()
    grey.eval()
    image = reference_input((1, 1, 64, 64))
    three = coloured(paddle.to_tensor(np.repeat(image, 3, 1))).numpy()
    one = grey(paddle.to_tensor(image)).numpy()
    np.testing.assert_allclose(one, three, rtol=1e-3, atol=1e-4)


def test_a_head_for_other_classes_stays_fresh_and_the_report_says_so(caplog):
    model = CycleNet(*SIZE, num_classes=5)
    initial = state(model)
    with pytest.raises(CheckpointError, match=r"head.bias is \[10\], needs \[5\]"):
        load_weights(model, TINY)
    assert equal(state(model), initial)
    report = load_weights(model, TINY, adapt=True)
    assert report.fresh_head == ("head.weight", "head.bias")
    assert "of another number of classes in the file, kept as initialised: train it: head.weight" in caplog.text
    for name, value in state(model).items():
        expected = initial if name in report.fresh_head else reference_state()
        np.testing.assert_array_equal(value, expected[name])
    assert load_weights(classifier(), TINY, adapt=True).fresh_head == ()


def test_builders_adapt_channels_classes_and_outputs(tmp_path):
    classes, pyramid = tmp_path / "classes.pdparams", tmp_path / "pyramid.pdparams"
    write_checkpoint(classes, state(build_classifier("b0", num_classes=3)))
    source = build_backbone("b0")
    write_checkpoint(pyramid, state(source))
    assert build_classifier("b0", num_classes=4, in_channels=2, pretrained=classes).head.weight.shape == [256, 4]
    four = build_backbone("b0", in_channels=4, out_indices=(1, 3), pretrained=pyramid)
    np.testing.assert_allclose(stem(four)[:, 3], stem(source)[:, 0] * 0.75, rtol=1e-6)
    np.testing.assert_array_equal(four.norm6.weight.numpy(), source.norm6.weight.numpy())
    with pytest.raises(CheckpointError, match="missing"):
        build_classifier("b0", num_classes=3, pretrained=pyramid)


# Networks from what a file tells


def test_from_weights_builds_what_the_file_tells(tmp_path):
    model = from_weights(TINY)
    assert model.num_classes == 10
    assert equal(state(model), reference_state())

    pyramid = CycleNet(*SIZE[:2], [4, 4, 2.5, 1], out_indices=(1, 2), in_channels=5)
    paddle.save({f"backbone.{key}": value for key, value in pyramid.state_dict().items()}, str(tmp_path / "x.pdparams"))
    read = from_weights(str(tmp_path / "x.pdparams"), drop_path_rate=0.2, frozen_stages=1)
    assert (read.out_indices, read.num_classes, read.frozen_stages) == ((1, 2), None, 1)
    assert equal(state(read), state(pyramid))


def test_options_override_what_the_file_tells():
    backbone = from_weights(TINY, out_indices=(1, 3), in_channels=4)
    assert (backbone.num_classes, backbone.out_indices, stem(backbone).shape[1]) == (None, (1, 3), 4)
    assert from_weights(TINY, num_classes=2).head.weight.shape == [32, 2]
    assert from_weights(TINY, num_classes=None).num_classes is None
    with pytest.raises(TypeError, match="in_chans"):
        from_weights(TINY, in_chans=4)


def test_a_small_file_asks_for_no_large_network():
    """The sizes that a file tells in biases have to be those of its matrices, block by block."""
    for name, shape in (
        ("network.0.0.norm1.bias", (10**6,)),
        ("network.2.0.mlp.fc1.bias", (10**6,)),
        ("network.6.1000.norm1.bias", (8,)),
        ("network.4.1.mlp.fc1.weight", (3, 3)),
        ("patch_embed.proj.weight", (8, 3)),
    ):
        with pytest.raises(CheckpointError, match="not the weights of a CycleMLP; missing or misshapen"):
            read_network(torch_arrays() | {name: np.zeros(shape, np.float32)}, layout="torch")


# A toolkit's whole model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.weight": np.full(3, np.nan, np.float32)}, r"not finite.* in 1\.weight"),
        ({"1.bias": np.full(3, np.inf, np.float32)}, r"not finite.* in 1\.bias"),
        ({"0.bias": np.zeros(3, np.int64)}, r"no floating-point numbers: 0\.bias \(int64\)"),
        ({"0.bias": np.zeros(4, np.float32)}, r"does not fit the Sequential of the configuration: misshapen \(1\): 0"),
        ({"x\x1b[2J": np.zeros(4, np.float32)}, r"unexpected \(1\): 'x\\x1b\[2J'$"),
    ],
)
def test_a_whole_model_is_loaded_strictly(tmp_path, change, message):
    model, other = (paddle.nn.Sequential(paddle.nn.Linear(2, 3), paddle.nn.LayerNorm(3)) for _ in range(2))
    write_checkpoint(tmp_path / "x.pdparams", state(model))
    load_model_weights(other, tmp_path / "x.pdparams")
    assert equal(state(other), state(model))
    write_checkpoint(tmp_path / "y.pdparams", {**state(model), **change})
    with pytest.raises(CheckpointError, match=message):
        load_model_weights(other, tmp_path / "y.pdparams")
    assert equal(state(other), state(model))


def test_integer_buffers_of_a_whole_model_take_integers(tmp_path):
    model = paddle.nn.LayerNorm(3)
    model.register_buffer("steps", paddle.to_tensor([5]))
    write_checkpoint(tmp_path / "x.pdparams", {**state(model), "steps": np.array([7])})
    load_model_weights(model, tmp_path / "x.pdparams")
    assert model.steps.tolist() == [7]


# cyclemlp convert


def test_a_round_trip_through_both_formats_is_exact(tmp_path, capsys):
    files = [tmp_path / name for name in ("1.pdparams", "2.safetensors", "3.pdparams")]
    for source, target in zip([TINY, *files], files):
        assert main(["convert", str(source), str(target)]) == 0
    assert equal(read_checkpoint(files[2]), reference_state())
    assert files[0].read_bytes() == files[2].read_bytes()
    output = capsys.readouterr().out
    assert "10 offset buffers agree" in output
    assert "107 parameters, float32, paddle layout" in output
    loaded = paddle.load(str(files[2]))
    assert equal({name: value.numpy() for name, value in loaded.items()}, reference_state())


def test_an_attack_through_load_weights_is_refused_too(tmp_path):
    path = pickles.write_torch_zip(tmp_path / "x.pth", pickles.name("posix", "system") + b"U\x01x\x85R", {})
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        load_weights(classifier(), path)
