"""B1 exported, against resnet50 of paddle.vision exported: Paddle's predictor and ONNX Runtime.

    python -m benchmarks.exported [--rounds 9]

Batch 1, 224 px, fp32, all sizes open, as `cyclemlp export` writes models. Each setting of Paddle's predictor is tried
in a process of its own, since some of them may crash; both networks get the one that is quickest for them. What they
compute is compared with dygraph.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.group import THREADS, run_group
from benchmarks.rows import Figure, Figures, Progress
from cyclemlp_backbones.files import isolated_python
from cyclemlp_backbones.timing import Ratio, Timing, measure

NETWORKS = ("b1", "resnet50")
SETTINGS = tuple({"onednn": onednn, "ir_optim": ir_optim} for onednn in (False, True) for ir_optim in (True, False))
SHAPE = [1, 3, 224, 224]
SECONDS_TO_TRY = 120
TOLERANCE = 1e-3  # of the largest logit


def export_network(name: str, folder: Path) -> None:
    """Writes the network in both formats, an image, and what dygraph makes of it."""
    import numpy as np
    import paddle

    from benchmarks.network import build
    from cyclemlp_backbones.deploy.export import IMAGE, Exportable, export
    from cyclemlp_backbones.deploy.manifest import Preprocessing
    from cyclemlp_backbones.deploy.networks import numbered

    model = build(name)
    model.eval()
    image = paddle.randn(SHAPE)
    with paddle.no_grad():
        np.savez(folder / f"{name}.npz", image=image.numpy(), logits=model(image).numpy())
    spec = (("image",), ("logits",), [IMAGE], Preprocessing(), numbered(1000))
    exportable = Exportable(model, "cls", type(model).__name__, None, *spec)
    for kind in ("paddle", "onnx"):
        export(exportable, folder / f"{name}_{kind}", format=kind)


def predictor_call(
    folder: Path, *, onednn: bool, ir_optim: bool = True, bf16: bool = False, threads: int = THREADS
) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Paddle's predictor of the model in `folder`: arrays by the names of its inputs -> arrays of its outputs."""
    from paddle import inference

    (program,) = (path for path in folder.iterdir() if path.suffix in (".json", ".pdmodel"))
    config = inference.Config(str(program), str(program.with_suffix(".pdiparams")))
    config.disable_gpu()
    config.set_cpu_math_library_num_threads(threads)
    config.switch_ir_optim(ir_optim)
    config.disable_glog_info()
    if onednn:
        config.enable_mkldnn()
    else:
        config.disable_mkldnn()
    if bf16:
        config.enable_mkldnn_bfloat16()
    predictor = inference.create_predictor(config)
    sources = {name: predictor.get_input_handle(name) for name in predictor.get_input_names()}
    results = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

    def call(feeds: Mapping[str, Any]) -> list[Any]:
        for name, source in sources.items():
            source.copy_from_cpu(feeds[name])
        predictor.run()
        return [result.copy_to_cpu() for result in results]

    return call


def paddle_call(folder: Path, name: str, setting: dict[str, bool]) -> Callable[[], Any]:
    """A call of Paddle's predictor that returns the logits."""
    import numpy as np

    call = predictor_call(folder / f"{name}_paddle", **setting)
    feeds = {"image": np.load(folder / f"{name}.npz")["image"]}
    return lambda: call(feeds)[0]


def onnx_call(folder: Path, name: str) -> Callable[[], Any]:
    """A call of ONNX Runtime, with its optimisations, that returns the logits."""
    import numpy as np

    from cyclemlp_backbones.deploy.runtime import DeployedModel

    model = DeployedModel(folder / f"{name}_onnx", threads=THREADS)
    feeds = {"image": np.load(folder / f"{name}.npz")["image"]}
    return lambda: model.run(feeds)[0]


def check(folder: Path, name: str, logits: Any) -> None:
    """Raises ValueError where the exported network computes something else than dygraph did."""
    import numpy as np

    expected = np.load(folder / f"{name}.npz")["logits"]
    error = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise ValueError(f"{name}: logits differ from dygraph's by {error:.2e} of the largest")


def try_setting(folder: Path, name: str, setting: dict[str, bool]) -> float | str:
    """Seconds of a call in a process of its own, or why there are none."""
    code = (
        "import sys, json; from pathlib import Path; from benchmarks import exported;"
        "from cyclemlp_backbones.timing import measure;"
        "folder, name, setting = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]);"
        "call = exported.paddle_call(folder, name, setting); exported.check(folder, name, call());"
        "print('seconds', measure({name: call}, rounds=5)[name].minimum)"
    )
    command = isolated_python(code, folder, name, json.dumps(setting))
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_TRY)
    except subprocess.TimeoutExpired:
        return f"does not end within {SECONDS_TO_TRY} s"
    if run.returncode:
        lines = run.stderr.strip().splitlines() or [""]
        return f"ended by signal {-run.returncode}" if run.returncode < 0 else lines[-1][:120]
    return float(run.stdout.split()[-1])


def words(setting: dict[str, bool]) -> str:
    return f"oneDNN {'on' if setting['onednn'] else 'off'}, ir_optim {'on' if setting['ir_optim'] else 'off'}"


def _figure(key: str, times: dict[str, Timing], note: str, more: dict[str, float] | None = None) -> Figure:
    ratio = Ratio.of(times["b1"], times["resnet50"])
    parts = {f"{name}, ms": 1e3 * times[name].minimum for name in NETWORKS}
    return Figure(key, ratio.minima, ratio.medians, parts | (more or {}), note)


def figures(rounds: int, progress: Progress) -> Figures:
    with tempfile.TemporaryDirectory() as text:
        folder, notes, best, tried = Path(text), [], {}, {}
        for number, name in enumerate(NETWORKS):
            export_network(name, folder)
            seconds = {}
            for position, setting in enumerate(SETTINGS):
                result = try_setting(folder, name, setting)
                if isinstance(result, float):
                    seconds[position] = result
                    tried[f"{name} with {words(setting)}, ms"] = 1e3 * result
                else:
                    notes.append(f"{name} with {words(setting)}: {result}")
                progress(0.6 * (number * len(SETTINGS) + position + 1) / (len(NETWORKS) * len(SETTINGS)))
            best[name] = SETTINGS[min(seconds, key=lambda position: seconds[position])]
        chosen = [f"{name} with {words(best[name])}" for name in NETWORKS]
        calls = {name: paddle_call(folder, name, best[name]) for name in NETWORKS}
        times = measure(calls, rounds=rounds, least_seconds=0.3, progress=lambda d, t: progress(0.6 + 0.2 * d / t))
        yield _figure("predictor", times, "; ".join(chosen + notes), tried)
        calls = {name: onnx_call(folder, name) for name in NETWORKS}
        for name, call in calls.items():
            check(folder, name, call())
        times = measure(calls, rounds=rounds, least_seconds=0.3, progress=lambda d, t: progress(0.8 + 0.2 * d / t))
        yield _figure("onnx", times, "")


if __name__ == "__main__":
    run_group(figures)
