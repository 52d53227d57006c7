import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from classification.augment import EvalTransform, TrainTransform, color_jitter, random_erasing, random_resized_crop_box
from classification.config import AugmentConfig, Config, DataConfig
from classification.data import (
    BrokenImages,
    EvalDataset,
    Samples,
    TrainDataset,
    eval_loader,
    read_class_map,
    read_folders,
    read_list,
    read_samples,
    train_loader,
)
from classification.schedule import Plan
from tests.properties import examples

DATA = DataConfig(input_size=32)


def dataset(digits, seed=0):
    samples = read_list(digits / "train", digits / "train.txt", num_classes=10)
    return TrainDataset(samples, TrainTransform(AugmentConfig(), DATA), seed=seed)


def test_lists_with_and_without_labels(tmp_path):
    (tmp_path / "list.txt").write_text("a.png 3\nwith space.png 0\n\nb/c.png 9\n")
    samples = read_list(tmp_path, tmp_path / "list.txt", num_classes=10)
    assert samples.names == ("a.png", "with space.png", "b/c.png")
    assert samples.labels == (3, 0, 9)
    (tmp_path / "test.txt").write_text("a.png\nwith space.png\nb.png 7\n")
    samples = read_list(tmp_path, tmp_path / "test.txt", num_classes=None)
    assert samples.names == ("a.png", "with space.png", "b.png")
    for wrong in ("a.png", "a.png x", "a.png 10", "a.png -1", " 3"):
        (tmp_path / "list.txt").write_text(f"ok.png 1\n{wrong}\n")
        with pytest.raises(ValueError, match=r"list.txt, line 2.*0 to 9"):
            read_list(tmp_path, tmp_path / "list.txt", num_classes=10)


def test_lists_of_other_systems_and_mistakes_in_them(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa.png\t3\r\nb\u2028c\x85.png \t 4\r\nd 1.png 5\na.png 3\n".encode())
    samples = read_list(tmp_path, path, num_classes=10)
    assert samples.names == ("a.png", "b\u2028c\x85.png", "d 1.png", "a.png")
    assert samples.labels == (3, 4, 5, 3)
    assert read_list(tmp_path, path, num_classes=None).names == samples.names
    for text, message in (
        ("b.png 1\na.jpg 3 4\n", r"list.txt, line 2: 'a.jpg 3 4' has two labels"),
        ("a.jpg 3\nb.jpg 2\n\na.jpg 4\n", r"list.txt, lines 1 and 4: 'a.jpg' has different labels"),
        ("a.jpg ²\n", r"line 1: 'a.jpg ²' is no `name label`"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_list(tmp_path, path, num_classes=10)
    path.write_text("\ufeffn01440764 0\n", encoding="utf-8")
    assert read_class_map(path) == {"n01440764": 0}


NAMES = (
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1)
    .map(str.strip)  # and what a list cannot tell from a label or from the mark at a file's beginning
    .filter(lambda name: name and not name.startswith("\ufeff") and not re.search(r"\.\w+[ \t]+[0-9]+$", name))
)
SEPARATORS = st.text("\t ", min_size=1, max_size=3)


@examples
@given(data=st.data(), names=st.lists(NAMES | st.sampled_from(["a 1", '"b" c.png', "d,e.png", "f 2 g"]), min_size=1))
def test_a_list_gives_back_every_name_and_label(tmp_path, data, names):
    """Whatever is in a name: quotes, commas, numbers, blanks, other alphabets; whoever wrote the file."""
    number = {name: data.draw(st.integers(0, 999)) for name in names}
    blank = st.text("\t ", max_size=2)
    ends = st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"])
    lines = []
    for name in names:
        label = "0" * data.draw(st.integers(0, 2)) + str(number[name])
        lines.append(data.draw(blank) + name + data.draw(SEPARATORS) + label + data.draw(blank) + data.draw(ends))
    (tmp_path / "list.txt").write_bytes((data.draw(st.sampled_from(["", "\ufeff"])) + "".join(lines)).encode())
    samples = read_list(tmp_path, tmp_path / "list.txt", num_classes=1000)
    assert samples.names == tuple(names)
    assert samples.labels == tuple(number[name] for name in names)
    assert read_list(tmp_path, tmp_path / "list.txt", num_classes=None).names == tuple(names)
    with pytest.raises(ValueError, match="with a label from 0 to"):
        read_list(tmp_path, tmp_path / "list.txt", num_classes=max(number.values()))


def test_a_folder_per_class(digits, tmp_path):
    listed = read_list(digits / "train", digits / "train.txt", num_classes=10)
    by_folder = read_folders(digits / "train", num_classes=10)
    assert dict(zip(by_folder.names, by_folder.labels)) == dict(zip(listed.names, listed.labels))
    (tmp_path / "map.txt").write_text("".join(f"n{value:08d} {9 - value}\n" for value in range(10)))
    by_map = read_folders(digits / "train", num_classes=10, class_map=tmp_path / "map.txt")
    assert by_map.labels == tuple(9 - label for label in by_folder.labels)
    with pytest.raises(ValueError, match=r"10 folders, model\.num_classes is 1000"):
        read_samples(Config(data=DataConfig(train_images=str(digits / "train"))), "train")


def test_a_sample_follows_from_seed_and_key_alone(digits):
    first, again, other_seed = dataset(digits), dataset(digits), dataset(digits, seed=1)
    again[(0, 5, 0)]
    assert np.array_equal(first[(2, 7, 1)][0], again[(2, 7, 1)][0])
    assert first[(2, 7, 1)][1] == first.samples.labels[7]
    for key in ((3, 7, 1), (2, 7, 0)):
        assert not np.array_equal(first[(2, 7, 1)][0], first[key][0])
    assert not np.array_equal(first[(2, 7, 1)][0], other_seed[(2, 7, 1)][0])


def test_workers_change_nothing_and_a_run_can_start_anywhere(digits):
    plan = Plan(40, 2, 4, accumulate=2, repeats=3)
    alone = list(train_loader(dataset(digits), plan, rank=0, first_step=0, workers=0))
    assert len(alone) == 2 * plan.total_steps == 20
    late = list(train_loader(dataset(digits), plan, rank=0, first_step=7, workers=2))
    for batch, expected in zip(late, alone[14:], strict=True):
        for tensor, meant in zip(batch, expected):
            assert np.array_equal(tensor.numpy(), meant.numpy())


def test_a_broken_image_is_replaced_counted_and_at_last_an_error(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"broken")
    (tmp_path / "5.png").unlink()
    samples = Samples(tmp_path, tuple(f"{number}.png" for number in range(20)), tuple(range(20)))
    image, label, index, broken = TrainDataset(samples, TrainTransform(AugmentConfig(), DATA), seed=0)[(0, 4, 0)]
    assert (label, index, broken) == (6, 4, 1)  # the next one that can be read, with its own label
    assert image.std() > 0.1
    evaluated = EvalDataset(samples, EvalTransform(DATA, crop_pct=0.9))
    assert evaluated[5][3] == 1
    assert not evaluated[5][0].any()
    count = BrokenImages(samples, 0.1)
    assert count.add([4, 5, 4]) == [str(tmp_path / "4.png"), str(tmp_path / "5.png")]
    assert count.add([4]) == []
    count.check()
    count.add([9])
    with pytest.raises(ValueError, match=r"3 of 20 images cannot be read, more than data.max_broken.*4.png"):
        count.check()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_wrong_folder_is_named_also_by_workers(digits, tmp_path, workers):
    samples = replace(read_list(digits / "train", digits / "train.txt", num_classes=10), root=tmp_path)
    loader = train_loader(
        TrainDataset(samples, TrainTransform(AugmentConfig(), DATA), seed=0),
        Plan(40, 1, 4), rank=0, first_step=0, workers=workers,
    )  # fmt: skip
    with pytest.raises(ValueError, match=rf"{tmp_path}.*cannot be read.*is data.train_images the right folder"):
        next(loader)


def test_processes_share_the_evaluation_list_without_a_sample_twice(digits):
    samples = read_list(digits / "val", digits / "val.txt", num_classes=10)
    evaluated = EvalDataset(samples, EvalTransform(DATA, crop_pct=0.9))
    seen = []
    for rank in range(3):
        for batch in eval_loader(evaluated, batch_size=2, workers=0, rank=rank, processes=3):
            seen += batch[2].tolist()
    assert sorted(seen) == list(range(13))


def test_evaluation_crops_the_centre_of_the_resized_picture():
    array = np.zeros((90, 180, 3), np.uint8)
    array[:, 90:] = 255
    transform = EvalTransform(DataConfig(input_size=36), crop_pct=0.9)  # shorter side 40, then the central 36
    assert transform.resized == 40
    result = transform(Image.fromarray(array))
    white, black = ((np.array([v, v, v]) - DATA.mean) / DATA.std for v in (1, 0))
    assert result.shape == (3, 36, 36)
    assert result[:, 5, 3] == pytest.approx(black, abs=1e-4)
    assert result[:, 5, 32] == pytest.approx(white, abs=1e-4)
    assert EvalTransform(DATA, crop_pct=0.875)(Image.fromarray(array[:32, :32])).shape == (3, 32, 32)


def test_random_crops_keep_area_and_ratio_in_their_ranges():
    rng = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(2000):
        top, left, height, width = random_resized_crop_box(260, 250, rng, scale=(0.08, 0.6), ratio=(3 / 4, 4 / 3))
        assert 0 <= top <= 250 - height
        assert 0 <= left <= 260 - width
        areas.append(height * width / 65000)
        ratios.append(width / height)
    assert 0.075 < min(areas) < 0.1
    assert 0.55 < max(areas) < 0.61
    assert 0.74 < min(ratios) < max(ratios) < 1.36
    assert abs(np.mean(np.log(ratios))) < 0.03  # log-uniform
    box = random_resized_crop_box(1000, 10, rng, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3))
    assert box == (0, 493, 10, 13)  # nothing fits: the central box with the nearest ratio


def test_random_erasing_fills_a_box_with_normal_noise():
    rng = np.random.default_rng(0)
    shares, noise = [], []
    for _ in range(300):
        erased = random_erasing(np.full((3, 48, 48), 9.0, np.float32), 1.0, rng)
        box = (erased != 9).any(0)
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        shares.append(box.mean())
        noise.append(erased[:, box].ravel())
    values = np.concatenate(noise)
    assert 0.015 < min(shares) < max(shares) < 0.36
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    untouched = sum(bool((random_erasing(np.zeros((3, 32, 32), np.float32), 0.25, rng) == 0).all()) for _ in range(400))
    assert 260 < untouched < 340


def test_color_jitter_blends_with_black_mean_gray_and_gray():
    image = Image.fromarray(np.random.default_rng(1).integers(60, 180, (8, 8, 3), dtype=np.uint8))
    pixels, gray = np.asarray(image, np.float64), np.asarray(image.convert("L"), np.float64)
    degenerate = {"brightness": 0 * pixels, "contrast": 0 * pixels + round(gray.mean()), "saturation": gray[..., None]}

    def jittered(factors, order):
        found = pixels
        for name in order:
            anchor = {"contrast": np.round(found @ (0.299, 0.587, 0.114)).mean().round(), "brightness": 0.0}
            other = anchor.get(name, (found @ (0.299, 0.587, 0.114))[..., None])
            found = np.clip(other + factors[name] * (found - other), 0, 255)
        return found

    for seed in range(8):
        result = np.asarray(color_jitter(image, 0.4, np.random.default_rng(seed)), np.float64)
        rng = np.random.default_rng(seed)
        order = [tuple(degenerate)[position] for position in rng.permutation(3)]
        factors = {name: rng.uniform(0.6, 1.4) for name in order}
        assert np.abs(result - jittered(factors, order)).max() <= 4  # each of the three rounds to integers
    assert np.array_equal(np.asarray(color_jitter(image, 0.0, np.random.default_rng(0))), np.asarray(image))


def test_color_jitter_is_part_of_training_only_when_asked_for():
    image = Image.fromarray(np.full((32, 32, 3), 100, np.uint8))
    off = AugmentConfig(policy=None, flip=0.0, erase=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    plain = TrainTransform(off, DATA)(image, np.random.default_rng(0))
    bright = TrainTransform(replace(off, color_jitter=0.4), DATA)(image, np.random.default_rng(0))
    assert np.abs(plain - EvalTransform(DATA, crop_pct=1.0)(image)).max() < 1e-6
    assert np.abs(bright - plain).max() > 0.1


def test_flips_are_drawn_with_their_probability():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    plain = AugmentConfig(policy=None, flip=0.0, erase=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    straight = TrainTransform(plain, DATA)(image, np.random.default_rng(0))
    flipped = TrainTransform(replace(plain, flip=1.0), DATA)(image, np.random.default_rng(0))
    assert np.array_equal(flipped, straight[:, :, ::-1])
    half = TrainTransform(replace(plain, flip=0.5), DATA)
    rng = np.random.default_rng(0)
    assert 70 < sum(np.array_equal(half(image, rng), flipped) for _ in range(200)) < 130


def test_pictures_are_made_larger_bicubically():
    """Between two flat halves, bicubic interpolation overshoots, bilinear does not."""
    array = np.full((16, 16, 3), 64, np.uint8)
    array[:, 8:] = 192
    image = Image.fromarray(array)
    plain = AugmentConfig(policy=None, flip=0.0, erase=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    data = replace(DATA, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for interpolation, overshoots in (("bicubic", True), ("bilinear", False)):
        result = TrainTransform(replace(plain, interpolation=interpolation), data)(image, np.random.default_rng(0))
        assert (result.max() > 192.5 / 255) == overshoots
    assert EvalTransform(data, crop_pct=1.0)(image).max() > 192.5 / 255
