"""Detectors exported from PaddleDetection's configurations, and what predict writes for them."""

import json
import shutil

import numpy as np
import paddle
import pytest
from PIL import Image
from pycocotools.coco import COCO

from cyclemlp_backbones.deploy.images import Prepared
from cyclemlp_backbones.deploy.manifest import read_manifest
from cyclemlp_backbones.deploy.predict import Options, _suppressed, suppress
from cyclemlp_backbones.deploy.quantize import quantize
from tests.adapters.tiny_det import NUM_CLASSES, cyclemlp, in_process, write_config, write_data
from tests.deploy.conftest import FORMATS

pytestmark = pytest.mark.slow

CHANGES = {
    "RetinaHead": {"nms": {"score_threshold": 0.05}, "prior_prob": 0.1},
    "GFLHead": {"prior_prob": 0.1},
    "FCOSHead": {"prior_prob": 0.2},
    "BBoxPostProcess": {"nms": {"score_threshold": 0.05}},
}


KINDS = {
    "paddle": ["--format", "paddle"],
    "onnx": ["--format", "onnx"],
    "onnx-nms": ["--format", "onnx", "--nms"],
}


def save_random(config, weights):
    from ppdet.core.workspace import create

    from cyclemlp_backbones.adapters.paddledet import register_paddledet
    from cyclemlp_backbones.adapters.paddledet.launch import read_config

    register_paddledet(repair=True)

    paddle.seed(1)
    model = create(read_config(str(config), []).architecture)
    for name, parameter in model.named_parameters():
        if name.endswith(("bbox_score.weight", "bbox_delta.weight", "retina_cls.weight", "head_cls.weight")):
            parameter.set_value(parameter * 3)
    paddle.save(model.state_dict(), str(weights))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")
    write_data(folder, train=1, val=3)
    return folder


def predict(folder, detector, kind):
    config, weights = write_config(folder, detector, **CHANGES), folder / f"{detector}.pdparams"
    if not weights.exists():
        in_process(save_random, config, weights)
    out = folder / detector / kind
    if out.exists():
        return json.loads((folder / detector / f"results-{kind}" / "detections.json").read_text())
    flags = ["--task", "det", "--config", config, *KINDS[kind]]
    status, output = cyclemlp("export", weights, out, *flags, cwd=folder)
    assert status == 0, output
    (folder / detector / "exported.txt").write_text(output)
    status, output = cyclemlp("verify", out, cwd=folder)
    assert status == 0, output
    annotations = folder / "annotations" / "instances_val.json"
    results = folder / detector / f"results-{kind}"
    flags = ["--out", results, "--coco-images", annotations, "--batch-size", 2, "--score-threshold", 0.1]
    status, output = cyclemlp("predict", out, folder / "val", *flags, cwd=folder)
    assert status == 0, output
    truth = COCO(str(annotations))
    found = truth.loadRes(str(results / "detections.json"))  # COCO's own reader takes it
    assert set(found.getImgIds()) == set(truth.getImgIds())
    described = json.loads((results / "images.json").read_text())
    assert [entry["name"] for entry in described["categories"]] == [str(number) for number in range(NUM_CLASSES)]
    assert len(list((results / "overlays").iterdir())) == 3
    return json.loads((results / "detections.json").read_text())


@pytest.mark.parametrize(
    ("detector", "kinds"), [("retinanet", ["onnx", "onnx-nms"]), ("gfl", ["onnx"]), ("fcos", ["onnx"])]
)
def test_a_one_stage_detector_finds_the_same_in_every_format(folder, detector, kinds):
    kinds = [kind for kind in kinds if "onnx" in FORMATS]
    found = {kind: predict(folder, detector, kind) for kind in ("paddle", *kinds)}
    for kind in kinds:
        assert len(found[kind]) == len(found["paddle"]) > 3
        for some, others in zip(found[kind], found["paddle"]):
            assert some["image_id"] == others["image_id"]
            assert some["score"] == pytest.approx(others["score"], abs=1e-4)
        boxes = {(entry["image_id"], entry["category_id"], *np.round(entry["bbox"], 0)) for entry in found[kind]}
        assert sum(
            (e["image_id"], e["category_id"], *np.round(e["bbox"], 0)) in boxes for e in found["paddle"]
        ) > 0.95 * len(boxes)


@pytest.mark.parametrize("mode", ["fp16", "static"])
def test_a_quantised_retinanet_finds_nearly_the_same(folder, tmp_path, mode):
    if "onnx" not in FORMATS:
        return
    expected = predict(folder, "retinanet", "onnx")
    shutil.copytree(folder / "retinanet" / "onnx", tmp_path / "model")
    manifest = quantize(tmp_path / "model", mode, calibration=folder / "val" if mode == "static" else None)
    assert manifest.samples == ()
    flags = ["--out", tmp_path / "out", "--score-threshold", 0.1]
    status, output = cyclemlp("predict", tmp_path / "model", folder / "val", *flags, cwd=folder)
    assert status == 0, output
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    best, wanted = (sorted((entry["score"] for entry in entries), reverse=True)[:10] for entries in (found, expected))
    assert best == pytest.approx(wanted, abs=1e-2 if mode == "fp16" else 0.1)
    assert found != expected


SHAPES = [(1, 64, 64), (3, 96, 64), (1, 64, 128), (3, 32, 64), (1, 32, 32)]


def compare(config, weights, folder):
    """The exported detector beside the network at five sizes: of each output its rows, the best first."""
    from cyclemlp_backbones.adapters.paddledet.export import det_export
    from cyclemlp_backbones.deploy.export import export
    from cyclemlp_backbones.deploy.runtime import DeployedModel

    def by_image(outputs):
        for end, count in zip(np.cumsum(outputs[1]), outputs[1]):
            rows = [array[end - count : end] for array in (outputs[0], *outputs[2:])]
            yield [array[np.argsort(-rows[0][:, 1], kind="stable")] for array in rows]

    for kind in FORMATS:
        model = det_export(str(weights), str(config), format=kind, nms=True)
        export(model, folder / kind, format=kind)
        deployed = DeployedModel(folder / kind)
        for batch, height, width in SHAPES:
            image = np.random.RandomState(height + width).standard_normal((batch, 3, height, width))
            scales = np.array([[1, 1], [0.5, 0.7], [2, 1.5]][:batch])
            feeds = {"image": image, "im_shape": [[height, width]] * batch, "scale_factor": scales}
            feeds = {name: np.array(feeds[name], np.float32) for name in model.inputs}
            with paddle.no_grad():
                expected = [y.numpy() for y in model.layer(*map(paddle.to_tensor, feeds.values()))]
            found = deployed.run(feeds)
            assert found[1].tolist() == expected[1].tolist()
            assert min(expected[1]) > 3
            for some, others in zip(by_image(found), by_image(expected), strict=True):
                np.testing.assert_allclose(some[0], others[0], rtol=0, atol=1e-3, err_msg=f"{kind} {height} {width}")
                for mask, other in zip(some[1:], others[1:]):
                    assert mask.shape == other.shape
                    assert (mask != other).mean() < 1e-4
    return FORMATS


@pytest.mark.parametrize("detector", ["retinanet", "gfl", "fcos", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"])
def test_a_detector_with_suppression_equals_dygraph_in_every_format_at_any_size_and_batch(folder, tmp_path, detector):
    config, weights = write_config(folder, detector, **CHANGES), tmp_path / "model.pdparams"
    in_process(save_random, config, weights)
    assert in_process(compare, config, weights, tmp_path) == FORMATS


def test_mask_rcnn_writes_masks_of_the_pictures_size(folder):
    found = predict(folder, "mask_rcnn", "paddle")
    assert found
    assert {tuple(entry["segmentation"]["size"]) for entry in found} == {(64, 64)}


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_a_dot_a_strip_and_a_broken_image_are_done_or_named(folder, tmp_path, detector):
    predict(folder, detector, "paddle")
    for name, size in {"dot": (1, 1), "strip": (20_000, 30)}.items():
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    model = folder / detector / "paddle"
    status, output = cyclemlp("predict", model, tmp_path, "--out", tmp_path / "out", cwd=folder)
    assert status == 1
    assert "broken.png" in output
    assert "wrote the results of 2 images" in output
    described = json.loads((tmp_path / "out" / "images.json").read_text())
    assert [(entry["width"], entry["height"]) for entry in described["images"]] == [(1, 1), (20_000, 30)]
    for entry in json.loads((tmp_path / "out" / "detections.json").read_text()):
        x, y, width, height = entry["bbox"]
        limits = described["images"][entry["image_id"] - 1]
        assert 0 <= x <= x + width <= limits["width"] + 0.01
        assert 0 <= y <= y + height <= limits["height"] + 0.01


def test_images_that_the_annotations_lack_are_named_before_any_is_done(folder, tmp_path):
    predict(folder, "retinanet", "paddle")
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    flags = ["--out", tmp_path / "out", "--coco-images", folder / "annotations" / "instances_val.json"]
    status, output = cyclemlp("predict", folder / "retinanet" / "paddle", tmp_path, *flags, cwd=folder)
    assert status == 1
    assert "lack 1 images, other.png first" in output
    assert not (tmp_path / "out").exists()


def test_suppression_keeps_the_best_of_overlapping_boxes():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 4]], np.float64)
    assert suppress(boxes, 0.5) == [0, 2, 3]
    assert suppress(boxes, 0.9) == [0, 1, 2, 3]


def test_all_candidates_and_all_objects_are_kept_where_minus_one_says_so():
    prepared = Prepared(np.zeros((3, 64, 64)), (64, 64), (64, 64), (1.0, 1.0))
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    nms = {"score_threshold": 0.1, "nms_threshold": 0.5, "nms_top_k": -1, "keep_top_k": -1}
    scores = np.array([[0.5], [0.7], [0.6]], np.float32)
    found = [
        _suppressed(prepared, boxes, scores, {**nms, **some}, Options()).scores for some in ({}, {"keep_top_k": 2})
    ]
    assert [scores.tolist() for scores in found] == [pytest.approx([0.7, 0.6, 0.5]), pytest.approx([0.7, 0.6])]


def test_annotations_that_are_missing_are_named_since_classes_get_numbers(folder, tmp_path):
    predict(folder, "retinanet", "paddle")
    config = write_config(tmp_path, "retinanet", **CHANGES)
    flags = ["--task", "det", "--config", config, "--no-verify"]
    status, output = cyclemlp("export", folder / "retinanet.pdparams", tmp_path / "out", *flags, cwd=tmp_path)
    assert status == 0, output
    assert f"{tmp_path}/annotations/instances_val.json: classes and category ids are numbers from 0" in output
    assert read_manifest(tmp_path / "out").category_ids == tuple(range(NUM_CLASSES))
    assert "are numbers from 0" not in (folder / "retinanet" / "exported.txt").read_text()
