"""`cyclemlp predict --video`: every frame has its result, and the overlays are a video of the same rate."""

import csv
import json

import av
import numpy as np
import pytest
from PIL import Image

from cyclemlp_backbones.cli import main
from cyclemlp_backbones.deploy.video import Video
from tests.deploy.conftest import CLASSES


def write_video(path, frames=7, size=(96, 64), rate=5, noise=0):
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            picture = Image.new("RGB", size, (30 * number, 0, 0))
            if noise:
                picture = Image.effect_noise(size, noise).convert("RGB")
            target.mux(stream.encode(av.VideoFrame.from_image(picture)))
        target.mux(stream.encode())
    return path


def predict(classifier, video, out, *flags):
    return main(["predict", str(classifier / "paddle"), "--video", str(video), "--out", str(out), *flags])


def test_every_frame_has_its_line_and_the_overlays_are_a_video(classifier, tmp_path, capsys):
    video = write_video(tmp_path / "street.mp4")
    assert predict(classifier, video, tmp_path / "out", "--top", "1", "--json") == 0
    output = capsys.readouterr()
    assert "7 frames" in output.err
    told = [json.loads(line) for line in output.out.splitlines()]
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [one["image"] for one in told]
    assert [row["result"] for row in rows] == [f"street/{number:06d}" for number in range(7)]
    assert {row["files"] for row in rows} == {"overlays/street.mp4"}
    assert all(one["results"][0]["class"] in CLASSES for one in told)
    with av.open(str(tmp_path / "out" / "overlays" / "street.mp4")) as written:
        assert written.streams.video[0].average_rate == 5
        pictures = [frame.to_ndarray(format="rgb24") for frame in written.decode(video=0)]
    assert len(pictures) == 7
    reds = [picture[:200, :360, 0].mean() for picture in pictures]
    assert reds == pytest.approx([30 * number for number in range(7)], abs=8)


def test_frames_are_upright_and_in_order(tmp_path):
    frames = list(Video(write_video(tmp_path / "a.mp4"), most_pixels=10**6).frames())
    assert [frame.name for frame in frames] == [f"a/{number:06d}" for number in range(7)]
    assert [frame.picture.size for frame in frames] == [(96, 64)] * 7
    assert [np.asarray(frame.picture)[..., 0].mean() for frame in frames] == pytest.approx(range(0, 210, 30), abs=4)


def test_what_is_no_video_is_refused_before_anything_is_written(classifier, tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("no video")
    video = write_video(tmp_path / "a.mp4")
    for flags, named in (
        ([tmp_path / "text.mp4"], "is no video that FFmpeg reads"),
        ([tmp_path / "b.mp4"], "no video"),
        ([video, "--max-pixels", "100"], "96 x 64 pixels are more than --max-pixels 100"),
        ([video, str(tmp_path)], "give images, or one video"),
    ):
        assert predict(classifier, flags[0], tmp_path / "out", *flags[1:]) == 1
        assert named in capsys.readouterr().err
    assert main(["predict", str(classifier / "paddle"), "--out", str(tmp_path / "out")]) == 1
    assert "give images, or one video" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_video_ends_with_an_error_and_what_was_done_is_whole(classifier, tmp_path, capsys):
    video = write_video(tmp_path / "a.mp4", frames=20, noise=80)
    content = bytearray(video.read_bytes())
    start = content.index(b"mdat") + 4
    content[start + 30_000 : start + 60_000] = bytes(30_000)
    video.write_bytes(content)
    status = predict(classifier, video, tmp_path / "out", "--top", "1")
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        count = len(list(csv.DictReader(file)))
    error = capsys.readouterr().err
    assert status == 0 or f"is damaged after {count} frames" in error
    with av.open(str(tmp_path / "out" / "overlays" / "a.mp4")) as written:
        assert sum(1 for _ in written.decode(video=0)) == count


def test_a_missing_package_is_named(classifier, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert predict(classifier, tmp_path / "a.mp4", tmp_path / "out") == 1
    assert 'pip install "cyclemlp-backbones[video]"' in capsys.readouterr().err
