"""An export is compared with its network when it is made, and again where it runs."""

import dataclasses
import re

import numpy as np
import paddle
import pytest
from paddle import nn

from cyclemlp_backbones.cli import main
from cyclemlp_backbones.deploy.export import IMAGE, Exportable, export
from cyclemlp_backbones.deploy.manifest import ManifestError, Preprocessing, read_manifest, write_manifest
from cyclemlp_backbones.deploy.runtime import DeployedModel
from cyclemlp_backbones.deploy.verify import TOLERANCE, compare, feeds, verify
from tests.deploy.conftest import FORMATS, export_classifier, small_classifier


@pytest.mark.parametrize("kind", FORMATS)
def test_what_was_exported_equals_the_network_here_too(classifier, kind):
    rows = list(verify(DeployedModel(classifier / kind)))
    assert [case for case, _ in rows] == [(n, *size) for n in (1, 2) for size in ((64, 64), (97, 65), (130, 203))]
    network, manifest = small_classifier(), read_manifest(classifier / kind)
    for sample in manifest.samples:
        image = feeds(sample.batch, sample.height, sample.width)["image"]
        logits = network(paddle.to_tensor(image)).numpy()
        np.testing.assert_allclose(sample.values["logits"], logits.reshape(-1), rtol=1e-5, atol=1e-5)
        assert sample.shapes["logits"] == logits.shape
    assert max(found["logits"] for _, found in rows) < TOLERANCE
    assert (classifier / kind / "cyclemlp.yml").stat().st_size < 6000


class WrongInAGraph(nn.Layer):
    """Right in dygraph; in a graph, `how` is done to what odd widths give."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.scale = self.create_parameter([1])

    def forward(self, image):
        y = image.mean([2, 3]) * self.scale
        if paddle.in_dynamic_mode():
            return y
        return self.how(y, paddle.shape(image)[3] % 2)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            lambda y, odd: y + odd.astype("float32") * 1e-3,
            r"logits of a batch of 1, 97 x 65 differs .* at \[0, \d\] it is",
        ),
        (
            lambda y, odd: y / (1 - odd.astype("float32")),
            r"logits of a batch of 1, 97 x 65 differs .*it is (inf|nan|-inf)",
        ),
    ],
)
def test_a_graph_that_is_wrong_at_one_size_is_an_error_and_nothing_is_left(tmp_path, how, said):
    model = Exportable(
        layer=WrongInAGraph(how), task="cls", architecture="Wrong", variant=None, inputs=("image",),
        outputs=("logits",), input_spec=[IMAGE], preprocessing=Preprocessing(), classes=("a", "b", "c"),
    )  # fmt: skip
    with pytest.raises(ManifestError, match=said):
        export(model, tmp_path / "out", format="paddle")
    assert not (tmp_path / "out").exists()
    assert export(model, tmp_path / "out", format="paddle", verified=False).samples == ()


def test_verify_sees_values_and_shapes_that_changed(classifier, tmp_path, capsys):
    assert export_classifier(classifier / "b0.pdparams", tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    first, *others = manifest.samples
    for changed, said in (
        ({"values": {"logits": tuple(value + 1e-3 for value in first.values["logits"])}}, r"at \[\d+\] it is"),
        ({"shapes": {"logits": (1, 5)}}, r"has the shape \[1, 4\], the network's \[1, 5\]"),
    ):
        sample = dataclasses.replace(first, **changed)
        write_manifest(
            tmp_path / "out", dataclasses.replace(manifest, samples=(sample, *others)), [*manifest.model_files()]
        )
        assert main(["verify", str(tmp_path / "out")]) == 1
        assert re.search(said, capsys.readouterr().err)


def test_a_folder_that_was_not_verified_says_so(classifier, tmp_path, capsys):
    assert export_classifier(classifier / "b0.pdparams", tmp_path / "out", "--no-verify") == 0
    assert "not compared" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out")]) == 1
    assert "nothing to compare with; export the model again, without --no-verify" in capsys.readouterr().err


class Detector:
    folder = "out"
    manifest = type("M", (), {"task": "det", "outputs": ("bbox", "bbox_num")})

    def __init__(self, given):
        self.given = given

    def run(self, _):
        return [self.given, np.array([len(self.given)])]


def test_a_detectors_boxes_may_change_places_but_not_differ(caplog):
    boxes = np.array([[0, 0.9, 1, 2, 30, 40], [1, 0.9, 5, 6, 70, 80], [0, 0.2, 0, 0, 9, 9]], np.float32)

    expected = {(1, 64, 64): [boxes, np.array([3])]}
    (sample,) = compare(Detector(boxes[[1, 0, 2]]), expected)
    assert sample.values["bbox"] == tuple(float(f"{value:.6g}") for value in boxes.reshape(-1))
    for wrong in (boxes + np.float32(0.1), boxes[:0]):
        with pytest.raises(ManifestError, match="bbox of a batch of 1, 64 x 64"):
            compare(Detector(wrong), expected)
    assert not caplog.records


@pytest.mark.parametrize("nothing", [np.zeros([1, 6]), np.full([1, 6], -1.0), np.zeros([0, 6])])
def test_a_detector_that_finds_nothing_is_said_to_have_no_box_compared(nothing, caplog):
    compare(Detector(nothing), {(1, 64, 64): [nothing, np.array([0])], (2, 64, 64): [nothing, np.array([0])]})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no box was compared" in caplog.text
