"""`cyclemlp predict` on images of odd shapes, names and contents: one bad image stops no other."""

import csv
import json
import os

import numpy as np
import paddle
import pytest
from PIL import Image

from cyclemlp_backbones.cli import main
from cyclemlp_backbones.deploy.images import Prepared, batches_of_equal_shape, find_images, to_array
from cyclemlp_backbones.deploy.manifest import Manifest, Preprocessing
from cyclemlp_backbones.deploy.predict import Options
from cyclemlp_backbones.deploy.results import coco_image_ids
from tests.deploy.conftest import CLASSES, small_classifier


def save(path, size=(40, 40), colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def predict(model, images, out, *flags):
    return main(["predict", str(model), *map(str, images), "--out", str(out), *flags])


def rows(out):
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_dot_and_a_strip_are_classified(classifier, tmp_path):
    for name, size in {"dot": (1, 1), "strip": (20_000, 30), "tower": (30, 20_000)}.items():
        save(tmp_path / f"{name}.png", size)
    assert predict(classifier / "paddle", [tmp_path], tmp_path / "out", "--top", "2") == 0
    assert [row["rank"] for row in rows(tmp_path / "out")] == ["1", "2"] * 3
    assert max(max(Image.open(path).size) for path in (tmp_path / "out" / "overlays").iterdir()) < 5000


def test_probabilities_are_of_the_named_classes(classifier, tmp_path):
    """What the network itself says of a picture that needs no resizing."""
    pixels = np.random.RandomState(0).randint(0, 256, (71, 71, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    assert predict(classifier / "paddle", [tmp_path / "one.png"], tmp_path / "out", "--top", "4") == 0
    crop = pixels[4:68, 4:68].astype(np.float32) / 255  # (71 - 64) / 2, rounded to an even number
    image = ((crop - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None].astype(np.float32)
    with paddle.no_grad():
        shares = paddle.nn.functional.softmax(small_classifier()(paddle.to_tensor(image)))[0].numpy()
    found = rows(tmp_path / "out")
    assert [row["class"] for row in found] == [CLASSES[label] for label in np.argsort(-shares)]
    assert [float(row["probability"]) for row in found] == pytest.approx(sorted(shares, reverse=True), abs=1e-4)


def test_images_may_stand_behind_the_flags_and_every_result_is_printed(classifier, tmp_path, capsys):
    save(tmp_path / "one.png")
    (tmp_path / "two.png").write_bytes(b"no picture")
    flags = ["--json", "--top", "2", "--out", str(tmp_path / "out")]
    assert main(["predict", str(classifier / "paddle"), *flags, str(tmp_path / "one.png"), str(tmp_path / "two.png")])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["image"] == str(tmp_path / "one.png")
    assert [result["class"] for result in first["results"]] == [row["class"] for row in rows(tmp_path / "out")]
    assert all((tmp_path / "out" / name).is_file() for name in first["files"])
    assert second == {"image": str(tmp_path / "two.png"), "error": second["error"]}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--top", "0"], "--top is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--tile", "64"], "--tile is for segmentation"),
        (["--score-threshold", "7"], "--score-threshold is 7.0; it takes 0 to 1"),
        (["--draw-threshold", "nan"], "--draw-threshold is nan"),
        (["--coco-images", "none.json"], "--coco-images is for detection"),
    ],
)
def test_flags_out_of_range_are_refused(classifier, tmp_path, capsys, flags, named):
    save(tmp_path / "one.png")
    assert predict(classifier / "paddle", [tmp_path / "one.png"], tmp_path / "out", *flags) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_read_are_named_and_the_others_done(classifier, tmp_path, capsys):
    images = tmp_path / "images"
    for name, size in {"0": (40, 70), "1": (1, 1), "2": (300, 12), "large": (400, 400)}.items():
        save(images / f"{name}.png", size)
    (images / "broken.png").write_bytes(b"no picture")
    assert predict(classifier / "paddle", [images], tmp_path / "out", "--max-pixels", "10000", "--top", "1") == 1
    error = capsys.readouterr().err
    assert "broken.png: UnidentifiedImageError" in error
    assert "large.png: ValueError: 400 x 400 pixels are more than --max-pixels 10000" in error
    assert [row["image"] for row in rows(tmp_path / "out")] == [str(images / f"{number}.png") for number in range(3)]
    assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]


def test_names_that_are_no_numbers_and_no_text_are_done(classifier, tmp_path, capsys):
    images = tmp_path / "images"
    names = ["1²3.png", os.fsdecode(b"caf\xe9.png"), "\x1b[2Jclear.png"]
    for name in names:
        save(images / name)
    (images / "\x1b[2Jbroken.png").write_bytes(b"")
    assert predict(classifier / "paddle", [images], tmp_path / "out", "--top", "1") == 1
    output = capsys.readouterr()
    assert "\x1b" not in output.err.split("left out", 1)[1].splitlines()[0]
    assert {os.path.basename(row["image"]) for row in rows(tmp_path / "out")} == {
        "1²3.png",
        "caf\\udce9.png",
        "\x1b[2Jclear.png",
    }
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 3


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("frame_10", "frame_2", "a/frame_1", "²", "٣"):
        save(tmp_path / f"{name}.png")
    assert [file.name for file in find_images([tmp_path])] == ["٣", "a/frame_1", "frame_2", "frame_10", "²"]


def test_every_image_has_results_of_its_own_that_say_whose_they_are(classifier, tmp_path):
    paths = [save(tmp_path / "a" / name) for name in ("x.jpg", "x.png", "y.png")] + [save(tmp_path / "b" / "y.png")]
    assert predict(classifier / "paddle", paths, tmp_path / "out", "--top", "1") == 0
    results = {row["image"]: row["result"] for row in rows(tmp_path / "out")}
    assert results == dict(zip(map(str, paths), ["x.jpg", "x.png", "y.png", "y.png_2"]))
    overlays = {path.name for path in (tmp_path / "out" / "overlays").iterdir()}
    assert overlays == {f"{result}.jpg" for result in results.values()}


def test_results_are_not_predicted_again(classifier, tmp_path, capsys):
    save(tmp_path / "images" / "masks" / "one.png")
    out = tmp_path / "images" / "out"
    for _ in range(2):
        assert predict(classifier / "paddle", [tmp_path / "images"], out, "--top", "1") == 0
        assert len(rows(out)) == 1
    assert predict(classifier / "paddle", [tmp_path / "images"], tmp_path / "images") == 1
    assert "is a folder of images, among which results do not belong" in capsys.readouterr().err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_an_error_of_the_image(classifier, tmp_path, capsys, monkeypatch, value):
    """Whatever a runtime computes: here its output is replaced for the second image."""
    from cyclemlp_backbones.deploy.runtime import DeployedModel

    run, calls = DeployedModel.run, []

    def spoilt(model, feeds):
        (logits,) = run(model, feeds)
        calls.append(feeds["image"])
        if len(calls) == 3:  # the first is the loader's trial
            logits[0, 2] = value
        return [logits]

    monkeypatch.setattr(DeployedModel, "run", spoilt)
    paths = [save(tmp_path / f"{name}.png") for name in "abc"]
    assert predict(classifier / "paddle", paths, tmp_path / "out", "--top", "1") == 1
    assert "b.png: UnusableResult: the model gives numbers that are not finite" in capsys.readouterr().err
    assert [row["result"] for row in rows(tmp_path / "out")] == ["a", "c"]


def annotate(path, entries):
    path.write_text(json.dumps({"images": [{"file_name": name, "id": identity} for name, identity in entries]}))
    return path


def test_coco_s_ids_go_by_the_whole_name(tmp_path):
    paths = [save(tmp_path / "val" / name) for name in ("a/1.jpg", "b/1.jpg", "2.jpg")]
    files = find_images(paths)
    annotations = annotate(tmp_path / "a.json", [("a/1.jpg", 7), ("b/1.jpg", 8), ("2.jpg", 9), ("c/1.jpg", 5)])
    assert list(coco_image_ids(files, annotations).values()) == [7, 8, 9]
    annotations = annotate(tmp_path / "b.json", [("1.jpg", 7), ("b/1.jpg", 8), ("elsewhere/2.jpg", "9")])
    assert list(coco_image_ids(files, annotations).values()) == [7, 8, 9]
    assert [file.file_name for file in find_images([tmp_path / "val"])] == ["2.jpg", "a/1.jpg", "b/1.jpg"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("c/1.jpg", 1), ("d/1.jpg", 2)], r"has 2 images that may be .+1\.jpg: ids \[1, 2\]"),
        ([("1.jpg", 1), ("1.jpg", 2)], "has 2 images that may be"),
        ([("1.jpg", 1)], "has one image for two"),
        ([("2.jpg", 1)], "lack 2 images, 1.jpg first"),
        ([("1.jpg", "one")], "is no COCO annotation file"),
    ],
)
def test_ids_that_are_not_certain_are_an_error(tmp_path, entries, message):
    files = find_images([save(tmp_path / name / "1.jpg") for name in "ab"])
    with pytest.raises(ValueError, match=message):
        coco_image_ids(files, annotate(tmp_path / "a.json", entries))


def test_range_and_order_of_channels_are_the_manifests():
    pixels = np.array([[[0, 51, 255]]], np.uint8)
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "least": 1}
    assert to_array(pixels, Preprocessing(**plain))[:, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    other = Preprocessing(**plain, input_range=(-1.0, 3.0), channel_order="BGR")
    assert to_array(pixels, other)[:, 0, 0].tolist() == pytest.approx([3, -0.2, -1])


def test_a_batch_holds_no_more_pixels_than_one_image_may():
    items = [(None, None, Prepared(np.zeros((3, 10, 10)), (10, 10), (10, 10), (1, 1)))] * 7

    def sizes(**limits):
        return [len(batch) for batch in batches_of_equal_shape(iter(items), **limits)]

    assert sizes(size=4, most_pixels=1000) == [4, 3]
    assert sizes(size=4, most_pixels=299) == [2, 2, 2, 1]
    assert sizes(size=4, most_pixels=1) == [1] * 7


def test_many_classes_leave_fewer_pixels_to_a_segmentation_model():
    def manifest(task, classes):
        names = tuple(map(str, range(classes)))
        return Manifest(task, "onnx", "", None, ("image",), ("logits",), Preprocessing(), names)

    assert Options().model_pixels(manifest("seg", 2)) == Options().model_pixels(manifest("cls", 1000)) == 4096 * 4096
    assert Options().model_pixels(manifest("seg", 150)) * 150 * 4 <= 2**31
    with pytest.raises(ValueError, match="--max-model-pixels"):
        Options(tile=8192).check(manifest("seg", 2))
