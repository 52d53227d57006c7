import os
import tracemalloc

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from cyclemlp_backbones.pictures import UNREADABLE, normalise, read_rgb

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def read(tmp_path, image, name="picture.png", **options):
    image.save(tmp_path / name, **options)
    result = read_rgb(tmp_path / name)
    assert result.mode == "RGB"
    return np.asarray(result)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90), (2, lambda a: a[:, ::-1])],
)
def test_exif_orientation(tmp_path, orientation, upright):
    image = Image.fromarray(PICTURE)
    exif = image.getexif()
    exif[0x0112] = orientation
    assert np.array_equal(read(tmp_path, image, exif=exif), upright(PICTURE))


def test_grayscale(tmp_path):
    gray = PICTURE[..., 0]
    assert np.array_equal(read(tmp_path, Image.fromarray(gray)), np.stack([gray] * 3, -1))


def test_sixteen_bits_keep_their_brightness(tmp_path):
    gray = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert read(tmp_path, Image.fromarray(gray))[..., 0].tolist() == [[0, 1, 128, 255]]
    assert read(tmp_path, Image.fromarray(gray), "picture.tif")[..., 2].tolist() == [[0, 1, 128, 255]]


def test_transparency_lies_on_white(tmp_path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0], pixels[0, :, 3] = 200, (0, 255, 51)
    seen = read(tmp_path, Image.fromarray(pixels, "RGBA"))
    assert seen[0, 0].tolist() == [255, 255, 255]  # not the hidden red
    assert seen[0, 1].tolist() == [200, 0, 0]
    assert np.abs(seen[0, 2].astype(int) - [244, 204, 204]).max() <= 1
    gray = Image.fromarray(np.array([[[0, 0], [0, 255]]], np.uint8), "LA")
    assert read(tmp_path, gray)[..., 0].tolist() == [[255, 0]]


def test_palettes(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert read(tmp_path, image).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert read(tmp_path, image, transparency=1).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_cmyk_is_not_inverted(tmp_path):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(read(tmp_path, red, "picture.jpg", quality=95)[8, 8].astype(int) - [255, 0, 0]).max() <= 6


def test_damaged_files_are_errors_that_the_loader_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(
        ImageFile, "LOAD_TRUNCATED_IMAGES", False
    )  # Pillow's own; importing ppdet sets it for the process
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2], whole[:30]):
        (tmp_path / "b.jpg").write_bytes(content)
        with pytest.raises(UNREADABLE):
            read_rgb(tmp_path / "b.jpg")
    with pytest.raises(UNREADABLE):
        read_rgb(tmp_path / "missing.jpg")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "hello"  # the orientation, and a text that becomes the resolution
    Image.fromarray(PICTURE).save(tmp_path / "c.jpg", exif=exif)
    content = (tmp_path / "c.jpg").read_bytes()
    (tmp_path / "c.jpg").write_bytes(content.replace(b"\x01\x0e\x00\x02", b"\x01\x1a\x00\x02"))
    with pytest.raises(UNREADABLE):
        read_rgb(tmp_path / "c.jpg")


@pytest.mark.parametrize("name", ["picture.jpg", "picture.png", "picture.eps"])
def test_no_program_is_started_for_a_file_of_another_format(tmp_path, monkeypatch, name):
    """Pillow draws PostScript by Ghostscript, which runs what the file says."""
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\necho 10.0\ntouch {tmp_path}/started\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked for again
    (tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UNREADABLE):
        read_rgb(tmp_path / name)
    assert not (tmp_path / "started").exists()


def test_a_format_that_is_not_read_is_an_error_that_the_loader_knows(tmp_path):
    """Pillow's reader of DDS fails in ways of its own."""
    header = b"DDS " + np.array([124, 0x1007, 8, 8] + [0] * 14 + [32, 4] + [0] * 11, "<u4").tobytes()
    (tmp_path / "picture.png").write_bytes(header)
    with pytest.raises(UNREADABLE):
        read_rgb(tmp_path / "picture.png")


def test_a_picture_of_sixteen_bits_takes_little_more_memory_than_its_pixels(tmp_path):
    Image.fromarray(np.zeros((2000, 2000), np.uint16)).save(tmp_path / "gray.png")
    tracemalloc.start()
    read_rgb(tmp_path / "gray.png", most_pixels=4_000_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 12 * 4_000_000  # 26 a pixel, were it converted at once


def test_the_limit_of_pixels_is_the_callers(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    assert read_rgb(tmp_path / "a.png", most_pixels=24).size == (6, 4)
    with pytest.raises(ValueError, match="6 x 4 pixels are more than --max-pixels 23"):
        read_rgb(tmp_path / "a.png", most_pixels=23)
    with pytest.raises(UNREADABLE):
        read_rgb(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == 10


def test_normalising_is_by_channel_and_channels_come_first():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = ((pixels / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
    result = normalise(pixels, mean, std)
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() < 1e-6
