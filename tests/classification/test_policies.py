"""Each operation against the published definition, written anew in NumPy."""

import numpy as np
import pytest
from PIL import Image

from classification.policies import INCREASING, OPERATIONS, ORIGINAL, Canvas, parse_policy

RNG = np.random.default_rng(3)
PICTURE = RNG.integers(20, 230, (16, 20, 3)).astype(np.uint8)
CANVAS = Canvas(fill=(10, 20, 30))
GRAY = np.array([299, 587, 114]) / 1000


def run(name, magnitude, sign=1, table=INCREASING, picture=PICTURE, canvas=CANVAS):
    operation = table[name]
    argument = operation.argument(magnitude, sign)
    return argument, np.asarray(operation.apply(Image.fromarray(picture), argument, canvas)).astype(int)


def blend(other, factor):
    return np.clip(other + factor * (PICTURE.astype(float) - other), 0, 255)


def gray_of(picture):
    return np.repeat(np.floor(picture @ GRAY + 0.5)[..., None], 3, -1)


def test_invert():
    assert np.array_equal(run("Invert", 0.9)[1], 255 - PICTURE.astype(int))


def test_auto_contrast_stretches_each_channel():
    low, high = PICTURE.min((0, 1)).astype(float), PICTURE.max((0, 1)).astype(float)
    expected = (PICTURE - low) * 255 / (high - low)
    assert np.abs(run("AutoContrast", 0.9)[1] - expected).max() <= 1


def test_equalize_flattens_each_histogram():
    expected = np.empty(PICTURE.shape, int)
    for channel in range(3):
        counts = np.bincount(PICTURE[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        before = np.concatenate([[0], np.cumsum(counts)[:-1]])
        table = np.minimum(255, (before + step // 2) // step) if step else np.arange(256)
        expected[..., channel] = table[PICTURE[..., channel]]
    assert np.array_equal(run("Equalize", 0.9)[1], expected)
    flat = np.tile(PICTURE, (10, 10, 1))  # enough pixels for a step above zero
    assert run("Equalize", 0.9, picture=flat)[1].std() > flat.std()


@pytest.mark.parametrize("magnitude", [0.0, 0.3, 0.9, 1.0])
def test_posterize_keeps_fewer_bits_the_greater_the_magnitude(magnitude):
    bits, seen = run("Posterize", magnitude)
    assert bits == 4 - int(magnitude * 4)
    assert np.array_equal(seen, PICTURE.astype(int) // 2 ** (8 - bits) * 2 ** (8 - bits))
    assert run("Posterize", magnitude, table=OPERATIONS)[0] == int(magnitude * 4)


@pytest.mark.parametrize("magnitude", [0.0, 0.5, 0.9])
def test_solarize(magnitude):
    threshold, seen = run("Solarize", magnitude)
    assert threshold == 256 - int(magnitude * 256)
    assert np.array_equal(seen, np.where(threshold > PICTURE, PICTURE, 255 - PICTURE.astype(int)))
    assert run("Solarize", magnitude, table=OPERATIONS)[0] == int(magnitude * 256)


def test_solarize_add():
    addend, seen = run("SolarizeAdd", 0.9)
    assert addend == 99
    dark = PICTURE < 128
    assert np.array_equal(seen, np.where(dark, np.minimum(255, PICTURE.astype(int) + 99), PICTURE))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_enhancements_blend_with_their_degenerate_picture(name, sign):
    factor, seen = run(name, 0.5, sign)
    assert factor == pytest.approx(1 + 0.45 * sign)
    if name == "Color":
        other = gray_of(PICTURE)
    elif name == "Contrast":
        other = np.full(PICTURE.shape, np.floor(gray_of(PICTURE)[..., 0].mean() + 0.5))
    elif name == "Brightness":
        other = np.zeros(PICTURE.shape)
    else:
        kernel = np.ones((3, 3))
        kernel[1, 1] = 5
        other = PICTURE.astype(float)
        inner = sum(kernel[y, x] * PICTURE[y : y + 14, x : x + 18].astype(float) for y in range(3) for x in range(3))
        other[1:-1, 1:-1] = np.floor(inner / 13 + 0.5)
    assert np.abs(seen - blend(other, factor)).max() <= 2
    assert run(name, 0.5, table=OPERATIONS)[0] == pytest.approx(1.0)


def test_translations_move_by_a_share_of_the_size():
    share, seen = run("TranslateX", 1.0)  # 0.45 of 20 pixels: 9
    assert share == pytest.approx(0.45)
    assert np.array_equal(seen[:, :11], PICTURE[:, 9:])
    assert (seen[:, 11:] == CANVAS.fill).all()
    _, seen = run("TranslateY", 1 / 0.45 / 4, -1)  # a quarter of 16 pixels, the other way
    assert np.array_equal(seen[4:], PICTURE[:12])
    assert (seen[:4] == CANVAS.fill).all()


@pytest.mark.parametrize("name", ["ShearX", "ShearY"])
def test_shears_move_each_line_in_proportion(name):
    ramp = np.tile(np.arange(20, dtype=np.uint8)[:, None, None] * 10, (1, 20, 3))  # value: 10 x row
    if name == "ShearX":
        ramp = ramp.transpose(1, 0, 2).copy()  # value: 10 x column
    factor, seen = run(name, 1.0, picture=ramp)
    assert factor == pytest.approx(0.3)
    rows, columns = np.mgrid[0:20, 0:20] + 0.5
    source = (columns + 0.3 * rows if name == "ShearX" else rows + 0.3 * columns) - 0.5
    inside = (source > 2) & (source < 17)
    assert np.abs(seen[..., 0] - 10 * source)[inside].max() <= 1.5


def test_rotation_turns_by_up_to_thirty_degrees():
    degrees, seen = run("Rotate", 1.0)
    assert degrees == 30
    side = np.zeros((33, 33, 3), np.uint8)
    side[16, 16:] = 255  # a ray to the right
    _, seen = run("Rotate", 1.0, picture=side, canvas=Canvas(fill=(0, 0, 0)))
    rows, columns = np.nonzero(seen[..., 0] > 100)
    angle = np.degrees(np.arctan2(16 - rows[columns > 24].mean(), columns[columns > 24].mean() - 16))
    assert angle == pytest.approx(30, abs=3)  # counter-clockwise
    assert run("Rotate", 0.5, -1)[0] == -15


def test_the_notation():
    policy = parse_policy("rand-m9-mstd0.5-inc1", fill=CANVAS.fill, interpolation="bicubic")
    assert (policy.magnitude, policy.std, policy.count, policy.probability) == (9, 0.5, 2, 0.5)
    assert policy.operations == tuple(INCREASING.values())
    assert len(policy.operations) == 15
    policy = parse_policy("rand-m4-n3-p0.8-mmax5", fill=CANVAS.fill, interpolation="bilinear")
    assert (policy.count, policy.probability, policy.most, policy.operations) == (3, 0.8, 5, tuple(OPERATIONS.values()))
    assert parse_policy(None, fill=CANVAS.fill, interpolation="bicubic") is None
    for wrong in ("rand", "rand-m11", "rand-m9-x1", "rand-m9-m8", "trivial", "original-m9"):
        with pytest.raises(ValueError, match=r"rand-m9-mstd0\.5-inc1"):
            parse_policy(wrong, fill=CANVAS.fill, interpolation="bicubic")


def test_rand_augment_draws_magnitudes_counts_and_signs():
    seen = []

    class Recorder:
        def argument(self, magnitude, sign):
            seen.append((magnitude, sign))
            return 0.0

        def apply(self, image, argument, canvas):
            return image

    policy = parse_policy("rand-m9-mstd0.5", fill=CANVAS.fill, interpolation="bicubic")
    object.__setattr__(policy, "operations", (Recorder(),) * 15)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        policy(Image.fromarray(PICTURE), rng)
    magnitudes, signs = np.array(seen).T
    assert len(seen) == pytest.approx(1000, abs=80)  # two operations at probability 0.5
    assert magnitudes.mean() == pytest.approx(0.9, abs=0.01)
    assert magnitudes.std() == pytest.approx(0.05, abs=0.01)
    assert magnitudes.max() <= 1.0
    assert abs(signs.mean()) < 0.1


def test_auto_augments_policy_has_25_pairs_that_run():
    assert len(ORIGINAL) == 25
    assert ORIGINAL[0] == (("Posterize", 0.4, 8), ("Rotate", 0.6, 9))
    policy = parse_policy("original", fill=CANVAS.fill, interpolation="bicubic")
    results = {policy(Image.fromarray(PICTURE), np.random.default_rng(seed)).tobytes() for seed in range(60)}
    assert len(results) > 20
