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
_NATURAL = "[0-9]{1,18}"
_ROOM = "free space there, or set CYCLEMLP_HOME to another folder"
_TRANSIENT = frozenset([408, 416, 425, 429, 500, 502, 503, 504])


class DownloadError(OSError):
    """A file could not be downloaded; the message has the URL and where to put the file by hand."""

    def __init__(self, url: str, reason: object):
        super().__init__(f"could not download {url}: {reason}\nTo do it by hand, put the file at {cached_path(url)}")


class _Again(Exception):
    """This try failed; another may succeed, which starts anew where `discard` is set."""

    def __init__(self, reason: object, *, discard: bool = False):
        super().__init__(reason)
        self.discard = discard


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def cached_path(url: str) -> Path:
    """Where `fetch(url)` keeps the file. The name has a mark of the whole URL, since many files are called best.pth."""
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    path = Path(re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:].lstrip(".") or "weights")
    return files.cache_folder() / f"{path.stem}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{path.suffix}"


def fetch(url: str, *, sha256: str | None = None, size: int | None = None) -> Path:
    """The file behind an http(s) URL, downloaded once into `files.cache_folder()`.

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
            with _only_one_process(target) as mark:
                if not target.exists():
                    _download(url, target, Path(f"{target}{mark}.part"), sha256, size)
        except DownloadError:
            raise
        except OSError as error:
            reason = f"cannot write to {target.parent} ({error.strerror or error}); {_ROOM}"
            raise DownloadError(url, reason) from error
    _check(url, target, sha256, size)
    return target


@contextmanager
def _only_one_process(target: Path) -> Iterator[str]:
    """Waits until no other process downloads `target`; gives what tells this one's part from theirs, "" if alone."""
    with Path(f"{target}.lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):  # Windows; some network file systems
            yield f".{socket.gethostname()}.{os.getpid()}"
        else:
            yield ""


def _record(path: Path, content: dict[str, Any]) -> None:
    """Writes what is known of the file `path` beside it."""
    text = json.dumps(content, indent=1) + "\n"
    files.write_atomically(f"{path}.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _recorded(path: Path) -> dict[str, Any]:
    """What is known of the file `path`; empty if nothing is."""
    record = Path(f"{path}.json")
    try:
        content = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    except ValueError as error:
        raise CheckpointError(f"{record} is damaged; delete it") from error
    return content if isinstance(content, dict) else {}


def _check(url: str, target: Path, sha256: str | None, size: int | None) -> None:
    """Compares the file with what is asked for and with its record, which is made on first use."""
    found = {"sha256": files.sha256(target), "size": target.stat().st_size}
    record, asked = _recorded(target), {"sha256": sha256, "size": size}
    for source, expected in (("asked for", asked), ("recorded when it was new", record)):
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


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    Path(f"{part}.json").unlink(missing_ok=True)


def _download(url: str, target: Path, part: Path, sha256: str | None, size: int | None) -> None:
    """Brings the file into the cache. `part` has what has come so far, a record beside it of which version that is."""
    delays = list(RETRY_DELAYS)
    with tqdm(unit="B", unit_scale=True, desc=target.name, mininterval=0.5) as progress:
        for number in range(1, MAX_TRIES + 1):
            before = _size(part)
            try:
                _try(url, part, size, progress, length_needed=sha256 is None)
                break
            except _Again as error:
                if error.discard:
                    _discard(part)
                delays = list(RETRY_DELAYS) if _size(part) > before else delays
                if not delays or number == MAX_TRIES:
                    kept = "what has come so far is kept, and the next call goes on from there"
                    raise DownloadError(url, f"{error}; {kept}") from error
                logger.warning("%s: %s; trying again in %g s", url, error, delays[0])
                time.sleep(delays.pop(0))
    found = files.sha256(part)
    if sha256 is not None and found != sha256.lower():
        _discard(part)
        raise DownloadError(url, f"its sha256 is {found}, expected {sha256.lower()}")
    _record(target, {"url": url, "sha256": found, "size": _size(part)})
    files.write_atomically(target, lambda temporary: os.replace(part, temporary))
    _discard(part)


def _try(url: str, part: Path, size: int | None, progress: tqdm, *, length_needed: bool) -> None:
    """Asks once for what is missing of the file; _Again if it did not all come."""
    try:
        version = _recorded(part).get("version")
    except CheckpointError:
        version = None
    if not isinstance(version, str):
        _discard(part)  # nothing tells whether the server still has the version that these bytes are of
    headers: dict[str, Any] = {"User-Agent": "cyclemlp-backbones", "Accept-Encoding": "identity"}
    if start := _size(part):
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    with _open(url, headers) as response:
        start, total = _announced(url, response, start, version)
        total = size if total is None else total
        wrong = None
        if total is None and length_needed:
            wrong = "the server does not tell the length of the file: nothing could tell that it is whole"
        elif size not in (None, total):
            wrong = f"the server has a file of {total} bytes, expected {size}"
        elif total is not None and total - start > shutil.disk_usage(part.parent).free:
            wrong = f"{part.parent} has no room for {total - start} bytes; {_ROOM}"
        if wrong:
            raise DownloadError(url, wrong)
        if not start:
            _discard(part)
            if version := _version(response.headers):
                _record(part, {"url": url, "version": version})
        progress.reset(total)
        progress.n = progress.initial = start  # what came earlier does not count in the rate
        response.length = None  # else a body that is longer than announced would end there, unnoticed
        received = start
        with part.open("ab") as file:
            while chunk := _read(response, complete=received == total):
                file.write(chunk)
                received += len(chunk)
                progress.update(len(chunk))
                if total is not None and received > total:
                    raise _Again(f"more than the {total} bytes came that were announced; starting anew", discard=True)
        if total is not None and received < total:
            raise _Again(f"the connection broke after {received} of {total} bytes")


def _open(url: str, headers: dict[str, Any]) -> Any:
    """The server's answer; _Again or a DownloadError if there is none."""
    try:
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        answer = f"the server answers {error.code} {printable(error.reason)}"
        if error.code not in _TRANSIENT:
            raise DownloadError(url, answer) from error
        raise _Again(answer, discard=error.code == 416) from error  # 416: it has not as many bytes as have come
    except (http.client.InvalidURL, ValueError) as error:  # of a redirection
        raise DownloadError(url, printable(error)) from error
    except (http.client.HTTPException, OSError) as error:
        raise _Again(f"no connection ({printable(getattr(error, 'reason', error)) or type(error).__name__})") from error


def _read(response: Any, *, complete: bool) -> bytes:
    try:
        return response.read(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        if complete:
            return b""
        raise _Again(f"the connection broke ({printable(error) or type(error).__name__})") from error


def _announced(url: str, response: Any, start: int, version: str | None) -> tuple[int, int | None]:
    """Where in the file the answer's body starts, and the file's length if the server tells it."""
    headers, status = response.headers, response.status
    encoding, length = headers.get("Content-Encoding", "identity"), headers.get("Content-Length")
    wrong = None
    if headers.get_content_type() == "text/html":
        wrong = "answers with a web page; check the URL and whether a proxy asks for a login"
    elif status not in (200, 206) or encoding.lower() != "identity":
        wrong = f"answers {status}, encoding {printable(encoding)}, not the file"
    elif length is not None and not re.fullmatch(_NATURAL, length):
        wrong = f"announces a length of {printable(length)!r}"
    if wrong:
        raise DownloadError(url, f"the server {wrong}")
    if status == 200:
        return 0, None if length is None else int(length)
    part = re.fullmatch(f"bytes ({_NATURAL})-{_NATURAL}/({_NATURAL})", headers.get("Content-Range", ""))
    if part is None or int(part[1]) != start or _version(headers) not in (None, version):
        raise _Again("the server sends another part or version than was asked for; starting anew", discard=True)
    return start, int(part[2])


def _version(headers: Any) -> str | None:
    """What tells one version of a file from another: a strong ETag, else the date of the last change."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
