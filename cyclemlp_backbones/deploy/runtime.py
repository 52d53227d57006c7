"""Exported models at work, by Paddle's predictor or ONNX Runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cyclemlp_backbones.deploy.manifest import Manifest, ManifestError, read_manifest

_log = logging.getLogger(__name__)

_PADDLE2_ONEDNN = {
    *("conv2d", "fused_conv2d", "matmul_v2", "fused_matmul", "fc", "layer_norm", "gelu", "relu", "softmax"),
    *("elementwise_add", "transpose2", "concat", "slice", "reshape2"),
}
"""What Paddle 2.6 leaves to oneDNN; detectors fail in its elementwise_mul."""

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


class DeployedModel:
    """An exported folder, ready to run.

    `run(feeds)` takes float32 arrays by the names in `manifest.inputs`, `image` [N, 3, H, W] first, and returns arrays
    in the order of `manifest.outputs`. N, H and W may change from call to call; H and W are 32 or more.
    """

    def __init__(self, folder: str | os.PathLike, *, threads: int | None = None, onednn: bool | None = None):
        """`threads` is the number of CPU threads; None: OMP_NUM_THREADS, else all. `onednn` switches oneDNN on or off
        in Paddle's predictor; None: on where the model runs with it. Raises ManifestError for a folder that is damaged,
        not an export, or describes another model, ImportError if its runtime is not installed."""
        path = Path(folder)
        self.folder = path
        self.manifest = read_manifest(path)
        threads = threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        try:
            if self.manifest.format == "onnx":
                self._run = _load_onnx(path, self.manifest, threads)
            else:
                self._run = _load_paddle(path, self.manifest, threads, onednn)
            self._try()
        except (ImportError, ManifestError):
            raise
        except Exception as error:  # the runtimes' own, of many kinds
            raise ManifestError(f"{path} does not load: {error}; export the model again") from error

    def _try(self) -> None:
        """ManifestError unless the model gives, for a small image, what the manifest says."""
        manifest = self.manifest
        if manifest.task == "det" and manifest.nms is None:
            return  # boxes alone say nothing of the classes, and there may be none
        feeds = _small(manifest)
        shapes = [array.shape for array in self.run(feeds)]
        count = len(manifest.classes)
        wanted: list[tuple[int, ...]] = [shape for shape in shapes if len(shape) == 4]
        if manifest.task in ("cls", "seg"):
            wanted = [(1, count, *feeds["image"].shape[2:]) if manifest.task == "seg" else (1, count)]
        elif manifest.task == "det":
            wanted = [(1, *shapes[0][1:2], 4), (1, *shapes[0][1:2], count)]
        if shapes != wanted:
            given = ", ".join(f"{name} {[*shape]}" for name, shape in zip(manifest.outputs, shapes))
            raise ManifestError(
                f"{self.folder}: cyclemlp.yml is of a model of the task {manifest.task} with {count} classes; this one "
                f"gives {given}"
            )

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        missing = [name for name in self.manifest.inputs if name not in feeds]
        if missing:
            raise ValueError(f"{self.folder} takes {', '.join(self.manifest.inputs)}; missing: {', '.join(missing)}")
        return self._run({name: feeds[name] for name in self.manifest.inputs})


def _small(manifest: Manifest) -> dict[str, np.ndarray]:
    """The inputs for one small image of noise, whose sizes are odd where the model takes such."""
    pad, least = manifest.preprocessing.pad_to, manifest.preprocessing.least
    height, width = (-(-max(side, least) // pad) * pad for side in (33, 77))
    image = np.random.RandomState(0).standard_normal((1, 3, height, width)).astype(np.float32)
    return {
        "image": image,
        "im_shape": np.array([[height, width]], np.float32),
        "scale_factor": np.ones((1, 2), np.float32),
    }


def _close(some: np.ndarray, others: np.ndarray) -> bool:
    return some.shape == others.shape and np.allclose(
        some, others, rtol=0, atol=1e-3 * max(1, np.abs(others).max(initial=0))
    )


def _load_onnx(folder: Path, manifest: Manifest, threads: int) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError('ONNX Runtime is not installed; `pip install "cyclemlp-backbones[export]"`') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    program = str(folder / manifest.model_files()[0])
    session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    _check_names(folder, "inputs", manifest.inputs, [entry.name for entry in session.get_inputs()])
    _check_names(folder, "outputs", manifest.outputs, [entry.name for entry in session.get_outputs()])

    def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return session.run(list(manifest.outputs), dict(feeds))

    return run


def _check_names(folder: Path, what: str, stated: Sequence[str], actual: Sequence[str]) -> None:
    if set(stated) != set(actual):
        raise ManifestError(f"{folder}: cyclemlp.yml states the {what} {[*stated]}, the model has {[*actual]}")


def _load_paddle(folder: Path, manifest: Manifest, threads: int, onednn: bool | None) -> Run:
    if onednn is None:
        # Paddle 3.3.1 cannot hand an interpolation to oneDNN, and 3.2.2 computes wrong values there: whether this
        # release runs this model right is tried.
        plain, feeds = _load_paddle(folder, manifest, threads, False), _small(manifest)
        feeds = {name: feeds[name] for name in manifest.inputs}
        expected = plain(feeds)
        try:
            fast = _load_paddle(folder, manifest, threads, True)
            if all(map(_close, fast(feeds), expected)):
                return fast
            _log.info("%s runs without oneDNN, whose values differ", folder)
        except Exception as error:  # Paddle's own, of many kinds
            _log.info("%s runs without oneDNN: %s", folder, error)
        return plain
    try:
        import paddle
    except ImportError as error:
        raise ImportError('Paddle is not installed; `pip install "cyclemlp-backbones[cpu]"`') from error
    program, weights = manifest.model_files()
    if program.endswith(".json") and paddle.__version__.startswith("2."):
        raise ManifestError(
            f"{folder} was exported by Paddle {manifest.versions.get('paddle', '3')}, which Paddle "
            f"{paddle.__version__} does not read; export it again with this Paddle"
        )
    inference: Any = paddle.inference
    config = inference.Config(str(folder / program), str(folder / weights))
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    paddle2 = paddle.__version__.startswith("2.")
    if not onednn:
        config.disable_mkldnn()
    else:
        config.enable_mkldnn()
        if paddle2:
            config.set_mkldnn_op(_PADDLE2_ONEDNN)
        else:  # 3.3.1 folds a normalization into a convolution that has a bias, wrongly: UPerNet
            config.delete_pass("conv2d_bias_bn_onednn_fuse_pass")
    if paddle2:  # it scales a weight that several products share once for each: GFL's boxes
        config.delete_pass("matmul_v2_scale_fuse_pass")
    predictor = inference.create_predictor(config)
    names = predictor.get_input_names()
    outputs = predictor.get_output_names()
    _check_names(folder, "inputs", manifest.inputs, names)
    if len(outputs) != len(manifest.outputs):
        raise ManifestError(f"{folder}: cyclemlp.yml states {len(manifest.outputs)} outputs, the model {len(outputs)}")

    def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for name in names:
            predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(feeds[name], np.float32))
        predictor.run()
        return [predictor.get_output_handle(name).copy_to_cpu() for name in outputs]

    return run
