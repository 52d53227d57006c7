"""Whether an exported folder computes what the network did: at export, and later on the machine that runs it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cyclemlp_backbones.deploy.manifest import Manifest, ManifestError, Sample
from cyclemlp_backbones.deploy.runtime import DeployedModel

_log = logging.getLogger(__name__)

Case = tuple[int, int, int]
"""Batch, height and width."""

TOLERANCE = 1e-4
"""Largest difference, as a share of the output's largest value or, where that is below 1, as it is."""
INT8_TOLERANCE = 0.1
"""The same for int8, whose results differ between processors too."""

_SIZES, _BATCHES = ((64, 64), (97, 65), (130, 203)), (1, 2)
_VALUES, _ROWS = 16, 8  # that are kept of an output; of a detector's boxes, the best ones


def cases(manifest: Manifest) -> Iterator[Case]:
    """What is tried."""
    pad, least = manifest.preprocessing.pad_to, manifest.preprocessing.least
    for batch, size in itertools.product(_BATCHES, _SIZES):
        height, width = (-(-max(side, least) // pad) * pad for side in size)
        yield batch, height, width


def feeds(batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Every input that a model may have; the image is waves of many lengths, the same everywhere."""
    steps = np.arange(batch * 3 * height * width, dtype=np.float64)
    image = (np.sin(steps / 7) + np.sin(steps * steps / 1e5)).astype(np.float32).reshape([batch, 3, height, width])
    shape = np.tile(np.array([[height, width]], np.float32), (batch, 1))
    return {"image": image, "im_shape": shape, "scale_factor": np.ones_like(shape)}


def compare(model: DeployedModel, expected: Mapping[Case, Sequence[np.ndarray]]) -> tuple[Sample, ...]:
    """Runs `model` beside what the network gave, by case; what `verify` needs later.

    ManifestError, which names size, output and place, where they differ by more than `TOLERANCE`. A warning is logged
    where a detector finds nothing, so that there is nothing to compare.
    """
    samples, found = [], model.manifest.task != "det"
    for case, outputs in expected.items():
        given, wanted = _compared(model.manifest, model.run(feeds(*case))), _compared(model.manifest, outputs)
        for name, array in wanted.items():
            _difference(model, case, name, array[:_ROWS] if name == "bbox" else array, given[name], TOLERANCE)
            found |= name == "bbox" and bool((array[:, 1] > 0).any())  # for nothing, there is a row of 0 or -1
        shapes = {name: tuple(map(int, array.shape)) for name, array in wanted.items()}
        values = {
            name: tuple(float(f"{value:.6g}") for value in _some(name, array).reshape(-1))
            for name, array in wanted.items()
        }
        samples.append(Sample(*case, shapes, values))
    if expected and not found:
        _log.warning(
            "the detector finds nothing in the made-up images on which it was compared with its export, nor does the "
            "export, so that no box was compared; compare both on a picture of yours"
        )
    return tuple(samples)


def verify(model: DeployedModel) -> Iterator[tuple[Case, dict[str, float]]]:
    """Runs `model` beside the samples of its manifest; by case, the largest difference of each output.

    ManifestError as `compare`, and for a folder without samples.
    """
    if not model.manifest.samples:
        raise ManifestError(f"{model.folder} has nothing to compare with; export the model again, without --no-verify")
    tolerance = TOLERANCE if model.manifest.quantization is None else INT8_TOLERANCE
    for sample in model.manifest.samples:
        case, found = (sample.batch, sample.height, sample.width), {}
        for name, given in _compared(model.manifest, model.run(feeds(*case))).items():
            wanted, shape = np.array(sample.values[name], np.float32), sample.shapes[name]
            if name == "bbox":
                wanted = wanted[: len(wanted) // 6 * 6].reshape([-1, 6])
            elif given.shape == shape:
                given = _some(name, given)
            else:
                wanted = np.zeros(shape, np.float32)
            found[name] = _difference(model, case, name, wanted, given, tolerance)
        yield case, found


def _compared(manifest: Manifest, outputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name; of a detector rows [class or mean score, best score, box] alone, the best first."""
    named = dict(zip(manifest.outputs, outputs))
    if manifest.task != "det":
        return named
    if (rows := named.get("bbox")) is None:  # candidates
        scores, boxes = (named[name].reshape([-1, named[name].shape[-1]]) for name in ("scores", "boxes"))
        rows = np.concatenate([scores.mean(1, keepdims=True), scores.max(1, keepdims=True), boxes], axis=1)
    return {"bbox": rows[np.argsort(-rows[:, 1], kind="stable")]}


def _some(name: str, array: np.ndarray) -> np.ndarray:
    """The values of an output that a manifest keeps."""
    if name == "bbox":
        return array[:_ROWS]
    return array.reshape(-1)[np.linspace(0, array.size - 1, min(_VALUES, array.size)).astype(np.int64)]


def _difference(
    model: DeployedModel, case: Case, name: str, wanted: np.ndarray, given: np.ndarray, most: float
) -> float:
    """The largest difference of one output, as a share of its largest value; ManifestError where it exceeds `most`."""
    where = f"{model.folder}: {name} of a batch of {case[0]}, {case[1]} x {case[2]}"
    advice = "export it again, in the other --format or with another version of its packages"
    if name == "bbox" and len(wanted) and len(given):  # their order hangs on the last digit of a score
        given = given[np.abs(wanted[:, None] - given[None]).max(2).argmin(1)]
    if wanted.shape != given.shape:
        raise ManifestError(f"{where} has the shape {[*given.shape]}, the network's {[*wanted.shape]}; {advice}")
    if not wanted.size:
        return 0.0
    apart = np.abs(wanted.astype(np.float64) - given) / max(1.0, float(np.abs(wanted).max()))
    apart = np.nan_to_num(apart, nan=np.inf)
    worst = int(apart.argmax())
    if apart.flat[worst] > most:
        place = [int(index) for index in np.unravel_index(worst, apart.shape)]
        values = f"{given.flat[worst]:.6g}, the network's {wanted.flat[worst]:.6g}"
        raise ManifestError(f"{where} differs from the network, at {place} it is {values}; {advice}")
    return float(apart.flat[worst])
