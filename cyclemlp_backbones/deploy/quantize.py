"""int8 for exported ONNX models, by ONNX Runtime's own tools."""

from __future__ import annotations

import dataclasses
import itertools
import logging
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

MODES = ("dynamic", "static")
CALIBRATION_IMAGES = 64
_MOST_PIXELS = 4096 * 4096


def quantize(folder: Path, mode: str, *, calibration: Path | None = None) -> Manifest:
    """Replaces the float32 weights of an exported ONNX folder by int8; its new manifest.

    "dynamic" stores weights of matrix products in int8, and computes scales of activations at every run; "static" takes
    activations' scales from up to `CALIBRATION_IMAGES` images of the folder `calibration`, and quantises convolutions
    too. Raises ValueError for a folder of another kind and images that cannot be read, ImportError where ONNX Runtime's
    tools do not import.
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
    with staged_export(folder) as staged:
        prepared, quantised = staged / "prepared.onnx", staged / "model.onnx"
        # Weights are rearranged within the graph; only those that this folds into constants become int8.
        quantization.quant_pre_process(str(program), str(prepared), skip_symbolic_shape=True)
        if mode == "dynamic":
            quantization.quantize_dynamic(
                str(prepared), str(quantised), per_channel=True, weight_type=quantization.QuantType.QInt8
            )
        elif calibration is None:
            raise ValueError("static quantisation needs a folder of images to calibrate on: --calibration DIR")
        else:
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
        onnx.save(graph, str(quantised))
        prepared.unlink()
        manifest = dataclasses.replace(manifest, quantization=f"int8 {mode}")
        return write_manifest(staged, manifest, [quantised.name])


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
