"""Latency of examples/serve at 1, 4 and 16 requests at a time, over loopback; writes the table of README.md here.

python examples/serve/latency.py out/cls photo.jpg
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.documents import Part, describe
from cyclemlp_backbones.deploy.manifest import read_manifest
from cyclemlp_backbones.timing import describe_machine

HERE = Path(__file__).resolve().parent
TABLE = Part("latency", "python examples/serve/latency.py FOLDER IMAGE")
PARALLEL = (1, 4, 16)


@contextlib.contextmanager
def serving(folder: Path | str, *flags: object) -> Iterator[str]:
    """The address of a server of `folder` in a process of its own, which ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(HERE / "server.py"), str(folder), "--port", str(port), *map(str, flags)]
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=HERE.parents[1]) as process:
        try:
            end = time.monotonic() + 60
            while True:
                try:
                    httpx.get(f"{address}/health").raise_for_status()
                    break
                except httpx.TransportError:
                    if process.poll() is not None or time.monotonic() > end:
                        raise RuntimeError(f"the server of {folder} does not answer; its output is above") from None
                    time.sleep(0.1)
            yield address
        finally:
            process.terminate()


async def measure(address: str, content: bytes, parallel: int, requests: int) -> tuple[list[float], float, float]:
    """Seconds of each request, seconds of all, and how many ran together on average."""
    seconds, together = [], []
    async with httpx.AsyncClient(
        base_url=address, timeout=120, limits=httpx.Limits(max_connections=parallel)
    ) as client:

        async def one_after_another(count: int) -> None:
            for _ in range(count):
                started = time.monotonic()
                answer = await client.post("/predict", content=content)
                seconds.append(time.monotonic() - started)
                together.append(answer.raise_for_status().json()["together"])

        started = time.monotonic()
        await asyncio.gather(*[one_after_another(requests // parallel) for _ in range(parallel)])
        return seconds, time.monotonic() - started, float(np.mean(together))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that `cyclemlp export --format onnx` wrote")
    parser.add_argument("image", type=Path)
    parser.add_argument("--requests", type=int, default=160, help="for each row, %(default)s")
    args = parser.parse_args()
    lines = [
        "| requests at a time | median | 95 of 100 within | requests a second | together, on average |",
        "|---" * 5 + "|",
    ]
    with serving(args.folder) as address:
        for parallel in (1, *PARALLEL):  # the first is to warm up
            seconds, total, together = asyncio.run(measure(address, args.image.read_bytes(), parallel, args.requests))
            median, most = (1e3 * float(np.quantile(seconds, share)) for share in (0.5, 0.95))
            lines.append(
                f"| {parallel} | {median:.0f} ms | {most:.0f} ms | {len(seconds) / total:.1f} | {together:.1f} |"
            )
    del lines[2]
    manifest = read_manifest(args.folder)
    what = f"{manifest.architecture} {manifest.variant or ''}, task {manifest.task}".replace(" ,", ",")
    where = describe(describe_machine(), ("onnxruntime",))
    lines += ["", f"{what}; {args.requests} requests a row, client and server on one machine: {where}."]
    TABLE.write(HERE / "README.md", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
