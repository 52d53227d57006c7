"""Tiles cover a picture, fade into each other, and change nothing for a model that looks at single pixels."""

import numpy as np
import pytest

from cyclemlp_backbones.deploy.tiling import _weights, segment_tiles, spans

PICTURES = [(1, 1), (64, 64), (65, 200), (300, 97), (30, 1000), (513, 130)]


@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 16), (96, 24), (128, 32), (160, 40), (1024, 128)])
def test_the_tiles_weights_add_up_to_one_everywhere(tile, overlap):
    for length in (1, 32, tile, tile + 1, 2 * tile - overlap + 1, 3 * tile + 17, 5000):
        total = np.zeros(length)
        for span in spans(length, tile, overlap):
            assert span.start % 32 == 0
            assert 0 <= span.start <= span.reach_start < span.reach_stop <= span.stop <= length
            assert span.stop - span.start <= tile
            total[span.reach_start : span.reach_stop] += _weights(span)
        np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("shape", PICTURES)
def test_a_model_of_single_pixels_sees_no_tiles(shape):
    pixels = np.random.RandomState(0).randint(0, 256, (*shape, 3), dtype=np.uint8)

    def predict(tile):
        return np.moveaxis(tile, 2, 0).astype(np.float32)

    np.testing.assert_array_equal(segment_tiles(pixels, predict, tile=64, overlap=16), pixels.argmax(axis=2))


def test_seams_fade_and_a_tile_alone_counts_away_from_them():
    seen = []

    def predict(tile):
        seen.append(tile.shape)
        share = 1.0 if len(seen) == 1 else 0.0
        return np.stack([np.full(tile.shape[:2], value, np.float32) for value in (share, 1 - share)])

    labels = segment_tiles(np.zeros((64, 112, 3), np.uint8), predict, tile=64, overlap=16)
    first, second = spans(112, 64, 16)[:2]
    middle = (first.reach_stop + second.reach_start) // 2
    assert middle == (first.stop + second.start) // 2
    assert (labels[:, :middle] == 0).all()
    assert (labels[:, middle:] == 1).all()


def test_probabilities_of_a_line_of_tiles_at_most_are_held():
    """A picture eight times as high asks for no larger arrays."""
    import tracemalloc

    def peak(height):
        pixels = np.zeros((height, 256, 3), np.uint8)
        tracemalloc.start()
        segment_tiles(pixels, lambda tile: np.zeros((50, *tile.shape[:2]), np.float32), tile=128, overlap=32)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most - height * 256 * 4  # the classes themselves

    assert peak(4096) < 1.05 * peak(512)


@pytest.mark.parametrize(("tile", "overlap", "named"), [(100, 0, "--tile"), (32, 0, "--tile"), (64, 20, "--overlap")])
def test_a_tiling_that_does_not_fit_is_refused(tile, overlap, named):
    with pytest.raises(ValueError, match=named):
        segment_tiles(np.zeros((64, 64, 3), np.uint8), lambda tile: tile, tile=tile, overlap=overlap)
