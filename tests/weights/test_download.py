"""Downloads survive cut connections, and never leave half a file; all against a server on this machine."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclemlp_backbones import CheckpointError, CycleNet, files, load_weights
from cyclemlp_backbones.weights import download
from cyclemlp_backbones.weights.download import DownloadError, cached_path, fetch
from cyclemlp_backbones.weights.loading import locate_weights
from tests.properties import examples
from tests.reference import GOLDEN, random_state

CONTENT = random_state("download").bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does; `requests` are the ranges that were asked for, None for a whole file."""

    content: bytes = field(default=CONTENT, repr=False)
    etag: str | None = '"v1"'
    cuts: list[int] = field(default_factory=list)  # each answer ends after so many bytes, then none is cut
    ranges: bool = True
    if_range: bool = True
    status: list[int] = field(default_factory=list)  # statuses of the first answers
    length: bool = True
    content_type: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)  # of whole answers
    longer: int = 0  # bytes of the body beyond what is announced
    total: str | None = None  # in Content-Range
    location: str | None = None  # every answer redirects there
    requests: list[str | None] = field(default_factory=list)
    on_request: Callable[[int], object] | None = None


class Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        behaviour = self.behaviour
        asked = self.headers.get("Range")
        behaviour.requests.append(asked)
        if behaviour.on_request is not None:
            behaviour.on_request(len(behaviour.requests))
        behaviour = replace(behaviour)  # as it is now: the test may go on before the body is sent
        if behaviour.status:
            self.send_error(behaviour.status.pop(0))
            return
        if behaviour.location is not None:
            self.send_response(302)
            self.send_header("Location", behaviour.location)
            self.end_headers()
            return
        content, start = behaviour.content, 0
        cut = behaviour.cuts.pop(0) if behaviour.cuts else len(content)
        if asked and behaviour.ranges and (not behaviour.if_range or self.headers.get("If-Range") == behaviour.etag):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{behaviour.total or len(content)}")
        else:
            self.send_response(200)
            for name, value in behaviour.headers.items():
                self.send_header(name, value)
        if behaviour.length:
            self.send_header("Content-Length", str(len(content) - start))
        if behaviour.etag:
            self.send_header("ETag", behaviour.etag)
        self.send_header("Content-Type", behaviour.content_type)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that has seen enough
            self.wfile.write(content[start : start + cut] + bytes(behaviour.longer))

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[tuple[str, Behaviour]]:
    monkeypatch.setenv("CYCLEMLP_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    behaviour = Behaviour()
    handler = type("BoundHandler", (Handler,), {"behaviour": behaviour})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/weights/best.pth", behaviour
        running.shutdown()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_file_is_downloaded_once_and_recorded(server, capsys):
    url, behaviour = server
    path = fetch(url, sha256=DIGEST.upper(), size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert re.fullmatch(r"best-[0-9a-f]{8}\.pth", path.name)
    assert visible(path.parent) == [path.name, path.name + ".json"]
    record = json.loads(Path(f"{path}.json").read_text())
    assert record == {"url": url, "sha256": DIGEST, "size": len(CONTENT)}
    assert fetch(url) == path
    assert behaviour.requests == [None]
    captured = capsys.readouterr()
    assert "100%" in captured.err
    assert captured.out == ""


def test_files_of_one_name_and_different_urls_do_not_meet(server):
    url, _ = server
    assert cached_path(url) != cached_path(url.replace("weights", "other"))
    assert cached_path("https://example.org/a/..%2F..%2Fpasswd?x=1").parent == cached_path(url).parent


def test_a_cut_download_goes_on_where_it_was_cut(server):
    url, behaviour = server
    behaviour.cuts = [1_000_000, 500_000]
    assert fetch(url).read_bytes() == CONTENT
    assert behaviour.requests == [None, "bytes=1000000-", "bytes=1500000-"]


def test_more_cuts_than_retries_end_well_while_bytes_come(server):
    url, behaviour = server
    behaviour.cuts = [250_000] * 11
    assert fetch(url).read_bytes() == CONTENT
    assert len(behaviour.requests) == 12


def test_a_later_process_goes_on_where_an_earlier_one_gave_up(server):
    url, behaviour = server
    behaviour.cuts = [700_000, 0, 0, 0]
    with pytest.raises(DownloadError, match="700000 of 3000000 bytes; what has come so far is kept") as caught:
        fetch(url)
    assert url in str(caught.value)
    assert str(cached_path(url)) in str(caught.value)
    assert not cached_path(url).exists()
    behaviour.requests.clear()
    assert fetch(url).read_bytes() == CONTENT
    assert behaviour.requests == ["bytes=700000-"]


@pytest.mark.parametrize("etag", ['"v1"', None, 'W/"v1"'])
def test_a_server_that_knows_no_ranges_or_versions_sends_all_again(server, etag):
    url, behaviour = server
    behaviour.cuts = [1_000_000]
    behaviour.ranges = False
    behaviour.etag = etag
    assert fetch(url).read_bytes() == CONTENT
    assert behaviour.requests == [None, "bytes=1000000-" if etag == '"v1"' else None]


def test_a_file_that_changes_in_between_is_not_mixed(server):
    url, behaviour = server
    behaviour.cuts = [1_000_000]
    new = random_state("changed").bytes(2_500_000)

    def change(count: int) -> None:
        if count == 2:
            behaviour.content, behaviour.etag = new, '"v2"'

    behaviour.on_request = change
    assert fetch(url).read_bytes() == new
    assert behaviour.requests == [None, "bytes=1000000-"]


def test_a_server_that_ignores_if_range_is_noticed_by_its_etag(server):
    url, behaviour = server
    behaviour.if_range = False
    behaviour.cuts = [1_000_000]
    new = random_state("changed").bytes(3_000_000)

    def change(count: int) -> None:
        if count == 2:
            behaviour.content, behaviour.etag = new, '"v2"'

    behaviour.on_request = change
    assert fetch(url).read_bytes() == new
    assert behaviour.requests == [None, "bytes=1000000-", None]


def test_wrong_sizes_and_checksums_are_refused_and_not_kept(server):
    url, _ = server
    with pytest.raises(DownloadError, match="3000000 bytes, expected 5"):
        fetch(url, size=5)
    with pytest.raises(DownloadError, match=f"sha256 is {DIGEST}, expected {'0' * 64}"):
        fetch(url, sha256="0" * 64)
    assert visible(cached_path(url).parent) == []


def test_a_file_without_announced_length_is_measured_against_the_asked_size(server):
    url, behaviour = server
    behaviour.length = False
    behaviour.cuts = [1_000_000]
    assert fetch(url, size=len(CONTENT)).read_bytes() == CONTENT
    assert behaviour.requests == [None, "bytes=1000000-"]


@pytest.mark.parametrize(("status", "words"), [(404, "404 Not Found"), (403, "403 Forbidden")])
def test_a_refusing_server_is_asked_once(server, status, words):
    url, behaviour = server
    behaviour.status = [status]
    with pytest.raises(DownloadError, match=words) as caught:
        fetch(url)
    assert f"put the file at {cached_path(url)}" in str(caught.value)
    assert len(behaviour.requests) == 1


def test_a_busy_server_is_asked_again(server):
    url, behaviour = server
    behaviour.status = [503, 429]
    assert fetch(url).read_bytes() == CONTENT
    assert len(behaviour.requests) == 3


def test_a_range_that_the_server_refuses_starts_anew(server):
    url, behaviour = server
    behaviour.cuts = [1_000_000]
    behaviour.on_request = lambda count: behaviour.status.append(416) if count == 2 else None
    assert fetch(url).read_bytes() == CONTENT
    assert behaviour.requests == [None, "bytes=1000000-", None]


def test_a_web_page_is_no_weights_file(server):
    url, behaviour = server
    behaviour.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="web page"):
        fetch(url)


def test_offline_the_error_says_where_to_put_the_file_and_a_file_put_there_is_used(server, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/tiny_zip.pth"
        with pytest.raises(DownloadError, match="no connection") as caught:
            fetch(url)
        assert url in str(caught.value)
        where = Path(str(caught.value).rpartition("put the file at ")[2])
        where.write_bytes((GOLDEN / "tiny_zip.pth").read_bytes())
        assert locate_weights(url, "b1") == where
    model = CycleNet([1, 1, 2, 1], [8, 16, 24, 32], [4, 4, 4, 4], num_classes=10)
    assert len(load_weights(model, where).loaded) == 107
    assert json.loads(Path(f"{where}.json").read_text())["sha256"] == hashlib.sha256(where.read_bytes()).hexdigest()


def test_a_cached_file_that_changed_is_refused(server):
    url, behaviour = server
    path = fetch(url)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(
        CheckpointError, match=rf"{re.escape(str(path))} is not the file .* expected {DIGEST}. Delete it"
    ):
        fetch(url)
    path.unlink()
    assert fetch(url).read_bytes() == CONTENT
    with pytest.raises(CheckpointError, match="asked for: its size is 3000000, expected 5"):
        fetch(url, size=5)
    assert len(behaviour.requests) == 2


def test_a_full_disk_is_explained(server, monkeypatch):
    url, _ = server
    usage = download.shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(DownloadError, match="no room for 3000000 bytes; free space there, or set CYCLEMLP_HOME"):
            fetch(url)
    with monkeypatch.context() as patch:
        failure = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(download.tqdm, "update", lambda *_: (_ for _ in ()).throw(failure))  # stands for the file's write
        with pytest.raises(DownloadError, match=r"No space left on device.*set CYCLEMLP_HOME"):
            fetch(url)
    assert fetch(url).read_bytes() == CONTENT


def test_what_cannot_be_told_from_a_cut_file_is_refused(server):
    url, behaviour = server
    behaviour.length = False
    with pytest.raises(DownloadError, match="does not tell the length"):
        fetch(url)
    assert visible(cached_path(url).parent) == []
    behaviour.cuts = [1_500_000]
    with pytest.raises(DownloadError, match=f"expected {DIGEST}"):
        fetch(url, sha256=DIGEST)
    assert fetch(url, sha256=DIGEST).read_bytes() == CONTENT


def test_a_part_without_a_total_is_not_taken_for_the_end(server):
    url, behaviour = server
    behaviour.cuts = [1_000_000]
    behaviour.total = "*"
    assert fetch(url).read_bytes() == CONTENT
    assert behaviour.requests == [None, "bytes=1000000-", None]


def test_a_body_longer_than_announced_is_refused(server):
    url, behaviour = server
    behaviour.longer = 5
    with pytest.raises(DownloadError, match="more than the 3000000 bytes came that were announced"):
        fetch(url)
    assert visible(cached_path(url).parent) == []


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Content-Encoding": "gzip"}, "encoding gzip, not the file"),
        ({"Content-Length": "many"}, "a length of 'many'"),
        ({"Content-Length": "-5"}, "a length of '-5'"),
        ({"Content-Length": "9" * 5000}, "a length of '999"),
        ({"Content-Length": "²"}, "a length of "),
    ],
)
def test_headers_that_make_no_sense_are_refused_at_once(server, headers, message):
    url, behaviour = server
    behaviour.length = False
    behaviour.headers = headers
    with pytest.raises(DownloadError, match=message):
        fetch(url, size=len(CONTENT))
    assert len(behaviour.requests) == 1


@pytest.mark.parametrize(
    "location",
    ["ftp://example.org/x", "file:///etc/passwd", "http://[::1", "http://h:port/", "http://a b/\x1b[2J", "//["],
)
def test_redirections_elsewhere_or_nowhere_are_refused_at_once(server, location):
    url, behaviour = server
    behaviour.location = location
    with pytest.raises(DownloadError, match="could not download") as caught:
        fetch(url)
    assert "\x1b" not in str(caught.value)
    assert len(behaviour.requests) == 1


def behave(behaviour: Behaviour, **how: object) -> None:
    """Another behaviour of the server, and nothing in the cache."""
    vars(behaviour).update(vars(Behaviour(**how)))
    shutil.rmtree(files.cache_folder(), ignore_errors=True)


@examples
@given(
    size=st.integers(0, 5000),
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    etag=st.sampled_from(['"v1"', 'W/"v1"', None]),
    ranges=st.booleans(),
    if_range=st.booleans(),
    length=st.booleans(),
    longer=st.sampled_from([0, 0, 0, 1]),
    total=st.none() | st.text("0123456789*-/ ", max_size=5),
)
def test_what_is_kept_is_the_whole_file_whatever_the_server_does(server, size, **does):
    """Whole, or a DownloadError and no file; and with an honest server that is not cut for ever, whole."""
    url, behaviour = server
    content = CONTENT[:size]
    behave(behaviour, content=content, **{**does, "cuts": [*does["cuts"]]})
    honest = does["length"] and does["if_range"] and not does["longer"] and does["total"] is None
    goes_on = does["ranges"] and does["etag"] == '"v1"'  # a cut loses nothing that came before
    useless = sum(cut == 0 for cut in does["cuts"]) if goes_on else len(does["cuts"])
    if honest and useless <= 3:
        assert fetch(url).read_bytes() == content
        return
    try:
        assert fetch(url).read_bytes() == content
    except DownloadError:
        assert not cached_path(url).exists()


@examples
@given(
    name=st.sampled_from(["Content-Length", "Content-Encoding", "Content-Type", "ETag", "Last-Modified"]),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=126)),
)
def test_a_header_of_any_text_is_taken_or_is_a_download_error(server, name, value):
    url, behaviour = server
    behave(behaviour, content=CONTENT[:100], length=name != "Content-Length", headers={name: value})
    with contextlib.suppress(DownloadError):
        assert fetch(url).read_bytes() == CONTENT[:100]


def test_after_twenty_tries_enough_is_enough(server):
    url, behaviour = server
    behaviour.cuts = [1000] * 100
    with pytest.raises(DownloadError, match="20000 of 3000000 bytes; what has come so far is kept"):
        fetch(url)
    assert len(behaviour.requests) == 20


def test_a_cached_file_that_cannot_be_read_says_how_to_get_it_anew(server):
    url, behaviour = server
    behaviour.content = (GOLDEN / "tiny_zip.pth").read_bytes()[:-30]
    model = CycleNet([1, 1, 2, 1], [8, 16, 24, 32], [4, 4, 4, 4], num_classes=10)
    for source in (url, locate_weights(url, "b1")):
        with pytest.raises(CheckpointError, match="Delete it to download it again"):
            load_weights(model, source)
    cached_path(url).unlink()
    behaviour.content = (GOLDEN / "tiny_zip.pth").read_bytes()
    assert len(load_weights(model, url).loaded) == 107


def test_processes_that_start_together_download_once(server):
    url, behaviour = server
    gate = threading.Event()
    behaviour.on_request = lambda _: gate.wait(20)
    code = """if True:
        import sys, types
        package = types.ModuleType("cyclemlp_backbones")  # without Paddle, which takes seconds to import
        package.__path__ = [sys.argv[1]]
        sys.modules["cyclemlp_backbones"] = package
        from cyclemlp_backbones.weights.download import fetch
        print("ready", flush=True)
        print(fetch(sys.argv[2]))
    """
    command = [sys.executable, "-c", code, str(Path(download.__file__).parents[1]), url]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    gate.set()
    for process in processes:
        assert process.communicate(timeout=60)[0] == f"{cached_path(url)}\n"
    assert cached_path(url).read_bytes() == CONTENT
    assert behaviour.requests == [None]


@pytest.mark.parametrize("url", ["ftp://example.org/x.pth", "file:///etc/passwd", "x.pth"])
def test_other_urls_are_not_downloaded(url):
    with pytest.raises(ValueError, match="http"):
        fetch(url)
