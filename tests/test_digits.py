import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cyclemlp_backbones import digits
from cyclemlp_backbones.digits import CLASSES, DemoSettings, is_complete, make_scene, run_lengths, write_demo_data

SIZE = 64


def write(folder: Path, form: str, *, max_digits: int | None = None, workers: int = 2) -> Path:
    settings = DemoSettings(form, train=20, val=10, size=SIZE, seed=3, max_digits=max_digits)
    write_demo_data(folder, settings, workers=workers)
    assert is_complete(folder, settings)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_scene_has_the_same_pixels_on_every_machine():
    scene = make_scene("train", 12, size=96, seed=5)
    digest = hashlib.sha256(scene.image.tobytes() + scene.class_map.tobytes()).hexdigest()
    assert digest[:16] == "448f07f39960d120"


def test_seed_split_and_index_each_change_the_scene():
    images = [
        make_scene(split, index, size=SIZE, seed=seed).image.tobytes()
        for split in ("train", "val")
        for index in (4, 14)
        for seed in (0, 1)
    ]
    assert len(set(images)) == 8


@pytest.mark.parametrize("form", digits.FORMATS)
def test_files_are_the_same_bytes_whatever_the_number_of_workers(tmp_path, form):
    assert digests(write(tmp_path / "one", form, workers=1)) == digests(write(tmp_path / "five", form, workers=5))


def test_visible_parts_do_not_overlap_and_at_most_a_quarter_of_a_digit_is_hidden(monkeypatch):
    full_areas = []
    paint = digits._paint

    def record(rng, image, alpha, mask):
        full_areas.append(int(mask.sum()))
        paint(rng, image, alpha, mask)

    monkeypatch.setattr(digits, "_paint", record)
    hidden = []
    for index in range(60):
        full_areas.clear()
        scene = make_scene("train", index, size=96, max_digits=5)
        masks = np.stack([digit.mask for digit in scene.digits])
        assert masks.sum(0).max() == 1
        hidden += [1 - mask.sum() / area for mask, area in zip(masks, full_areas)]
        assert hidden[-1] == 0  # nothing lies over the last
    assert 0.05 < max(hidden) <= 0.25


def test_a_later_digit_lies_over_an_earlier_one(monkeypatch):
    """Where a stroke is opaque, and nothing later lies, there is its one tint, whatever lay there before."""
    alphas = []
    paint = digits._paint

    def record(rng, image, alpha, mask):
        alphas.append(alpha)
        paint(rng, image, alpha, mask)

    monkeypatch.setattr(digits, "_paint", record)
    covered = 0
    for index in range(40):
        alphas.clear()
        scene = make_scene("train", index, size=96, max_digits=3)
        for number, alpha in enumerate(alphas):
            opaque = alpha == 255
            covered += sum((opaque & (earlier == 255)).sum() for earlier in alphas[:number])
            for later in alphas[number + 1 :]:
                opaque &= later == 0
            assert len(np.unique(scene.image[opaque], axis=0)) == opaque.any()
    assert covered > 100


@pytest.mark.parametrize("split", digits.SPLITS)
def test_all_class_ids_occur_and_no_other(split):
    seen = np.unique(np.concatenate([make_scene(split, index, size=SIZE).class_map.ravel() for index in range(20)]))
    assert seen.tolist() == list(range(11))


@pytest.mark.parametrize(("split", "other"), [("train", "val"), ("val", "train")])
def test_a_split_uses_nothing_of_the_other(monkeypatch, split, other):
    glyphs, values, photographs = digits._sources()
    before = [make_scene(split, index, size=SIZE).image for index in range(20)]
    theirs = [make_scene(other, index, size=SIZE).image for index in range(20)]
    blank = glyphs.copy()
    blank[digits._DIGITS_OF[other]] = 255
    dark = [photograph.copy() for photograph in photographs]
    for photograph in dark:
        photograph[:, digits._COLUMNS_OF[other]] = 0
    monkeypatch.setattr(digits, "_sources", lambda: (blank, values, tuple(dark)))
    for index in range(20):
        np.testing.assert_array_equal(make_scene(split, index, size=SIZE).image, before[index])
        assert (make_scene(other, index, size=SIZE).image != theirs[index]).any()


def test_the_splits_share_no_digit_and_leave_a_gap_between_their_parts_of_a_photograph():
    indices = {
        split: np.concatenate([digits.digit_indices(split, value) for value in range(10)]) for split in digits.SPLITS
    }
    assert sorted(np.concatenate(list(indices.values()))) == list(range(1797))
    train, val = digits._COLUMNS_OF["train"], digits._COLUMNS_OF["val"]
    assert val.start - train.stop >= 16
    pictures = {split: [part.tobytes() for part in digits.photograph_parts(split)] for split in digits.SPLITS}
    assert not set(pictures["train"]) & set(pictures["val"])


def test_seg_and_coco_describe_the_same_scenes(tmp_path):
    seg, coco_folder = write(tmp_path / "seg", "seg"), write(tmp_path / "coco", "coco")
    assert (seg / "labels.txt").read_text().split() == list(CLASSES)
    for split, scenes in (("train", 20), ("val", 10)):
        coco = COCO(str(coco_folder / "annotations" / f"instances_{split}.json"))
        assert {category["id"]: category["name"] for category in coco.cats.values()} == {
            number: name for number, name in enumerate(CLASSES) if number
        }
        pairs = [line.split() for line in (seg / f"{split}.txt").read_text().splitlines()]
        assert len(pairs) == len(coco.imgs) == scenes
        assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
        for (image_name, annotation_name), record in zip(pairs, coco.imgs.values()):
            image, class_map = read(seg / image_name), read(seg / annotation_name)
            np.testing.assert_array_equal(image, read(coco_folder / split / record["file_name"]))
            assert image.shape == (SIZE, SIZE, 3) == (record["height"], record["width"], 3)
            rasterised = np.zeros_like(class_map)
            for annotation in coco.imgToAnns[record["id"]]:
                mask = coco.annToMask(annotation).astype(bool)
                assert not rasterised[mask].any()
                rasterised[mask] = annotation["category_id"]
                assert annotation["area"] == mask.sum() > 0
                assert annotation["iscrowd"] == 0
                encoded = coco_mask.encode(np.asfortranarray(mask))
                assert annotation["bbox"] == coco_mask.toBbox(encoded).tolist()
            np.testing.assert_array_equal(rasterised, class_map)


def test_imagenet_has_the_scenes_with_one_digit_and_its_lists_and_folders_agree(tmp_path):
    seg, imagenet = write(tmp_path / "seg", "seg", max_digits=1), write(tmp_path / "imagenet", "imagenet")
    labels = dict(line.split() for line in (imagenet / "map_to_10.txt").read_text().splitlines())
    assert sorted(labels.values()) == sorted(map(str, range(10)))
    for split in digits.SPLITS:
        lines = [line.split() for line in (imagenet / f"{split}.txt").read_text().splitlines()]
        pairs = [line.split() for line in (seg / f"{split}.txt").read_text().splitlines()]
        for (name, label), (image_name, annotation_name) in zip(lines, pairs, strict=True):
            np.testing.assert_array_equal(read(imagenet / split / name), read(seg / image_name))
            assert set(np.unique(read(seg / annotation_name))) == {0, int(label) + 1}
            folder, file_name = name.split("/")
            assert file_name.split("_")[0] == folder
            assert labels[folder] == label
        assert len(list((imagenet / split).rglob("*.png"))) == len(lines)


def test_run_lengths_is_the_code_that_pycocotools_reads():
    rng = np.random.RandomState(0)
    for mask in (rng.rand(5, 7) < 0.5, np.zeros((3, 4), bool), np.ones((4, 3), bool)):
        encoded = coco_mask.frPyObjects({"size": list(mask.shape), "counts": run_lengths(mask)}, *mask.shape)
        np.testing.assert_array_equal(coco_mask.decode(encoded).astype(bool), mask)


def test_paddleseg_reads_the_seg_format(tmp_path):
    from paddleseg.datasets import Dataset
    from paddleseg.transforms import Normalize

    folder = write(tmp_path / "seg", "seg")
    dataset = Dataset(
        mode="val",
        dataset_root=str(folder),
        transforms=[Normalize()],
        num_classes=len(CLASSES),
        val_path=str(folder / "val.txt"),
    )
    scene = make_scene("val", 7, size=SIZE, seed=3)
    item = dataset[7]
    np.testing.assert_array_equal(item["label"][0], scene.class_map)
    np.testing.assert_allclose(item["img"].transpose(1, 2, 0), scene.image / 127.5 - 1, atol=1e-5)


def test_an_interrupted_run_is_not_complete_and_force_replaces_it(tmp_path):
    folder = tmp_path / "data"
    settings = DemoSettings("seg", train=12, val=3, size=32)

    def stop_after_five(scenes):
        for number, scene in enumerate(scenes):
            if number == 5:
                raise KeyboardInterrupt
            yield scene

    with pytest.raises(KeyboardInterrupt):
        write_demo_data(folder, settings, progress=stop_after_five)
    assert json.loads((folder / digits.MARKER).read_text())["complete"] is False
    assert not is_complete(folder, settings)
    with pytest.raises(FileExistsError, match=r"data is not empty.*--force"):
        write_demo_data(folder, settings)
    write_demo_data(folder, settings, force=True)
    assert is_complete(folder, settings)


def test_force_removes_the_earlier_data_and_nothing_else(tmp_path):
    folder = tmp_path / "data"
    write_demo_data(folder, DemoSettings("coco", train=12, val=3, size=32))
    (folder / "notes.txt").write_text("mine")
    settings = DemoSettings("imagenet", train=4, val=2, size=32)
    write_demo_data(folder, settings, force=True)
    (folder / "notes.txt").unlink()
    write_demo_data(tmp_path / "fresh", settings)
    assert digests(folder) == digests(tmp_path / "fresh")


def test_completeness_is_about_the_same_settings(tmp_path):
    settings = DemoSettings("seg", train=2, val=1, size=32)
    write_demo_data(tmp_path, settings)
    assert is_complete(tmp_path, settings)
    assert not is_complete(tmp_path, DemoSettings("seg", train=2, val=1, size=32, seed=1))
    assert not is_complete(tmp_path / "elsewhere", settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "voc"}, "unknown format 'voc'; choose from seg, coco, imagenet"),
        ({"train": 0}, "train is 0; it takes an integer from 1 to"),
        ({"val": True}, "val is True; it takes"),
        ({"size": 16}, "size is 16; it takes an integer from 32 to 1024"),
        ({"seed": -1}, "seed is -1"),
        ({"max_digits": 10}, "max_digits is 10; it takes an integer from 1 to 9"),
        ({"format": "imagenet", "max_digits": 2}, "max_digits is 2; it takes an integer from 1 to 1"),
    ],
)
def test_settings_out_of_range_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        DemoSettings(**{"format": "seg", **changed})


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="unknown split 'test'; choose from train, val"):
        make_scene("test", 0)


def test_the_picture_shows_image_truth_and_prediction_of_every_scene(tmp_path):
    from demo.picture import draw_picture

    scenes = [make_scene("val", index, size=SIZE) for index in range(3)]
    flat = np.full((SIZE, SIZE), 4)
    path = tmp_path / "picture.png"
    draw_picture(
        path,
        [scene.image for scene in scenes],
        [scene.class_map for scene in scenes],
        [flat] * 3,
        title="three scenes",
        scenes_a_row=1,
    )
    picture = read(path)[..., :3]
    height, width = picture.shape[:2]
    assert (width, height) == pytest.approx((570, 680), abs=2)
    colour = np.array(digits.PALETTE[4])
    third = (picture == colour).all(-1).sum(0) / height  # the prediction's flat colour, by column
    assert third[int(0.7 * width) : int(0.97 * width)].min() > 0.6
    assert third[: int(0.3 * width)].max() < 0.1


def test_the_evaluation_is_read_from_paddleseg_s_output():
    from demo.seg import read_evaluation
    from demo.steps import DemoFailure

    output = (
        "x\n[EVAL] #Images: 2 mIoU: 0.2500 Acc: 0.9 Kappa: 0.1 Dice: 0.3\n"
        "[EVAL] Class IoU: \n[0.5    0.25\n 0.    ]\n[EVAL] Class Precision: \n[1.]"
    )
    assert read_evaluation(output) == (0.25, [0.5, 0.25, 0.0])
    with pytest.raises(DemoFailure, match="printed no mIoU"):
        read_evaluation("Traceback")


def test_all_background_miou_is_what_a_confusion_matrix_gives():
    from demo.seg import DIGITS, SMOKE, all_background_miou

    scenes = [make_scene("val", index, size=SMOKE.size, max_digits=DIGITS) for index in range(SMOKE.val_scenes)]
    truth = np.stack([scene.class_map for scene in scenes])
    ious = [((truth == c) & (c == 0)).sum() / ((truth == c) | (c == 0)).sum() for c in range(11)]
    assert all_background_miou(SMOKE, 0) == pytest.approx(np.mean(ious))
