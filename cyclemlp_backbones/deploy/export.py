"""From a network to an exported folder: Paddle's inference format or ONNX, with `cyclemlp.yml` beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.static import InputSpec

from cyclemlp_backbones import __version__
from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.deploy.graph_forms import cpu_graph_forms, open_size_forms
from cyclemlp_backbones.deploy.joins import join, mend_epsilons
from cyclemlp_backbones.deploy.manifest import (
    FORMATS,
    Manifest,
    Preprocessing,
    check_folder,
    staged_export,
    write_manifest,
)
from cyclemlp_backbones.deploy.runtime import DeployedModel
from cyclemlp_backbones.deploy.verify import Case, cases, compare, feeds
from cyclemlp_backbones.environment import writable_home  # to_static writes there too
from cyclemlp_backbones.files import isolated_python
from cyclemlp_backbones.variants import VARIANTS

_BYTES = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 20: 1, 21: 1, 22: 2}
"""Of a value, by Paddle's number of its dtype."""

DEVICES = ("cpu", "gpu")
OPSET = 17
"""The first in which LayerNormalization is one operator."""

IMAGE = InputSpec([None, 3, None, None], "float32", name="image")


@dataclass(frozen=True)
class Exportable:
    """A network and what its manifest has to say; `input_spec` is what its `forward` takes."""

    layer: nn.Layer
    task: str
    architecture: str
    variant: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_spec: Sequence[Any]
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    category_ids: tuple[int, ...] = ()
    nms: Mapping[str, float] | None = None


def variant_of(network: CycleNet) -> str | None:
    """The variant that a network is; None if it is of another size."""
    stages = [network.network[index] for index in (0, 2, 4, 6)]
    depths = tuple(len(stage) for stage in stages)
    dims = tuple(int(stage[0].norm1.bias.shape[0]) for stage in stages)
    swin_like = stages[0][0].attn.reweight is None
    for name, variant in VARIANTS.items():
        if (variant.depths, variant.embed_dims, variant.swin_like) == (depths, dims, swin_like):
            return name
    return None


def export(
    model: Exportable,
    folder: str | os.PathLike,
    *,
    format: str,
    device: str = "cpu",
    overwrite: bool = False,
    quantization: str | None = None,
    calibration: Path | None = None,
    verified: bool = True,
) -> Manifest:
    """Writes `model` into `folder`, which becomes complete at once: program, weights and `cyclemlp.yml`.

    `format` is "paddle" or "onnx" (Paddle 3 only), `device` "cpu" or "gpu", whose runtime the graph's form is for: the
    results are the same, and either runs on both. `quantization` and `calibration` are `quantize`'s mode and images.
    Any batch size, height and width from 32 on are open. A folder that holds anything is a ValueError, unless
    `overwrite` is set and what it holds is an earlier export. What was written is loaded and run before it counts, and
    unless `verified` is False compared with the network at three sizes and two batches: ManifestError as `compare`.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; choose from {', '.join(FORMATS)}")
    path = Path(folder)
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}; choose from {', '.join(DEVICES)}")
    check_folder(path, overwrite)
    stated = {name: value for name, value in vars(model).items() if name not in ("layer", "input_spec")}
    versions = {"cyclemlp-backbones": __version__, "paddle": paddle.__version__}
    manifest = Manifest(format=format, versions=versions, **stated)
    expected = {case: _run(model, case) for case in cases(manifest)} if verified else {}
    with staged_export(path) as staged:
        if format == "paddle":
            files = save_paddle(model, staged, device)
        else:
            manifest, files = _save_onnx(model, manifest, staged, device)
        manifest = write_manifest(staged, manifest, files)
        with contextlib.suppress(ImportError):  # without ONNX Runtime, a model is checked where it runs
            samples = compare(DeployedModel(staged), expected)
            manifest = write_manifest(staged, dataclasses.replace(manifest, samples=samples), files)
        if quantization is not None:
            from cyclemlp_backbones.deploy.quantize import quantize  # needs Pillow

            manifest = quantize(staged, quantization, calibration=calibration)
            DeployedModel(staged)
    return manifest


def _run(model: Exportable, case: Case) -> list[np.ndarray]:
    """What the network gives for a case of `verify`, in the order of the outputs."""
    given = feeds(*case)
    model.layer.eval()
    with paddle.no_grad():
        outputs = model.layer(*(paddle.to_tensor(given[name]) for name in model.inputs))
    return [output.numpy() for output in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


@contextlib.contextmanager
def _whole_graphs() -> Iterator[None]:
    """No falling back to Python within one export, also where a toolkit's code asks for it."""
    before = os.environ.get("ENABLE_FALL_BACK")
    os.environ["ENABLE_FALL_BACK"] = "False"
    try:
        yield
    finally:
        if before is None:
            del os.environ["ENABLE_FALL_BACK"]
        else:
            os.environ["ENABLE_FALL_BACK"] = before


def save_paddle(
    model: Exportable, folder: Path, device: str, stem: str = "model", *, products: bool = True
) -> list[str]:
    """The names of the files written, in the graph's form for `device`: the program, the weights.

    For a CPU, `products` is as in `open_size_forms`.
    """
    model.layer.eval()
    form = cpu_graph_forms(model.layer, onnx=not products) if device == "cpu" else contextlib.nullcontext()
    old = paddle.__version__.startswith("2.")  # whose oneDNN takes interpolations, and fails at the forms
    sizes = contextlib.nullcontext() if old else open_size_forms(products=products and device == "cpu")
    with writable_home(), warnings.catch_warnings(), _whole_graphs(), sizes, form:
        # Paddle's own zeros_like asks a graph's tensor for its place, and Paddle warns about that, once per use.
        warnings.filterwarnings("ignore", message="Tensor do not have 'place' interface")
        static = paddle.jit.to_static(model.layer, input_spec=list(model.input_spec), full_graph=True)
        try:
            paddle.jit.save(static, str(folder / stem))
        finally:
            vars(model.layer).pop("forward", None)  # to_static's own, which would go on running the graph
    (folder / f"{stem}.pdiparams.info").unlink(missing_ok=True)  # Paddle 2 writes it; only training reads it
    _check_whole(folder / f"{stem}.pdiparams")
    for name in (f"{stem}.json", f"{stem}.pdmodel"):
        if (folder / name).is_file():
            return [name, f"{stem}.pdiparams"]
    raise FileNotFoundError(f"paddle.jit.save wrote neither {stem}.json nor {stem}.pdmodel into {folder}")


def _check_whole(weights: Path) -> None:
    """OSError unless a `.pdiparams` file ends where its last tensor does.

    On a full disk, or beyond a limit of file size, Paddle writes on without a word, and it reads a last tensor that is
    cut. A tensor is 20 bytes (versions of the format, and how long the message is), a message that alternates tags and
    numbers (the dtype, then each dim), and its values.
    """
    size, end = weights.stat().st_size, 0
    with weights.open("rb") as file:
        while end < size:
            message = file.read(int.from_bytes(file.read(20)[16:], "little"))
            numbers, shift = [0], 0
            for byte in message:
                numbers[-1] |= (byte & 127) << shift
                shift = shift + 7 if byte & 128 else 0
                if not shift:
                    numbers.append(0)
            dtype, dims = numbers[1], numbers[3:-1:2]
            end = file.tell() + _BYTES[dtype] * math.prod(dims) if len(numbers) > 2 else size + 1
            file.seek(end)
    if end != size:
        raise OSError(f"{weights.name} is cut at {size} bytes; is the disk full, or is there a limit (ulimit -f)?")


def _save_onnx(model: Exportable, manifest: Manifest, folder: Path, device: str) -> tuple[Manifest, list[str]]:
    """The manifest with the converter's version, and the name of the file written."""
    try:
        import onnx
        import paddle2onnx
    except ImportError as error:
        raise ImportError(
            f'ONNX export fails to import: {error}; `pip install "cyclemlp-backbones[export]"`'
        ) from error
    program, weights = save_paddle(model, folder, device, products=False)  # which goes when the ONNX file is there
    if program.endswith(".pdmodel"):
        raise ValueError(f"ONNX export needs Paddle 3, whose programs paddle2onnx reads; this is {paddle.__version__}")
    graph = onnx.load_from_string(_convert(folder, program, weights, model.architecture))
    if joins := getattr(model.layer, "joins", ()):
        join(graph.graph, len(model.outputs), joins)
    mend_epsilons(graph.graph, {norm._epsilon for norm in model.layer.sublayers() if isinstance(norm, nn.GroupNorm)})
    _name_outputs(graph, model)
    manifest = dataclasses.replace(
        manifest,
        versions={**manifest.versions, "paddle2onnx": paddle2onnx.__version__, "onnx opset": str(OPSET)},
    )
    onnx.helper.set_model_props(graph, _metadata(manifest))
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(folder / "model.onnx"))
    for name in (program, weights):
        (folder / name).unlink()
    return manifest, ["model.onnx"]


def _convert(folder: Path, program: str, weights: str, architecture: str) -> bytes:
    """The ONNX model of a Paddle program, by paddle2onnx in a process of its own: it aborts where it cannot.

    Without save_file: with it, the default optimize_tool installs packages (numpy 2 among them) with pip.
    """
    code = (
        "import sys, paddle2onnx; program, weights, target, opset = sys.argv[1:];"
        "model = paddle2onnx.export(program, weights, opset_version=int(opset), enable_onnx_checker=False);"
        "open(target, 'wb').write(model)"
    )
    target = folder / "model.onnx"
    command = isolated_python(code, folder / program, folder / weights, target, OPSET)
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode or not target.is_file():
        lines = (run.stdout + run.stderr).splitlines()
        reasons = [line.split("]", 2)[-1].strip() for line in lines if "[ERROR]" in line or "not supported" in line]
        raise ValueError(
            f"paddle2onnx cannot convert {architecture}; export it with --format paddle. It says: "
            + (" ".join(reasons) or lines[-1] if lines else f"exit status {run.returncode}")
        )
    return target.read_bytes()


def _name_outputs(graph: Any, model: Exportable) -> None:
    """Gives outputs and open dimensions the names that the manifest and a reader expect."""
    renamed = dict(zip((output.name for output in graph.graph.output), model.outputs))
    for node in graph.graph.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for output in graph.graph.output:
        output.name = renamed[output.name]
        for index, dim in enumerate(output.type.tensor_type.shape.dim):
            if dim.dim_param or dim.dim_value <= 0:
                dim.dim_param = "N" if index == 0 and model.task != "det" else f"{output.name}_{index}"
    for tensor in graph.graph.input:
        for index, dim in enumerate(tensor.type.tensor_type.shape.dim):
            if dim.dim_param or dim.dim_value <= 0:
                dim.dim_param = "NCHW"[index]


def _metadata(manifest: Manifest) -> dict[str, str]:
    """What an ONNX file says by itself, for programs that read no `cyclemlp.yml`, as JSON."""
    return {
        "task": manifest.task,
        "architecture": manifest.architecture,
        "variant": manifest.variant or "",
        "classes": json.dumps(manifest.classes, ensure_ascii=False),
        "mean": json.dumps(manifest.preprocessing.mean),
        "std": json.dumps(manifest.preprocessing.std),
        "input_range": json.dumps(manifest.preprocessing.input_range),
        "channel_order": manifest.preprocessing.channel_order,
        "preprocessing": json.dumps(dataclasses.asdict(manifest.preprocessing)),
        "nms": json.dumps(manifest.nms),
        "versions": json.dumps(manifest.versions),
    }
