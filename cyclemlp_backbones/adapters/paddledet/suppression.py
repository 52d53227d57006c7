"""PaddleDetection's detectors for ONNX, with non-maximum suppression left open: `deploy/joins.py` puts in ONNX's own.

paddle2onnx converts multiclass_nms3 for one image alone. What comes before it and after it is written here for tables
of fixed size, a row an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from cyclemlp_backbones.deploy.joins import ALIGN, Join

_LARGEST = math.log(1000 / 16)
"""PaddleDetection's bound of a size's logarithm."""


class OpenDetector(nn.Layer):
    """A detector as a function of its inputs, like `detector`; given what suppression keeps, one that asks for it.

    Then the outputs are followed by what `joins` need, in their order: of a suppression boxes [B, R, 4] and scores
    [B, C, R], of a RoiAlign the image of each of its boxes. `kept` are 1 where a score was kept, float32 [B, C, R].
    """

    def __init__(self, detector: nn.Layer):
        super().__init__()
        self.detector = detector
        self.joins: list[Join] = []
        self._asked: list[Tensor] = []
        self._kept: Sequence[Tensor] = ()

    def forward(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor, kept: Any = ()) -> list[Tensor]:
        self.joins, self._asked, self._kept = [], [], kept
        outputs = self.detector(image, im_shape, scale_factor)
        self._kept = ()
        return [*outputs, *self._asked]

    def _either(self, original: Callable, open_form: Callable) -> Callable:
        def chosen(*arguments: Any, **named: Any) -> Any:
            return (open_form if self._kept else original)(*arguments, **named)

        return paddle.jit.not_to_static(chosen)

    def _suppressed(self, boxes: Tensor, scores: Tensor, threshold: float, least: float, most: int) -> Tensor:
        self._asked += [boxes, scores]
        self.joins.append(Join(threshold, least, most))
        return self._kept[sum(join is not ALIGN for join in self.joins) - 1]

    def _best(self, boxes: Tensor, scores: Tensor, nms: Any) -> tuple[Tensor, Tensor, None]:
        """`MultiClassNMS` of boxes [N, K, R, 4], K 1 or the number of classes C, and scores [N, C, R].

        Returns rows [label, score, x1, y1, x2, y2] of all images, each image's best first, and how many each has.
        """
        images, places = paddle.shape(scores)[0], paddle.shape(scores)[2]
        tables, classes = boxes.shape[1], scores.shape[1]
        if nms.nms_top_k >= 0:
            last = top_k(scores, nms.nms_top_k)[0].min(axis=2, keepdim=True)
            scores = paddle.where(scores >= last, scores, paddle.zeros_like(scores))
        most = nms.keep_top_k if nms.keep_top_k >= 0 else 2**31 - 1
        kept = self._suppressed(
            boxes.reshape([-1, places, 4]),
            scores.reshape([-1, classes // tables, places]),
            nms.nms_threshold,
            nms.score_threshold,
            most,
        )
        best, index = top_k((scores.reshape([images, -1]) * kept.reshape([images, -1])), most)
        chosen = (best > nms.score_threshold).astype("int32")
        place = paddle.nonzero(chosen.flatten()).flatten()
        label = paddle.floor_divide(index, places.astype("int64") + paddle.zeros_like(index))
        each = (places * tables).astype("int64")  # boxes of an image
        first = paddle.arange(0, images, dtype="int64").unsqueeze(1) * each
        source = first + index - paddle.floor_divide(index, each + paddle.zeros_like(index)) * each
        rows = paddle.gather(boxes.reshape([-1, 4]), paddle.gather(source.flatten(), place))
        columns = (paddle.gather(x.astype("float32").flatten(), place).unsqueeze(1) for x in (label, best))
        return paddle.concat([*columns, rows], axis=1), chosen.sum(axis=1).astype("int32"), None


class OneStage(OpenDetector):
    """A detector whose head ends in MultiClassNMS (RetinaNet, GFL, FCOS), with its suppression left open."""

    def __init__(self, detector: nn.Layer):
        super().__init__(detector)
        head, nms = head_of(detector.model), head_of(detector.model).nms
        if hasattr(head, "decode"):
            head.decode = self._either(head.decode, candidates_of(head))
        head.nms = self._either(nms, lambda boxes, scores: self._best(boxes.unsqueeze(1), scores, nms))


class Candidates(nn.Layer):
    """A one-stage detector without non-maximum suppression, and without a loop over the images of a batch.

    image [N, 3, H, W] -> boxes [N, R, 4] (x1, y1, x2, y2 in the image's pixels) and scores [N, R, classes]; RetinaNet's
    are of the `nms_pre` best candidates of each level.
    """

    def __init__(self, detector: nn.Layer):
        super().__init__()
        self.detector = detector
        head = head_of(detector.model)
        if hasattr(head, "decode"):
            head.decode = paddle.jit.not_to_static(candidates_of(head))
        head.nms = paddle.jit.not_to_static(lambda boxes, scores: (boxes, scores.transpose([0, 2, 1]), None))

    def forward(self, image: Tensor) -> list[Tensor]:
        ones = paddle.ones([1, 2])
        return self.detector(image, ones, ones)


def head_of(model: nn.Layer) -> Any:
    """The head of a one-stage detector; None where a model has none whose `nms` can be left open."""
    head = getattr(model, "head", getattr(model, "fcos_head", None))
    return head if type(getattr(head, "nms", None)).__name__ == "MultiClassNMS" else None


def candidates_of(head: Any) -> Callable:
    def decode_levels(
        anchors: Sequence[Tensor], logits: Sequence[Tensor], deltas: Sequence[Tensor], _: Tensor, scale_factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`RetinaHead.decode`: boxes [N, R, 4] and scores [N, classes, R] of maps [N, H, W, …], for all images."""
        boxes, scores = [], []
        for anchor, score, delta in zip(anchors, logits, deltas):
            score = F.sigmoid(score.reshape([0, -1, head.num_classes]))
            delta = delta.reshape([0, -1, 4])
            _, best = top_k(score.max(axis=2), head.nms_pre)
            best = best.unsqueeze(2)
            scores.append(paddle.take_along_axis(score, best, axis=1, broadcast=True))
            # ONNX gathers from as many images as it chooses for.
            anchor = anchor.unsqueeze(0) + paddle.zeros_like(delta)
            delta, anchor = (paddle.take_along_axis(x, best, axis=1, broadcast=True) for x in (delta, anchor))
            boxes.append(decode(delta / paddle.to_tensor(head.weights, "float32"), anchor))
        scale = paddle.concat([scale_factor[:, 1:2], scale_factor[:, 0:1]] * 2, axis=1).unsqueeze(1)
        return paddle.concat(boxes, axis=1) / scale, paddle.concat(scores, axis=1).transpose([0, 2, 1])

    return decode_levels


def top_k(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The best `most` of each row, or all where there are fewer, and where they stand."""
    count = paddle.minimum(paddle.shape(scores)[-1:].astype("int64"), paddle.full([1], most, "int64"))
    return paddle.topk(scores, count, axis=-1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes [N, R, 4] from `deltas` [N, R, 4] (of centre, log of size) and `anchors` [N, R, 4] (corners)."""
    sizes = anchors[:, :, 2:4] - anchors[:, :, 0:2]
    centres = anchors[:, :, 0:2] + 0.5 * sizes
    centres = deltas[:, :, 0:2] * sizes + centres
    sizes = paddle.exp(paddle.clip(deltas[:, :, 2:4], max=_LARGEST)) * sizes
    return paddle.concat([centres - 0.5 * sizes, centres + 0.5 * sizes], axis=2)
