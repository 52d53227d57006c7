"""int8 for exported ONNX models, by ONNX Runtime's own tools."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cyclemlp_backbones.deploy.images import find_images, prepare, read_rgb
from cyclemlp_backbones.deploy.manifest import Manifest, Preprocessing, read_manifest, write_manifest

CALIBRATION_IMAGES = 64
_MOST_PIXELS = 4096 * 4096


def quantize(folder: Path, mode: str, *, calibration: Path | None = None) -> Manifest:
    """Replaces the float32 weights of an exported ONNX folder by int8; its new manifest.

    "dynamic" stores weights of matrix products in int8, and computes scales of activations at every run; "static" takes
    activations' scales from up to `CALIBRATION_IMAGES` images of the folder `calibration`, and quantises convolutions
    too.
    """
    import onnx
    from onnxruntime import quantization

    manifest = read_manifest(folder)
    if manifest.format != "onnx" or manifest.quantization is not None:
        raise ValueError(
            f"{folder} holds {manifest.format} {manifest.quantization or ''}; float32 ONNX can be quantised"
        )
    program = folder / "model.onnx"
    metadata = {entry.key: entry.value for entry in onnx.load(str(program)).metadata_props}
    with tempfile.TemporaryDirectory() as scratch:
        quantised = Path(scratch) / "model.onnx"
        if mode == "dynamic":
            quantization.quantize_dynamic(
                str(program), str(quantised), per_channel=True, weight_type=quantization.QuantType.QInt8
            )
        elif calibration is None:
            raise ValueError("static quantisation needs a folder of images to calibrate on")
        else:
            prepared = Path(scratch) / "prepared.onnx"
            quantization.quant_pre_process(str(program), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(quantised),
                _reader(calibration, manifest.preprocessing, manifest.inputs[0]),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        graph = onnx.load(str(quantised))
    onnx.helper.set_model_props(graph, {**metadata, "quantization": f"int8 {mode}"})
    onnx.save(graph, str(program))
    return write_manifest(folder, dataclasses.replace(manifest, quantization=f"int8 {mode}"), ["model.onnx"])


def _reader(folder: Path, preprocessing: Preprocessing, name: str) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    files = find_images([folder])
    chosen = files[:: max(1, len(files) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for file in chosen:
            image = read_rgb(file.path, most_pixels=_MOST_PIXELS)
            yield {name: prepare(image, preprocessing, most_pixels=_MOST_PIXELS).array[None]}

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = feeds()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    return Reader()
