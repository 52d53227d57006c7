"""int8 and fp16 for exported ONNX models, by ONNX Runtime's own tools."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cyclemlp_backbones.deploy.images import ImageFile, Prepared, find_images, prepare
from cyclemlp_backbones.deploy.manifest import (
    Manifest,
    Preprocessing,
    read_manifest,
    staged_export,
    write_manifest,
)
from cyclemlp_backbones.pictures import UNREADABLE, read_rgb

_LOG = logging.getLogger(__name__)

MODES = ("dynamic", "static", "fp16")
CALIBRATION_IMAGES = 64
_MOST_PIXELS = 4096 * 4096


def quantize(folder: Path, mode: str, *, calibration: Path | None = None) -> Manifest:
    """Replaces the float32 weights of an exported ONNX folder by int8 or fp16; its new manifest.

    "fp16" computes in half precision, but for sizes and positions; inputs and outputs stay float32. "dynamic" stores
    weights of matrix products in int8, and computes scales of activations at every run; "static" takes activations'
    scales from up to `CALIBRATION_IMAGES` images of the folder `calibration`, and quantises convolutions too. Raises
    ValueError for a folder of another kind and images that cannot be read, ImportError where ONNX Runtime's tools do
    not import.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; choose from {', '.join(MODES)}")
    try:
        import onnx
        import onnxruntime
        from onnxruntime import quantization
    except (ImportError, AttributeError) as error:  # ml_dtypes made for another numpy fails with the latter
        raise ImportError(
            f"int8 needs ONNX Runtime's tools, which fail to import: {error}; "
            '`pip install "cyclemlp-backbones[export]" "ml_dtypes<0.6"`'
        ) from error
    manifest = read_manifest(folder)
    if manifest.format != "onnx" or manifest.quantization is not None:
        raise ValueError(
            f"{folder} holds {manifest.format} {manifest.quantization or ''}; float32 ONNX can be quantised"
        )
    program = folder / manifest.model_files()[0]
    metadata = {entry.key: entry.value for entry in onnx.load(str(program)).metadata_props}
    onnxruntime.set_default_logger_severity(3)  # its tools warn of every constant that they fold
    name = mode if mode == "fp16" else f"int8 {mode}"
    with staged_export(folder) as staged:
        prepared, quantised = staged / "prepared.onnx", staged / "model.onnx"
        if mode == "fp16":
            onnx.save(_half(onnx.load(str(program))), str(quantised))
        else:
            # Weights are rearranged within the graph; only those that this folds into constants become int8.
            quantization.quant_pre_process(str(program), str(prepared), skip_symbolic_shape=True)
        if mode == "dynamic":
            quantization.quantize_dynamic(
                str(prepared), str(quantised), per_channel=True, weight_type=quantization.QuantType.QInt8
            )
        elif mode == "static":
            if calibration is None:
                raise ValueError("static quantisation needs a folder of images to calibrate on: --calibration DIR")
            quantization.quantize_static(
                str(prepared),
                str(quantised),
                _reader(calibration, manifest.preprocessing, manifest.inputs[0]),
                nodes_to_exclude=_means(onnx.load(str(prepared)).graph),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        graph = onnx.load(str(quantised))
        onnx.helper.set_model_props(graph, {**metadata, "quantization": name})
        onnx.save(graph, str(quantised))
        prepared.unlink(missing_ok=True)
        # Which boxes are a detector's best hangs on the last digits of scores, so there is nothing to compare with.
        samples = () if manifest.task == "det" else manifest.samples
        manifest = dataclasses.replace(manifest, quantization=name, samples=samples)
        return write_manifest(staged, manifest, [quantised.name])


def _half(graph: Any) -> Any:
    """The model in fp16, but for what is computed of sizes: from a cast to float32 on, up to the next integer.

    fp16 has no whole numbers beyond 2048, nor room for a box's corner.
    """
    from onnx import TensorProto
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    exact: set[str] = set()
    kept = []
    for number, node in enumerate(graph.graph.node):
        node.name = f"{node.op_type}.{number}"
        to = {attribute.name: attribute.i for attribute in node.attribute}.get("to")
        if node.op_type == "Resize" and len(node.input) == 4:  # empty scales beside sizes, which a cast would fill
            node.input[1] = node.input[2] = ""
        if to == TensorProto.FLOAT or exact & {*node.input}:
            kept.append(node.name)
            exact |= set() if to not in (None, TensorProto.FLOAT) else {*node.output}
    blocked = [kind for kind in DEFAULT_OP_BLOCK_LIST if kind != "Resize"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the float32 number")  # every weight too small for fp16
        return convert_float_to_float16(graph, keep_io_types=True, op_block_list=blocked, node_block_list=kept)


def _means(graph: Any) -> list[str]:
    """Names of the products that take a mean over positions, whose shares grow beyond int8's range on smaller maps."""
    shares = {name for node in graph.node if node.op_type == "Softmax" for name in node.output}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[0] in shares]


def _reader(folder: Path, preprocessing: Preprocessing, name: str) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    readable = _readable(find_images([folder]), preprocessing)
    first = next(readable, None)
    if first is None:
        raise ValueError(f"no image of {folder} can be read; give a folder of images like those to predict")
    images = itertools.islice(itertools.chain([first], readable), CALIBRATION_IMAGES)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            prepared = next(images, None)
            return None if prepared is None else {name: prepared.array[None]}

    return Reader()


def _readable(files: Sequence[ImageFile], preprocessing: Preprocessing) -> Iterator[Prepared]:
    """Images spread evenly over `files`, then, in the place of unreadable ones, the others."""
    step = max(1, len(files) // CALIBRATION_IMAGES)
    for file in itertools.chain.from_iterable(files[start::step] for start in range(step)):
        try:
            yield prepare(read_rgb(file.path, most_pixels=_MOST_PIXELS), preprocessing, most_pixels=_MOST_PIXELS)
        except UNREADABLE as error:
            _LOG.warning("calibration leaves out %s: %s", file.path, error)
