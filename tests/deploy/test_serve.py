"""examples/serve: a real server on loopback, asked by a real client."""

import asyncio
import base64
import contextlib
import io
import re
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from cyclemlp_backbones.cli import main
from examples.serve.latency import measure, serving
from tests.deploy.conftest import CLASSES, FORMATS
from tests.deploy.test_predict import rows

pytestmark = pytest.mark.slow


def picture(number, size=(80, 72)):
    file = io.BytesIO()
    pixels = np.random.RandomState(number).randint(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def address(classifier):
    flags = ("--wait", 0.2, "--batch", 4, "--queue", 8, "--max-pixels", 100_000, "--max-upload", 200_000)
    with serving(classifier / FORMATS[-1], *flags, "--threads", 1) as address:
        yield address


def metric(address, name):
    text = httpx.get(f"{address}/metrics").raise_for_status().text
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def test_it_answers_as_predict_does(classifier, address, tmp_path):
    (tmp_path / "one.png").write_bytes(picture(0))
    flags = ["--out", str(tmp_path / "out"), "--top", "5"]
    assert main(["predict", str(classifier / FORMATS[-1]), str(tmp_path / "one.png"), *flags]) == 0
    told = httpx.post(f"{address}/predict", content=picture(0), params={"overlay": 1}).raise_for_status().json()
    assert (told["width"], told["height"]) == (80, 72)
    expected = rows(tmp_path / "out")
    assert [one["class"] for one in told["results"]] == [row["class"] for row in expected]
    shares = [float(row["probability"]) for row in expected]
    assert [one["probability"] for one in told["results"]] == pytest.approx(shares, abs=1e-4)
    overlay = Image.open(io.BytesIO(base64.b64decode(told["overlay"].partition(",")[2])))
    assert overlay.size == Image.open(tmp_path / "out" / "overlays" / "one.jpg").size


def test_requests_that_arrive_together_run_together_and_each_gets_its_own(address):
    alone = [httpx.post(f"{address}/predict", content=picture(number)).json()["results"] for number in range(8)]
    assert len({one[0]["probability"] for one in alone}) > 4
    batches = metric(address, "cyclemlp_batches_total")

    async def ask():
        async with httpx.AsyncClient(timeout=60) as client:
            asked = [client.post(f"{address}/predict", content=picture(number)) for number in range(8)]
            return [answer.raise_for_status().json() for answer in await asyncio.gather(*asked)]

    told = asyncio.run(ask())
    assert metric(address, "cyclemlp_batches_total") - batches <= 4
    assert max(one["together"] for one in told) == 4
    for one, expected in zip(told, alone):
        assert [row["class"] for row in one["results"]] == [row["class"] for row in expected]
        shares = [row["probability"] for row in expected]
        assert [row["probability"] for row in one["results"]] == pytest.approx(shares, abs=1e-4)


def test_bad_uploads_are_refused_and_the_server_goes_on(address):
    for content, status, named in (
        (b"no picture", 400, "UnidentifiedImageError"),
        (b"", 400, "UnidentifiedImageError"),
        (picture(0, (400, 300)), 413, "400 x 300 pixels are more than --max-pixels 100000"),
        (bytes(300_000), 413, "longer than --max-upload 200000"),
    ):
        answer = httpx.post(f"{address}/predict", content=content)
        assert answer.status_code == status
        assert named in answer.json()["detail"]

    def endless():  # without a length in its header
        for _ in range(1000):
            yield bytes(10_000)

    with contextlib.suppress(httpx.WriteError):  # the server may close the connection while the client still sends
        assert httpx.post(f"{address}/predict", content=endless()).status_code == 413
    assert metric(address, 'cyclemlp_requests_total{status="413"}') >= 2
    assert httpx.post(f"{address}/predict", content=picture(1)).status_code == 200


def test_health_metrics_and_page(address):
    told = httpx.get(f"{address}/health").json()
    assert (told["ok"], told["task"], told["classes"]) == (True, "cls", CLASSES)
    httpx.post(f"{address}/predict", content=picture(1))
    assert metric(address, "cyclemlp_images_total") >= metric(address, "cyclemlp_batches_total") > 0
    assert metric(address, "cyclemlp_waiting") == 0
    assert 'type="file"' in httpx.get(address).raise_for_status().text


def test_more_than_may_wait_are_told_so(address):
    async def ask():
        async with httpx.AsyncClient(timeout=60) as client:
            asked = [client.post(f"{address}/predict", content=picture(0)) for _ in range(40)]
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask())
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert sum(answer.status_code == 200 for answer in answers) >= 8
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert all(answer.headers["retry-after"] == "1" for answer in refused)


def test_the_latency_is_of_every_request(address):
    started = time.monotonic()
    seconds, total, together = asyncio.run(measure(address, picture(0), 2, 6))
    assert len(seconds) == 6
    assert max(seconds) <= total <= time.monotonic() - started
    assert together <= 4
