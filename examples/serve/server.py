"""An exported folder behind HTTP, an example to start from: requests that arrive together run together.

    python examples/serve/server.py out/cls --port 8000

POST /predict takes an image file as the request's body and answers in JSON; `?overlay=1` adds the picture that
`cyclemlp predict` draws. GET / is a page for people, /health and /metrics (Prometheus' text) are for programs.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from cyclemlp_backbones.deploy.images import Prepared, prepare
from cyclemlp_backbones.deploy.predict import Options, UnusableResult, predict_batch
from cyclemlp_backbones.deploy.results import Describer
from cyclemlp_backbones.deploy.runtime import DeployedModel
from cyclemlp_backbones.pictures import UNREADABLE, read_rgb

PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Limits:
    """Images of a batch and seconds to wait for it, images that wait, bytes of an upload, pixels of an image."""

    batch: int = 8
    wait: float = 0.005
    queue: int = 64
    upload: int = 10_000_000
    pixels: int = 4_000_000


class Batcher:
    """One thread runs the model; images that wait while it is busy, or arrive within `wait`, are its next batch."""

    def __init__(self, model: DeployedModel, options: Options, limits: Limits, counts: Counter):
        self.model, self.options, self.limits, self.counts = model, options, limits, counts
        self.waiting: asyncio.Queue[tuple[Prepared, asyncio.Future]] = asyncio.Queue(limits.queue)
        self.thread = ThreadPoolExecutor(1)

    async def result(self, prepared: Prepared) -> tuple[Any, int]:
        """The result of one image, and how many ran with it. asyncio.QueueFull where too many wait."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((prepared, future))
        return await future

    async def run(self) -> None:
        while True:
            batch = [await self.waiting.get()]
            end = time.monotonic() + self.limits.wait
            while len(batch) < self.limits.batch:
                left = end - time.monotonic()
                if left <= 0 and self.waiting.empty():
                    break
                try:
                    batch.append(await asyncio.wait_for(self.waiting.get(), max(left, 0.001)))
                except asyncio.TimeoutError:
                    break
            groups = defaultdict(list)
            for item in batch:
                groups[item[0].array.shape].append(item)
            for group in groups.values():
                found = await asyncio.get_running_loop().run_in_executor(self.thread, self._run, [i[0] for i in group])
                for (_, future), one in zip(group, found):
                    if future.cancelled():
                        continue  # whoever asked has gone
                    if isinstance(one, Exception):
                        future.set_exception(one)
                    else:
                        future.set_result((one, len(group)))

    def _run(self, prepared: list[Prepared]) -> list[Any]:
        """A result, or what is wrong, for each."""
        self.counts["batches"] += 1
        self.counts["images"] += len(prepared)
        try:
            result = predict_batch(self.model, prepared, self.options)
        except Exception as error:  # the runtimes' own, of many kinds; the server goes on
            return [error] * len(prepared)
        found: list[Any] = []
        for index in range(len(prepared)):
            try:
                found.append(result(index))
            except UnusableResult as error:
                found.append(error)
        return found


def create_app(model: DeployedModel, limits: Limits | None = None, options: Options | None = None) -> FastAPI:
    """The server of one model. ValueError for a model that predicts nothing."""
    limits, options, counts = limits or Limits(), options or Options(), Counter()
    options.check(model.manifest)
    describer = Describer(model.manifest, top=options.top, draw_threshold=options.draw_threshold)
    most = min(limits.pixels, options.model_pixels(model.manifest) // limits.batch)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher(model, options, limits, counts)
        app.state.worker = asyncio.create_task(app.state.batcher.run())
        yield
        app.state.worker.cancel()
        app.state.batcher.thread.shutdown()

    app = FastAPI(title="cyclemlp", lifespan=lifespan)

    @app.middleware("http")
    async def measured(request: Request, call: Any) -> Response:
        started = time.monotonic()
        response = await call(request)
        if request.url.path == "/predict":
            counts[f"status {response.status_code}"] += 1
            counts["seconds"] += time.monotonic() - started  # type: ignore[assignment]
        return response

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE.read_text(encoding="utf-8")

    @app.get("/health")
    async def health() -> JSONResponse:
        manifest, alive = model.manifest, not app.state.worker.done()
        told = {"ok": alive, "task": manifest.task, "architecture": manifest.architecture, "classes": manifest.classes}
        return JSONResponse(told, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        lines = [
            f'cyclemlp_requests_total{{status="{key[7:]}"}} {counts[key]}' for key in counts if key[:6] == "status"
        ]
        for name in ("batches", "images"):
            lines += [f"# TYPE cyclemlp_{name}_total counter", f"cyclemlp_{name}_total {counts[name]}"]
        lines.append(f"cyclemlp_request_seconds_sum {counts['seconds']:.6f}")
        lines.append(f"cyclemlp_waiting {app.state.batcher.waiting.qsize()}")
        return Response("# TYPE cyclemlp_requests_total counter\n" + "\n".join(lines) + "\n", media_type="text/plain")

    @app.post("/predict")
    async def predict(request: Request, overlay: bool = False) -> dict[str, Any]:
        content = await _body(request, limits.upload)

        def opened() -> tuple[Any, Prepared]:
            image = read_rgb(io.BytesIO(content), most_pixels=limits.pixels)
            return image, prepare(image, model.manifest.preprocessing, most_pixels=most)

        try:
            image, prepared = await asyncio.to_thread(opened)
        except UNREADABLE as error:
            status = 413 if "more than --max" in str(error) else 400
            raise HTTPException(status, f"{type(error).__name__}: {error}") from error
        try:
            result, together = await app.state.batcher.result(prepared)
        except asyncio.QueueFull:
            raise HTTPException(503, "too many images wait", {"Retry-After": "1"}) from None
        except UnusableResult as error:
            raise HTTPException(422, str(error)) from error
        told = {"results": describer.rows(result), "width": image.width, "height": image.height, "together": together}
        if overlay:
            told["overlay"] = await asyncio.to_thread(_as_url, describer, image, result)
        return told

    return app


async def _body(request: Request, most: int) -> bytes:
    """The request's body; 413 as soon as it is longer than `most`, whatever its header says."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise HTTPException(413, f"the upload is longer than --max-upload {most} bytes")
    return bytes(content)


def _as_url(describer: Describer, image: Any, result: Any) -> str:
    file = io.BytesIO()
    describer.overlay(image, result).save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="that `cyclemlp export --format onnx` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, %(default)s; 0.0.0.0: all")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, help="CPU threads of the model; default: all")
    parser.add_argument("--batch", type=int, default=Limits.batch, help="most images run together, %(default)s")
    parser.add_argument("--wait", type=float, default=Limits.wait, help="seconds to wait for more, %(default)s")
    parser.add_argument("--queue", type=int, default=Limits.queue, help="images that may wait, %(default)s")
    parser.add_argument("--max-upload", type=int, default=Limits.upload, help="bytes of an image file, %(default)s")
    parser.add_argument("--max-pixels", type=int, default=Limits.pixels, help="of an image, %(default)s")
    args = parser.parse_args()
    limits = Limits(args.batch, args.wait, args.queue, args.max_upload, args.max_pixels)
    app = create_app(DeployedModel(args.folder, threads=args.threads), limits)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
