import numpy as np
import paddle
import pytest

from classification import mixup
from classification.config import MixConfig
from classification.mixup import cutmix_box, draw_mix, minmax_box, mix_images, mix_targets, smooth_one_hot

N, SIZE, CLASSES = 6, 32, 5


def draw(seed=0, count=N, **settings):
    return draw_mix(count, SIZE, SIZE, MixConfig(**settings), np.random.default_rng(seed))


def batch(count=N):
    """Images of one colour each, n + 1, so that a pixel tells whose it is."""
    images = np.ones((count, 3, SIZE, SIZE), np.float32) * np.arange(1, count + 1).reshape(-1, 1, 1, 1)
    labels = paddle.to_tensor(np.arange(count) % CLASSES)
    return paddle.to_tensor(images), smooth_one_hot(labels, CLASSES, 0.0)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_mixes_images_and_labels_by_the_same_lambda(mode):
    images, targets = batch()
    mix = draw(cutmix=0.0, mode=mode)
    lam, partner = mix.lam, np.arange(N)[::-1]
    mixed, labels = mix_images(images, mix).numpy(), mix_targets(targets, mix).numpy()
    colours, one_hot = np.arange(1, N + 1), targets.numpy()
    for n in range(N):
        assert mixed[n] == pytest.approx(np.float32(lam[n] * colours[n] + (1 - lam[n]) * colours[partner[n]]), rel=1e-6)
        assert labels[n] == pytest.approx(lam[n] * one_hot[n] + (1 - lam[n]) * one_hot[partner[n]], abs=1e-6)
    distinct = {"batch": 1, "pair": 3, "elem": 6}[mode]
    assert len(set(lam)) == distinct
    if mode == "pair":
        assert (lam == lam[::-1]).all()
    assert abs(mixed - images.numpy()).max() > 0.1


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_host_and_device_mix_alike(mode):
    images = paddle.randn([N, 3, SIZE, SIZE])
    mix = draw(3, mode=mode)
    before = images.numpy()
    with_gradient = images.detach()
    with_gradient.stop_gradient = False  # takes the device's operators on a CPU too
    on_host, on_device = mix_images(images, mix), mix_images(with_gradient, mix)
    assert on_host.numpy() == pytest.approx(on_device.numpy(), abs=1e-6)
    assert (images.numpy() == before).all()
    assert not on_device.stop_gradient


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("minmax", [None, (0.3, 0.7)])
def test_cutmix_labels_are_the_exact_share_of_pixels(mode, minmax):
    images, targets = batch()
    clipped = 0
    for seed in range(30):
        mix = draw(seed, mixup=0.0, mode=mode, cutmix_minmax=minmax)
        if mix is None:
            continue
        mixed, labels = mix_images(images, mix).numpy(), mix_targets(targets, mix).numpy()
        for n in range(N):
            own = (mixed[n, 0] == n + 1).mean()
            assert np.isin(mixed[n], [n + 1, N - n]).all()
            assert mix.lam[n] == own
            assert labels[n, n % CLASSES] == pytest.approx(own + (1 - own) * (n % CLASSES == (N - 1 - n) % CLASSES))
            top, bottom, left, right = mix.boxes[n]
            clipped += min(top, left) == 0 or max(bottom, right) == SIZE
    assert clipped > 0


def test_switching_and_probability():
    kinds = [draw(seed, switch=0.3, probability=0.6, count=2) for seed in range(2000)]
    cut = sum(mix is not None and bool(mix.cut.all()) for mix in kinds)
    mixed = sum(mix is not None and not mix.cut.any() for mix in kinds)
    assert cut / 2000 == pytest.approx(0.18, abs=0.03)
    assert mixed / 2000 == pytest.approx(0.42, abs=0.03)
    assert draw(mixup=0.0, cutmix=0.0) is None
    assert draw(probability=0.0) is None


def test_each_sample_is_mixed_or_not_by_itself():
    mixed = draw(probability=0.4, mode="elem", count=2000).lam < 1
    assert mixed.mean() == pytest.approx(0.4, abs=0.04)
    assert mixed[1000:].mean() == pytest.approx(0.4, abs=0.05)


def test_minmax_boxes_take_every_side_and_place_that_there_is():
    rng = np.random.default_rng(0)
    boxes = np.array([minmax_box(40, 20, (0.25, 0.5), rng) for _ in range(2000)])
    heights, widths = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    assert set(heights) == set(range(10, 21))
    assert set(widths) == set(range(5, 11))
    assert (boxes.min(0).tolist(), boxes.max(0).tolist()) == ([0, 10, 0, 5], [30, 40, 15, 20])
    assert minmax_box(40, 20, (1.0, 1.0), rng) == (0, 40, 0, 20)


@pytest.mark.parametrize("share", [0.04, 0.25, 0.5, 1.0])
def test_a_cutmix_box_has_its_share_of_the_image_and_its_centre_anywhere(share):
    """Half of each side is cut to whole pixels, and what lies outside of the image is cut off."""
    rng, height, width = np.random.default_rng(0), 40, 20
    boxes = {cutmix_box(height, width, 1 - share, rng) for _ in range(8000)}
    halves = [int(size * share**0.5) // 2 for size in (height, width)]

    def clipped(centre, half, size):
        return max(0, centre - half), min(size, centre + half)

    expected = {clipped(y, halves[0], height) + clipped(x, halves[1], width) for y in range(40) for x in range(20)}
    assert boxes == expected


def test_on_a_cpu_images_without_gradient_take_the_faster_form(monkeypatch):
    monkeypatch.setattr(mixup, "_mix_on_device", None)
    images, _ = batch()
    assert mix_images(images, draw()).shape == images.shape


def test_an_odd_batch_leaves_its_middle_alone():
    images, targets = batch(5)
    mix = draw(cutmix=0.0, count=5)
    assert mix_images(images, mix).numpy()[2] == pytest.approx(3.0, rel=1e-6)
    assert mix_targets(targets, mix).numpy()[2] == pytest.approx(targets.numpy()[2])


def test_smoothing_equals_the_closed_form():
    smoothed = smooth_one_hot(paddle.to_tensor([2, 0]), 4, 0.1).numpy()
    assert smoothed == pytest.approx(np.array([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))
