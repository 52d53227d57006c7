"""Annotations of LabelMe and Pascal VOC become the masks, boxes and lists that they mean, or an error names them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from cyclemlp_backbones.cli import main
from cyclemlp_backbones.datasets.convert import convert
from tests.datasets.own_data import CLASSES, SIZE, scenes, write_json, write_labelme, write_voc, write_xml

SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30]]


def labelled(folder, shapes, name="a", size=(SIZE, SIZE)):
    """One picture with these shapes, and one without any."""
    folder.mkdir(exist_ok=True)
    for stem, own in ((name, shapes), ("zz", [])):
        Image.new("RGB", (SIZE, SIZE)).save(folder / f"{stem}.jpg")
        write_json(folder / f"{stem}.json", own, size)
    return folder


def mask(out, name):
    return np.asarray(Image.open(out / "annotations" / f"{name}.png"))


def test_labelme_shapes_are_drawn_in_their_order(tmp_path):
    shapes = [
        {"label": "b", "points": SQUARE},
        {"label": "a", "points": [[20, 20], [60, 60]], "shape_type": "rectangle"},
        {"label": "b", "points": [[100, 100], [100, 120]], "shape_type": "circle"},
        {"label": "__ignore__", "points": [[0, 140], [40, 159]], "shape_type": "rectangle"},
        {"label": "_background_", "points": [[95, 95], [105, 105]], "shape_type": "rectangle"},
    ]
    counts, labels = convert(labelled(tmp_path / "in", shapes), tmp_path / "out", to="seg", val_share=0)
    classes = mask(tmp_path / "out", "a")
    assert (counts, labels) == ({"train": 2}, ["background", "a", "b"])
    assert [classes[y, x] for x, y in ((12, 12), (25, 25), (55, 55), (100, 115), (100, 123), (5, 150), (100, 100))] == [
        2, 1, 1, 2, 0, 255, 0,
    ]  # fmt: skip
    assert (classes == 2).sum() == pytest.approx(np.pi * 20**2 - 11 * 11 + 400 - 100, rel=0.06)
    assert not mask(tmp_path / "out", "zz").any()
    assert (tmp_path / "out" / "labels.txt").read_text() == "background\na\nb\n"


def test_a_turned_picture_is_labelled_as_it_is_shown(tmp_path):
    folder = labelled(tmp_path / "in", [])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "a.jpg", exif=exif)
    shapes = [{"label": "a", "points": [[0, 30], [19, 39]], "shape_type": "rectangle"}]
    write_json(folder / "a.json", shapes, (20, 40))
    convert(folder, tmp_path / "out", to="seg", val_share=0)
    assert mask(tmp_path / "out", "a").shape == (40, 20)
    assert (mask(tmp_path / "out", "a")[30:] == 1).all()
    write_json(folder / "a.json", shapes, (40, 20))
    with pytest.raises(ValueError, match=r"a\.json: it is of 40 x 20, .*a\.jpg is 20 x 40"):
        convert(folder, tmp_path / "other", to="seg")


def test_labelme_gives_boxes_and_polygons_within_the_picture(tmp_path):
    shapes = [
        {"label": "b", "points": SQUARE, "group_id": 3},
        {"label": "b", "points": [[50, 10], [60, 20]], "shape_type": "rectangle", "group_id": 3},
        {"label": "a", "points": [[150, 150], [170, 150], [170, 170]]},
        {"label": "__ignore__", "points": SQUARE},
    ]
    convert(labelled(tmp_path / "in", shapes), tmp_path / "out", to="det", val_share=0)
    document = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    grouped, clipped = document["annotations"]
    assert document["categories"] == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    assert (grouped["category_id"], grouped["bbox"], grouped["area"]) == (2, [10, 10, 50, 20], 500)
    assert grouped["segmentation"] == [[10, 10, 30, 10, 30, 30, 10, 30], [50, 10, 60, 10, 60, 20, 50, 20]]
    assert (clipped["category_id"], clipped["bbox"]) == (1, [150, 150, 10, 10])
    assert not (tmp_path / "out" / "annotations" / "instances_val.json").exists()


def test_voc_gives_the_boxes_of_its_pixels(tmp_path):
    write_voc(tmp_path / "voc", 5)
    convert(tmp_path / "voc", tmp_path / "out", to="det")
    found = []
    for part in ("train", "val"):
        document = json.loads((tmp_path / "out" / "annotations" / f"instances_{part}.json").read_text())
        names = {image["id"]: image["file_name"] for image in document["images"]}
        found += [(names[entry["image_id"]], entry["category_id"], *entry["bbox"]) for entry in document["annotations"]]
        assert all("segmentation" not in entry for entry in document["annotations"])
    assert sorted(found) == sorted(
        (f"{index:03d}.jpg", 1 + digit.value % 2, *digit.box)
        for index, scene in enumerate(scenes(5))
        for digit in scene.digits
    )


def test_voc_masks_keep_their_classes_whatever_tells_them(tmp_path):
    write_voc(tmp_path / "own", 3)
    classes = tmp_path / "classes.txt"
    classes.write_text("background 0 0 0\neven 250 10 10\nodd 10 10 250\n")
    convert(tmp_path / "own", tmp_path / "out", to="seg", classes=classes)
    source = tmp_path / "own" / "SegmentationClass"
    wanted = {path.stem: mask(tmp_path / "out", path.stem) for path in source.iterdir()}
    for index, scene in enumerate(scenes(3)):
        truth = np.zeros((SIZE, SIZE), np.uint8)
        for digit in scene.digits:
            truth[digit.mask] = 1 + digit.value % 2
        assert (wanted[f"{index:03d}"] == truth).all()
    for form in ("palette", "gray", "VOC's colours"):
        for name, array in wanted.items():
            picture = Image.fromarray(np.where(np.arange(SIZE) < 3, 255, array).astype(np.uint8))
            if form != "gray":
                picture = Image.open(tmp_path / "out" / "annotations" / f"{name}.png")
            (picture.convert("RGB") if form == "VOC's colours" else picture).save(source / f"{name}.png")
        out = tmp_path / form
        _, labels = convert(tmp_path / "own", out, to="seg")
        assert labels == ["background", "1", "2"]
        left = 3 if form == "gray" else 0
        for name, array in wanted.items():
            assert (mask(out, name)[:, left:] == array[:, left:]).all()
            assert (mask(out, name)[:, :left] == 255).all()


def test_the_split_follows_from_the_seed_and_the_names(tmp_path):
    write_labelme(tmp_path / "in", 10)
    lists = []
    for number, (seed, link) in enumerate(((0, False), (0, True), (1, False))):
        out = tmp_path / f"out{number}"
        counts, _ = convert(tmp_path / "in", out, to="seg", val_share=0.3, seed=seed, link=link)
        assert counts == {"train": 7, "val": 3}
        train, val = ((out / f"{part}.txt").read_text().splitlines() for part in ("train", "val"))
        assert len({*train, *val}) == 10
        assert all((out / name).is_file() for line in train + val for name in line.split(" "))
        assert all((out / line.split(" ")[0]).is_symlink() == link for line in val)
        lists.append(val)
    assert lists[0] == lists[1] != lists[2]


def voc_of(folder, boxes, size=(SIZE, SIZE)):
    write_voc(folder, 2)
    write_xml(folder / "Annotations" / "000.xml", boxes, size)
    return folder


def shape(**values):
    return lambda folder: labelled(folder, [{"label": "cat", "points": SQUARE, **values}])


def without_image(folder):
    labelled(folder, [])
    (folder / "a.jpg").unlink()
    return folder


def torn_json(folder):
    (labelled(folder, []) / "a.json").write_text("{")
    return folder


def other_json(folder):
    (labelled(folder, []) / "settings.json").write_text("[]")
    return folder


def torn_image(folder):
    (labelled(folder, []) / "a.jpg").write_bytes(b"no picture")
    return folder


def same_names(folder):
    labelled(folder, [], name="a b")
    return labelled(folder, [], name="a_b")


def strange_colour(folder):
    write_voc(folder, 2)
    return folder


MISTAKES = [
    (shape(points=[[1, 2]]), "seg", r"a\.json: entry 1: a polygon of 1 points; polygons, rectangles and circles"),
    (shape(shape_type="line"), "det", r"a\.json: entry 1: a line of 4 points"),
    (shape(points=[["x", 2]] * 3), "seg", r"a\.json: entry 1: could not convert string to float: 'x'"),
    (shape(points=None), "seg", r"a\.json: entry 1: TypeError"),
    (shape(points=[[float("nan"), 2]] * 3), "seg", r"a\.json: entry 1: 'cat' has no area inside"),
    (
        shape(points=[[200, 10], [220, 10], [220, 30]]),
        "det",
        r"a\.json: entry 1: 'cat' has no area inside .* 160 x 160",
    ),
    (
        lambda folder: labelled(folder, [], size=(200, 100)),
        "seg",
        r"a\.json: it is of 200 x 100, .*a\.jpg is 160 x 160",
    ),
    (without_image, "seg", r"a\.json: no image a\.jpg in "),
    (torn_json, "seg", r"a\.json: "),
    (other_json, "det", r"settings\.json: no file of LabelMe: it has no list of shapes"),
    (torn_image, "seg", r"a\.json: .*cannot identify image file"),
    (lambda folder: labelled(folder, []), "det", r"in has objects of 0 classes"),
    (same_names, "seg", r"a b\.json and .*a_b\.json would both be called a_b; rename one"),
    (
        lambda folder: voc_of(folder, [("cat", 5, 5, 5, 9)]),
        "det",
        r"000\.xml: entry 1: the box 5, 5 to 5, 9 has no area",
    ),
    (lambda folder: voc_of(folder, [("cat", 5, 5, "x", 9)]), "det", r"000\.xml: entry 1: could not convert string"),
    (lambda folder: voc_of(folder, [("", 5, 5, 8, 9)]), "det", r"000\.xml: entry 1: the label '' is no class"),
    (lambda folder: voc_of(folder, [("c", 500, 5, 800, 9)]), "det", r"000\.xml: entry 1: 'c' has no area inside"),
    (lambda folder: voc_of(folder, [], size=(9, 9)), "det", r"000\.xml: it is of 9 x 9, .*000\.jpg is 160 x 160"),
    (
        strange_colour,
        "seg",
        r"00\d\.png has the colour \((250, 10, 10|10, 10, 250)\); a line `name R G B` in --classes",
    ),
]


@pytest.mark.parametrize(("make", "to", "message"), MISTAKES)
def test_what_cannot_be_converted_is_named_and_nothing_written(tmp_path, make, to, message):
    source = make(tmp_path / "in")
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out", to=to)
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("dog\ncats\n", r"a\.json: entry 1: the label 'cat' is no class; did you mean cats\?"),
        ("cat\n\ndog\n", r"classes\.txt, line 2: ''; it takes a name"),
        ("cat\ncat\n", r"classes\.txt, line 2: 'cat'; it takes a name, each once"),
    ],
)
def test_classes_are_those_of_the_file(tmp_path, lines, message):
    source = shape()(tmp_path / "in")
    classes = tmp_path / "classes.txt"
    classes.write_text(lines)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out", to="seg", classes=classes)
    classes.write_text("__ignore__\n_background_\ndog\ncat\n")
    assert convert(source, tmp_path / "out", to="seg", classes=classes)[1] == ["background", "dog", "cat"]
    assert set(np.unique(mask(tmp_path / "out", "a"))) == {0, 2}


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    shape()(tmp_path / "in")
    (tmp_path / "out").mkdir()
    command = ["data", "convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "seg"]
    assert main(command) == 0  # an empty one
    assert main(command) == 1
    assert "is there and not empty; give a folder that is new or empty" in capsys.readouterr().err
    assert main(["data", "convert", str(tmp_path / "none"), str(tmp_path / "new"), "--to", "seg"]) == 1
    assert (
        "none has neither LabelMe's *.json nor Pascal VOC's SegmentationClass/*.png, for seg" in capsys.readouterr().err
    )


def test_labels_of_the_scenes_are_all_found(tmp_path):
    write_labelme(tmp_path / "in", 3)
    assert convert(tmp_path / "in", tmp_path / "out", to="det")[1] == [*CLASSES]
