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

from cyclemlp_backbones import files
from cyclemlp_backbones.weights.pickles import CheckpointError, printable

logger = logging.getLogger(__name__)

TIMEOUT = 30.0
"""Seconds that a server may be silent."""

RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new try; a try that brought new bytes starts the list again."""

MAX_TRIES = 20

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

    A download that was cut is resumed where the server can; the file appears under its name when it is complete, as the
    length that the server announces or the asked `size` or `sha256` tells. Its SHA-256 and size are recorded beside it
    (`….json`) and checked each time. Any number of processes may ask at once: one downloads, the others wait.

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
            reason = f"cannot write to {target.parent} ({error.strerror or error}); {_ROOM}"
            raise _explained(url, target, reason) from error
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


def _record(path: Path, content: dict[str, Any]) -> None:
    """Writes what is known of the file `path` beside it."""
    text = json.dumps(content, indent=1) + "\n"
    files.write_atomically(_beside(path, ".json"), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _recorded(path: Path) -> dict[str, Any]:
    """What is known of the file `path`; empty if nothing is."""
    record = _beside(path, ".json")
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{record} is damaged; delete it") from error
    return content if isinstance(content, dict) else {}


def _check(url: str, target: Path, sha256: str | None, size: int | None) -> None:
    """Compares the file with what is asked for and with its record, which is made on first use."""
    found = {"sha256": files.sha256(target), "size": target.stat().st_size}
    record = _recorded(target)
    for source, expected in (
        ("asked for", {"sha256": sha256, "size": size}),
        ("recorded when it was new", record),
    ):
        for key in found:
            value = expected.get(key)
            if value is not None and str(value).lower() != str(found[key]):
                raise CheckpointError(
                    f"{target} is not the file that was {source}: its {key} is {found[key]}, expected {value}. "
                    f"Delete it and {target.name}.json to download {url} again"
                )
    if not record:
        try:
            _record(target, {"url": url, **found})
        except OSError as error:
            logger.warning("cannot record the checksum of %s (%s)", target, error)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to http(s) only, and never from https to http."""

    def redirect_request(self, request: Any, response: Any, code: int, message: str, headers: Any, url: str) -> Any:
        if not is_url(url) or (request.full_url.startswith("https:") and url.startswith("http:")):
            raise ValueError(f"the server redirects to {printable(url)}, which is not followed")
        return super().redirect_request(request, response, code, message, headers, url)


class _Download:
    """One file's way into the cache. `part` holds what has come so far, a record beside it of which version that is."""

    def __init__(self, url: str, target: Path, part: Path, sha256: str | None, size: int | None):
        self.url, self.target, self.part, self.sha256, self.size = url, target, part, sha256, size

    def run(self) -> None:
        delays = list(RETRY_DELAYS)
        with tqdm(unit="B", unit_scale=True, desc=self.target.name, mininterval=0.5) as progress:
            for number in range(1, MAX_TRIES + 1):
                before = self._part_size()
                try:
                    self._try(progress)
                    break
                except _Interrupted as error:
                    delays = list(RETRY_DELAYS) if self._part_size() > before else delays
                    if not delays or number == MAX_TRIES:
                        raise self._failed(
                            f"{error}; what has come so far is kept, and the next call goes on from there"
                        ) from error
                    logger.warning("%s: %s; trying again in %g s", self.url, error, delays[0])
                    time.sleep(delays.pop(0))
        found = files.sha256(self.part)
        if self.sha256 is not None and found != self.sha256.lower():
            self._discard()
            raise self._failed(f"its sha256 is {found}, expected {self.sha256.lower()}")
        _record(self.target, {"url": self.url, "sha256": found, "size": self._part_size()})
        files.write_atomically(self.target, lambda temporary: os.replace(self.part, temporary))
        self._discard()

    def _failed(self, reason: str) -> DownloadError:
        return _explained(self.url, self.target, reason)

    def _part_size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        _beside(self.part, ".json").unlink(missing_ok=True)

    def _try(self, progress: tqdm) -> None:
        try:
            version = _recorded(self.part).get("version")
        except CheckpointError:
            version = None
        if not isinstance(version, str):
            self._discard()  # nothing tells whether the server still has the version that these bytes are of
        start = self._part_size()
        headers = {"User-Agent": "cyclemlp-backbones", "Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": version}
        try:
            opener = urllib.request.build_opener(_Redirects)
            response = opener.open(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            answer = f"the server answers {error.code} {printable(error.reason)}"
            if error.code == 416:
                self._discard()
                raise _Interrupted("the server has not as many bytes as have come already; starting anew") from error
            if error.code in _TRANSIENT:
                raise _Interrupted(answer) from error
            raise self._failed(answer) from error
        except urllib.error.URLError as error:
            raise _Interrupted(f"no connection ({printable(error.reason)})") from error
        except (http.client.InvalidURL, ValueError) as error:  # of a redirection
            raise self._failed(printable(error)) from error
        except (http.client.HTTPException, OSError) as error:
            raise _broken(error) from error
        with response:
            self._receive(response, start, version, progress)

    def _receive(self, response: Any, start: int, version: str | None, progress: tqdm) -> None:
        headers, resumed = response.headers, response.status == 206
        encoding, announced = headers.get("Content-Encoding", "identity"), headers.get("Content-Length")
        if headers.get_content_type() == "text/html":
            raise self._failed(
                "the server answers with a web page, not a file; check the URL and whether a proxy asks for a login"
            )
        if response.status not in (200, 206) or encoding.lower() != "identity":
            raise self._failed(f"the server answers {response.status}, encoding {printable(encoding)}, not the file")
        if announced is not None and not re.fullmatch(_NATURAL, announced):
            raise self._failed(f"the server announces a length of {printable(announced)!r}")
        total = self.size if announced is None else int(announced)
        new_version = _version(headers)
        if resumed:
            part = re.fullmatch(f"bytes ({_NATURAL})-{_NATURAL}/({_NATURAL})", headers.get("Content-Range", ""))
            if part is None or int(part[1]) != start or new_version not in (None, version):
                self._discard()
                raise _Interrupted("the server sends another part or version than was asked for; starting anew")
            total = int(part[2])
        else:
            start = 0
        if total is None and self.sha256 is None:
            raise self._failed(
                "the server does not tell the length of the file, so that a cut download would pass for a whole one"
            )
        if self.size not in (None, total):
            self._discard()
            raise self._failed(f"the server has a file of {total} bytes, expected {self.size}")
        if total is not None and total - start > shutil.disk_usage(self.part.parent).free:
            raise self._failed(f"{self.part.parent} has no room for {total - start} bytes; {_ROOM}")
        if not resumed:
            self._discard()
            if new_version is not None:
                _record(self.part, {"url": self.url, "version": new_version})
        progress.reset(total)
        progress.n = progress.initial = start  # what came earlier does not count in the rate
        received = start
        response.length = None  # else a body that is longer than announced would end there, unnoticed
        with self.part.open("ab" if resumed else "wb") as file:
            while total is None or received <= total:
                try:
                    chunk = response.read(_CHUNK if total is None else min(_CHUNK, total - received + 1))
                except (http.client.HTTPException, OSError) as error:
                    if received == total:
                        break
                    raise _broken(error) from error
                if not chunk:
                    break
                file.write(chunk)
                received += len(chunk)
                progress.update(len(chunk))
        if total is not None and received < total:
            raise _Interrupted(f"the connection broke after {received} of {total} bytes")
        if total is not None and received > total:
            self._discard()
            raise _Interrupted(f"more than the {total} bytes came that were announced; starting anew")


_NATURAL = "[0-9]{1,18}"


def _broken(error: Exception) -> _Interrupted:
    return _Interrupted(f"the connection broke ({printable(error) or type(error).__name__})")


def _version(headers: Any) -> str | None:
    """What tells one version of a file from another: a strong ETag, else the date of the last change."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
