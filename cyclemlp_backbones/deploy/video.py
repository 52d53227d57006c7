"""A video as pictures, and pictures as a video, by PyAV, which brings FFmpeg's libraries along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from cyclemlp_backbones.checks import existing_file
from cyclemlp_backbones.deploy.images import ImageFile


class Video:
    """A video file: `frames` reads it, `write` makes another of pictures of one size, at the same rate.

    Raises ImportError without PyAV, FileNotFoundError, and ValueError for a file that is no video, or one whose frames
    have more than `most_pixels`.
    """

    def __init__(self, path: Path, *, most_pixels: int):
        try:
            import av
        except ImportError as error:
            raise ImportError('--video needs PyAV; `pip install "cyclemlp-backbones[video]"`') from error
        self.path, self.name = existing_file(path, "video", (path.suffix,)), path.stem
        self._av: Any = av
        self._target: Any = None
        self._written: Any = None  # the stream of what is written
        try:
            self._source = av.open(str(path))
            stream = self._source.streams.video[0]
        except (av.error.FFmpegError, IndexError) as error:
            raise ValueError(f"{path} is no video that FFmpeg reads: {error}") from error
        if stream.width * stream.height > most_pixels:
            raise ValueError(
                f"{path}: {stream.width} x {stream.height} pixels are more than --max-pixels {most_pixels}"
            )
        self.rate, self.count = stream.average_rate or 25, stream.frames or None

    def frames(self) -> Iterator[ImageFile]:
        """The frames, upright, as images of the names NAME/000000 and on; ValueError where the file is damaged."""
        number = 0
        try:
            for number, frame in enumerate(self._source.decode(video=0)):
                picture = frame.to_image()
                if turn := getattr(frame, "rotation", 0):
                    picture = picture.rotate(turn, expand=True)
                name = f"{self.name}/{number:06d}"
                yield ImageFile(self.path / f"{number:06d}", name, name, picture)
        except self._av.error.FFmpegError as error:
            raise ValueError(f"{self.path} is damaged after {number} frames: {error}") from error

    def write(self, path: Path, picture: Image.Image) -> None:
        """Adds a picture to the video `path`, which is whole when it is closed."""
        if self._written is None:
            self._target = self._av.open(str(path), "w")
            self._written = self._target.add_stream("libx264", rate=self.rate, options={"crf": "20"})
            self._written.width, self._written.height = (side + side % 2 for side in picture.size)
            self._written.pix_fmt = "yuv420p"  # which halves both sides of the colours
        whole = picture.crop((0, 0, self._written.width, self._written.height))
        self._target.mux(self._written.encode(self._av.VideoFrame.from_image(whole)))

    def close(self) -> None:
        self._source.close()
        if self._written is not None:
            self._target.mux(self._written.encode())
            self._target.close()
