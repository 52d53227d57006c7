"""What people see: photographs under colours, names that can be read and lie within the picture."""

import csv
import json
import logging
from pathlib import Path

import matplotlib
import numpy as np
import paddle
import pytest
from PIL import Image

from cyclemlp_backbones import digits
from cyclemlp_backbones.deploy import drawing
from cyclemlp_backbones.deploy.drawing import Object, label, lettering, outline, paint, with_legend, with_objects
from cyclemlp_backbones.deploy.images import ImageFile, Prepared
from cyclemlp_backbones.deploy.manifest import Manifest, Preprocessing
from cyclemlp_backbones.deploy.predict import _labels
from cyclemlp_backbones.deploy.results import Describer, Detections, Writer
from cyclemlp_backbones.pictures import class_palette

RED = (128, 0, 0)


def share_of(picture, colour):
    return (np.abs(np.asarray(picture).astype(int) - colour).max(axis=-1) <= 3).mean()


def test_the_demos_colours_are_those_of_every_command():
    assert class_palette(len(digits.CLASSES)) == digits.PALETTE


def test_the_background_stays_the_photograph_and_classes_are_mixed_with_it():
    pixels = np.random.RandomState(0).randint(0, 256, (400, 500, 3), dtype=np.uint8)
    labels = np.zeros((400, 500), np.int64)
    labels[100:300, 200:] = 1
    shown = np.asarray(paint(Image.fromarray(pixels), labels, ((0, 0, 0), RED), plain=(0,))).astype(int)
    assert (shown[labels == 0] == pixels[labels == 0]).all()
    mixed = (pixels[labels == 1].astype(int) + RED) / 2
    assert np.abs(shown[labels == 1] - mixed).max() <= 2
    shown = np.asarray(paint(Image.fromarray(pixels), labels, ((0, 0, 0), RED), plain=())).astype(int)
    assert np.abs(shown[labels == 0] - pixels[labels == 0] / 2).max() <= 2


@pytest.mark.parametrize("size", [(6000, 300), (90, 71), (1, 1)])
def test_pictures_of_any_size_keep_their_shape_and_their_classes_place(size):
    labels = np.zeros(size[::-1], np.uint8)
    labels[:, size[0] // 2 :] = 1
    shown = paint(Image.new("RGB", size), labels, ((0, 0, 0), RED), plain=(0,))
    assert 360 <= shown.width <= 2048
    assert shown.width / shown.height == pytest.approx(size[0] / size[1], rel=0.01)
    assert np.asarray(shown)[..., 0].mean() == pytest.approx(64 * labels.mean(), abs=1)


def test_logits_are_enlarged_as_paddle_does_and_not_their_classes():
    logits = np.random.RandomState(0).standard_normal((5, 12, 16)).astype(np.float32)
    prepared = Prepared(np.zeros((3, 12, 16)), (11, 16), (66, 80), (6.0, 5.0))  # one row is padding
    enlarged = paddle.nn.functional.interpolate(paddle.to_tensor(logits[None, :, :11]), [66, 80], mode="bilinear")
    expected = enlarged[0].numpy().argmax(axis=0)
    assert (_labels(prepared, logits) == expected).mean() > 0.999
    assert (logits[:, :11].argmax(axis=0).repeat(6, 0).repeat(5, 1) == expected).mean() < 0.95


@pytest.mark.parametrize("box", [(0, 0, 50, 40), (560, 0, 600, 30), (560, 380, 600, 400), (300, 200, 340, 230)])
def test_a_label_lies_within_the_picture_and_is_seen_on_a_dark_one(box):
    picture = Image.new("RGB", (600, 400))
    outline(picture, box, RED)
    label(picture, box, "a name of some length 0.50", RED, [])
    assert share_of(picture, RED) * 600 * 400 > 140 * 15  # the label, whole
    assert share_of(picture, (255, 255, 255)) * 600 * 400 > 2 * (box[2] - box[0])  # the line around the coloured one


@pytest.mark.parametrize("top", [0, 150, 340])
def test_names_of_objects_that_overlap_do_not_cover_each_other(top):
    picture, taken = Image.new("RGB", (600, 400)), []
    for number in range(4):
        label(picture, (200 + number, top + number, 500, top + 60), f"name {number} 0.50", RED, taken)
    assert len(taken) == 4
    for index, (x1, y1, x2, y2) in enumerate(taken):
        assert 0 <= x1 < x2 <= 600
        assert 0 <= y1 < y2 <= 400
        assert all(x2 <= left or right <= x1 or y2 <= up or low <= y1 for left, up, right, low in taken[:index])


def test_a_mask_covers_no_name():
    """The best object's mask lies over the place of the other's name."""
    green, mask = (0, 255, 0), np.zeros((400, 600), np.uint8)
    mask[50:350, 100:500] = 1
    objects = [Object(0, 0.9, (100, 50, 500, 350), lambda: mask), Object(1, 0.8, (200, 200, 300, 300))]
    picture = with_objects(Image.new("RGB", (600, 400)), objects, ("a", "b"), (RED, green), 0.5, legend=())
    assert share_of(picture.crop((202, 185, 228, 197)), green) > 0.5


def test_every_class_colour_has_letters_in_contrast():
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for colour in class_palette(256):
        letters = {"black": 0.0, "white": 1.0}[drawing._on(colour)]
        low, high = sorted((luminance(colour), letters))
        assert (high + 0.05) / (low + 0.05) > 4.3


def test_a_legend_has_every_name_with_its_colour_below_the_picture():
    colours = class_palette(20)[1:]
    picture = Image.new("RGB", (360, 50), "black")
    panel = with_legend(picture, [("a heading", None), *((f"class {n}", colour) for n, colour in enumerate(colours))])
    assert np.asarray(panel)[:50, :360].max() == 0
    below = panel.crop((0, 50, *panel.size))
    assert all(share_of(below, colour) * below.width * below.height > 150 for colour in colours)
    assert panel.width <= 2 * picture.width  # in several rows


def test_letters_come_from_a_font_that_has_them_or_a_warning_names_the_extra(monkeypatch, caplog):
    letters = "cat Straße"
    assert lettering(letters, 20)[0] == letters
    dejavu = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    drawing._warn_of_letters.cache_clear()
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(drawing, "_FONTS", (str(dejavu), ""))
        assert lettering("кошка", 20)[0] == "кошка"
        assert not caplog.records
        for text in ("狗 dog", "猫"):
            assert lettering(text, 20)[0] == text.replace("狗", "?").replace("猫", "?")
    (record,) = caplog.records
    assert "cyclemlp-backbones[fonts]" in record.getMessage()


def test_the_free_font_of_the_extra_is_read_from_its_package(monkeypatch, tmp_path):
    """A package of that name, with another font in the place of its own."""
    source = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    target = tmp_path / drawing._PACKAGE / drawing._FONT
    target.parent.mkdir(parents=True)
    (tmp_path / drawing._PACKAGE / "__init__.py").write_text("raise ImportError('which is not needed')")
    target.write_bytes(source.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    drawing._load.cache_clear()
    assert drawing._load(drawing._FONTS[1], 20).getname()[0] == "DejaVu Sans Mono"
    drawing._load.cache_clear()


def manifest(task, names):
    forms = {"seg": (("image",), ("logits",)), "det": (("image", "im_shape", "scale_factor"), ("bbox", "bbox_num"))}
    ids = tuple(range(len(names))) if task == "det" else ()
    return Manifest(task, "paddle", "", None, *forms[task], Preprocessing(), names, category_ids=ids)


def rows_of(folder):
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("name", "left"), [("background", True), ("背景", True), ("0", True), ("wall", False)])
def test_class_0_is_left_out_where_it_is_nothing_in_particular(tmp_path, name, left):
    photograph = Image.new("RGB", (400, 300), (200, 210, 220))
    writer = Writer(tmp_path, Describer(manifest("seg", (name, "roof"))))
    done = writer.write(ImageFile(Path("a.png"), "a.png", "a"), photograph, np.zeros((300, 400), np.int64))
    writer.close()
    shown = Image.open(tmp_path / "overlays" / "a.jpg").crop((0, 0, 400, 300))
    assert (share_of(shown, (200, 210, 220)) > 0.99) == left
    assert done["files"] == ["masks/a.png", "overlays/a.jpg"]
    assert rows_of(tmp_path)[0]["files"] == "masks/a.png;overlays/a.jpg"


def test_an_image_without_objects_has_a_line_too_and_the_threshold_is_in_the_picture(tmp_path):
    nothing = Detections(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 4)))
    photograph, heights = Image.new("RGB", (400, 300)), {}
    for threshold in (0.5, 0.7):
        describer = Describer(manifest("det", ("cat",)), draw_threshold=threshold)
        writer = Writer(tmp_path / str(threshold), describer)
        done = writer.write(ImageFile(Path("a.png"), "a.png", "a"), photograph, nothing)
        writer.close()
        assert (done["results"], done["files"]) == ([], ["overlays/a.jpg"])
        (row,) = rows_of(tmp_path / str(threshold))
        assert (row["image"], row["score"], row["files"]) == ("a.png", "", "overlays/a.jpg")
        assert json.loads((tmp_path / str(threshold) / "detections.json").read_text()) == []
        heights[threshold] = np.asarray(Image.open(tmp_path / str(threshold) / "overlays" / "a.jpg"))
    assert (heights[0.5][300:] != heights[0.7][300:]).any()
