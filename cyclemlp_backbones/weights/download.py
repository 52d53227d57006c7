"""Downloads into a cache folder: resumed, checked, whole or not at all, by one of the processes that ask for it."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cyclemlp_backbones.weights.pickles import CheckpointError

logger = logging.getLogger(__name__)

TIMEOUT = 30.0
"""Seconds that a server may be silent."""

RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new try; a try that brought new bytes starts the list again."""

_CHUNK = 1 << 20
_ROOM = "free space there, or set CYCLEMLP_HOME to another folder"
_TRANSIENT = frozenset([408, 425, 429, 500, 502, 503, 504])


class DownloadError(OSError):
    """A file could not be downloaded; the message has the URL and where to put the file by hand."""


class _Interrupted(Exception):
    """This try failed; another may succeed."""


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def cache_folder() -> Path:
    """The environment's CYCLEMLP_HOME, else ~/.cache/cyclemlp."""
    return Path(os.environ.get("CYCLEMLP_HOME") or "~/.cache/cyclemlp").expanduser()


def cached_path(url: str) -> Path:
    """Where `fetch(url)` keeps the file. The name has a mark of the whole URL, since many files are called best.pth."""
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    path = Path(re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:].lstrip(".") or "weights")
    return cache_folder() / f"{path.stem}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{path.suffix}"


def fetch(url: str, *, sha256: str | None = None, size: int | None = None) -> Path:
    """The file behind an http(s) URL, downloaded once into `cache_folder()`.

    A download that was cut is resumed where the server can; the file appears under its name when it is complete. Its
    SHA-256 and size are recorded beside it (`….json`) and checked each time; `sha256` and `size` (bytes), where known,
    are checked too. Any number of processes may ask at once: one downloads, the others wait.

    Raises DownloadError with the URL and the path where the file can be put by hand, CheckpointError for a file that
    is not the one that was recorded or asked for, ValueError for another kind of URL.
    """
    if not is_url(url):
        raise ValueError(f"cannot download {url!r}; it takes a URL that begins with http:// or https://")
    target = cached_path(url)
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _only_one_process(target) as alone:
                if not target.exists():
                    part = _beside(target, ".part" if alone else f".{socket.gethostname()}.{os.getpid()}.part")
                    _Download(url, target, part, sha256, size).run()
        except DownloadError:
            raise
        except OSError as error:
            raise _explained(
                url,
                target,
                f"cannot write to {target.parent} ({error.strerror or error}); {_ROOM}",
            ) from error
    _check(url, target, sha256, size)
    return target


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _explained(url: str, target: Path, reason: str) -> DownloadError:
    return DownloadError(f"could not download {url}: {reason}\nTo do it by hand, put the file at {target}")


@contextmanager
def _only_one_process(target: Path) -> Iterator[bool]:
    """Waits until no other process downloads `target`; False where the file system knows no locks."""
    with _beside(target, ".lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):  # Windows; some network file systems
            yield False
        else:
            yield True


def _record_path(target: Path) -> Path:
    return _beside(target, ".json")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = _beside(path, f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged; delete it") from error
    return content if isinstance(content, dict) else None


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check(url: str, target: Path, sha256: str | None, size: int | None) -> None:
    """Compares the file with what is asked for and with its record, which is made on first use."""
    found = {"sha256": _file_sha256(target), "size": target.stat().st_size}
    record = _read_json(_record_path(target))
    for source, expected in (
        ("asked for", {"sha256": sha256, "size": size}),
        ("recorded when it was new", record or {}),
    ):
        for key, value in expected.items():
            if key in found and value is not None and str(value).lower() != str(found[key]).lower():
                raise CheckpointError(
                    f"{target} is not the file that was {source}: its {key} is {found[key]}, expected {value}. "
                    f"Delete it and {_record_path(target).name} to download {url} again"
                )
    if record is None:
        try:
            _write_json(_record_path(target), {"url": url, **found})
        except OSError as error:
            logger.warning("cannot record the checksum of %s (%s)", target, error)


class _Download:
    """One file's way into the cache. `part` holds what has come so far, a record beside it of which version that is."""

    def __init__(self, url: str, target: Path, part: Path, sha256: str | None, size: int | None):
        self.url = url
        self.target = target
        self.part = part
        self.sha256 = sha256
        self.size = size

    def run(self) -> None:
        delays = list(RETRY_DELAYS)
        with tqdm(unit="B", unit_scale=True, desc=self.target.name, mininterval=0.5) as progress:
            while True:
                before = self._part_size()
                try:
                    self._try(progress)
                    break
                except _Interrupted as error:
                    if self._part_size() > before:
                        delays = list(RETRY_DELAYS)
                    if not delays:
                        raise self._failed(
                            f"{error}; what has come so far is kept, and the next call goes on from there"
                        ) from error
                    logger.warning("%s: %s; trying again in %g s", self.url, error, delays[0])
                    time.sleep(delays.pop(0))
        found = _file_sha256(self.part)
        if self.sha256 is not None and found != self.sha256.lower():
            self._discard()
            raise self._failed(f"its sha256 is {found}, expected {self.sha256.lower()}")
        _write_json(_record_path(self.target), {"url": self.url, "sha256": found, "size": self._part_size()})
        os.replace(self.part, self.target)
        _record_path(self.part).unlink(missing_ok=True)

    def _failed(self, reason: str) -> DownloadError:
        return _explained(self.url, self.target, reason)

    def _part_size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        _record_path(self.part).unlink(missing_ok=True)

    def _try(self, progress: tqdm) -> None:
        try:
            version = (_read_json(_record_path(self.part)) or {}).get("version")
        except CheckpointError:
            version = None
        if version is None:
            self._discard()  # nothing tells whether the server still has the version that these bytes are of
        start = self._part_size()
        headers = {"User-Agent": "cyclemlp-backbones", "Accept-Encoding": "identity"}
        if start and version is not None:
            headers |= {"Range": f"bytes={start}-", "If-Range": version}
        with self._open(urllib.request.Request(self.url, headers=headers)) as response:
            self._receive(response, start, version, progress)

    def _open(self, request: urllib.request.Request) -> Any:
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                self._discard()
                raise _Interrupted("the server has not as many bytes as have come already; starting anew") from error
            if error.code in _TRANSIENT:
                raise _Interrupted(f"the server answers {error.code} {error.reason}") from error
            raise self._failed(f"the server answers {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise _Interrupted(f"no connection ({error.reason})") from error
        except (http.client.HTTPException, OSError) as error:
            raise _Interrupted(f"the connection broke ({error or type(error).__name__})") from error

    @staticmethod
    def _read(response: Any) -> bytes:
        try:
            return response.read(_CHUNK)
        except (http.client.HTTPException, OSError) as error:
            raise _Interrupted(f"the connection broke ({error or type(error).__name__})") from error

    def _receive(self, response: Any, start: int, version: str | None, progress: tqdm) -> None:
        content_type = response.headers.get_content_type()
        if content_type == "text/html":
            raise self._failed(
                "the server answers with a web page, not a file; check the URL and whether a proxy asks for a login"
            )
        new_version = _version(response.headers)
        resumed = False
        if response.status == 206:
            first, total = _content_range(response.headers.get("Content-Range", ""))
            resumed = first == start and (new_version is None or new_version == version)
            if not resumed:
                self._discard()
                raise _Interrupted("the file on the server has changed; starting anew")
        else:
            start, total = 0, _natural(response.headers.get("Content-Length"))
        if self.size is not None and total is not None and total != self.size:
            self._discard()
            raise self._failed(f"the server has a file of {total} bytes, expected {self.size}")
        if total is not None and total - start > shutil.disk_usage(self.part.parent).free:
            raise self._failed(f"{self.part.parent} has no room for {total - start} bytes; {_ROOM}")
        if not resumed:
            self._discard()
            if new_version is not None:
                _write_json(_record_path(self.part), {"url": self.url, "version": new_version})
        progress.reset(total)
        progress.n = progress.initial = start  # what came earlier does not count in the rate
        with self.part.open("ab" if resumed else "wb") as file:
            while chunk := self._read(response):
                file.write(chunk)
                progress.update(len(chunk))
        received = self._part_size()
        wanted = total if total is not None else self.size
        if wanted is not None and received < wanted:
            raise _Interrupted(f"the connection broke after {received} of {wanted} bytes")
        if wanted is not None and received > wanted:
            self._discard()
            raise _Interrupted(f"{received} bytes came, where {wanted} were expected; starting anew")


def _version(headers: Any) -> str | None:
    """What tells one version of a file from another: a strong ETag, else the date of the last change."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _natural(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _content_range(text: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text.strip())
    return (int(match[1]), _natural(match[2])) if match else (None, None)
