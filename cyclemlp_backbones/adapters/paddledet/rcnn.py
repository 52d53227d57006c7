"""PaddleDetection's R-CNNs for ONNX: any batch in one graph, with ONNX's own NonMaxSuppression and RoiAlign.

paddle2onnx converts neither generate_proposals nor distribute_fpn_proposals, and multiclass_nms3 and roi_align for one
image alone. So proposals, the choice of levels and the choice of the best are written here for tables of fixed size,
and what ONNX does better is left open: `deploy/joins.py` puts it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import paddle
from paddle import Tensor, nn
from paddle.vision.ops import roi_align

from cyclemlp_backbones.adapters.paddledet.static import image_of
from cyclemlp_backbones.adapters.paddledet.suppression import OpenDetector, decode, top_k
from cyclemlp_backbones.deploy.joins import ALIGN

_NONE, _SOME = -1e30, -1e29
"""A score that stands for no box, and the least of one that is there."""


class OpenRCNN(OpenDetector):
    """An R-CNN, whose proposals and detections are suppressed."""

    def __init__(self, detector: nn.Layer):
        super().__init__(detector)
        self._there: Any = None
        model: Any = detector.model
        self._proposals, self._nms = model.rpn_head.test_proposal, model.bbox_post_process.nms
        model.rpn_head._gen_proposal = self._either(model.rpn_head._gen_proposal, self._propose)
        model.bbox_post_process.nms = self._either(self._nms, self._detections)
        for head in (model.bbox_head, getattr(model, "mask_head", None)):
            if head is not None:
                extractor = head.roi_extractor
                extractor.forward = self._either(extractor.forward, self._align(extractor))

    def _propose(
        self,
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        inputs: Mapping[str, Tensor],
    ) -> tuple[list[Tensor], Tensor]:
        """`RPNHead._gen_proposal`: K boxes of each image, of which `self._there` [N, K] says which are there."""
        settings, im_shape = self._proposals, inputs["im_shape"]
        limits = paddle.concat([im_shape[:, 1:2], im_shape[:, 0:1]] * 2, axis=1).unsqueeze(1)
        level_boxes, level_scores = [], []
        for score, delta, anchor in zip(scores, deltas, anchors):
            score, best = top_k(score.transpose([0, 2, 3, 1]).reshape([0, -1]), settings.pre_nms_top_n)
            delta = delta.transpose([0, 2, 3, 1]).reshape([0, -1, 4])
            # ONNX gathers from as many images as it chooses for.
            anchor = anchor.reshape([1, -1, 4]) + paddle.zeros_like(delta)
            boxes = decode(*(paddle.take_along_axis(x, best.unsqueeze(2), 1, broadcast=True) for x in (delta, anchor)))
            boxes = paddle.clip(paddle.minimum(boxes, limits), min=0.0)
            sides = boxes[:, :, 2:4] - boxes[:, :, 0:2]
            large = sides.min(axis=2) >= max(settings.min_size, 1.0)
            level_boxes.append(boxes)
            level_scores.append(paddle.where(large, score, paddle.full_like(score, _NONE)))
        alone = [
            paddle.concat([score if score is own else paddle.full_like(score, _NONE) for score in level_scores], axis=1)
            for own in level_scores
        ]
        boxes, together = paddle.concat(level_boxes, axis=1), paddle.concat(level_scores, axis=1)
        kept = self._suppressed(
            boxes, paddle.stack(alone, axis=1), settings.nms_thresh, _SOME, settings.post_nms_top_n
        ).sum(axis=1)
        best, index = top_k(
            paddle.where(kept > 0, together, paddle.full_like(together, _NONE)), settings.post_nms_top_n
        )
        self._there = (best > _SOME).astype("float32")
        rois = paddle.take_along_axis(boxes, index.unsqueeze(2), 1, broadcast=True)
        return [rois.reshape([-1, 4])], paddle.ones_like(self._there).sum(axis=1).astype("int32")

    def _align(self, extractor: Any) -> Callable:
        def forward(maps: Sequence[Tensor], rois: Sequence[Tensor], counts: Tensor) -> Tensor:
            """`RoIAlign.forward`: each box from the map of its size's level."""
            boxes, images = rois[0], image_of(counts)
            sides = boxes[:, 2:4] - boxes[:, 0:2]
            size = paddle.sqrt(sides[:, 0] * sides[:, 1]) / extractor.canonical_size + 1e-6
            first, last = extractor.start_level, extractor.end_level
            level = paddle.zeros_like(size)
            for higher in range(first + 1, last + 1):
                level = level + (size >= 2.0 ** (higher + 2 - extractor.canconical_level)).astype("float32")
            places, parts = [], []
            for number in range(first, last + 1):
                place = paddle.nonzero(level == number - first).flatten()
                places.append(place)
                self._asked.append(paddle.gather(images, place))
                self.joins.append(ALIGN)
                parts.append(
                    roi_align(
                        maps[number],
                        paddle.gather(boxes, place),
                        counts,
                        extractor.resolution,
                        extractor.spatial_scale[number],
                        extractor.sampling_ratio,
                        extractor.aligned,
                    )
                )
            return paddle.gather(paddle.concat(parts), paddle.argsort(paddle.concat(places)))

        return forward

    def _detections(
        self, boxes_and_counts: tuple[Tensor, Tensor], scores: Tensor, _: int
    ) -> tuple[Tensor, Tensor, None]:
        """`MultiClassNMS` of boxes [N * K, classes, 4] and scores [N * K, classes]."""
        (images, rois), classes = paddle.shape(self._there), scores.shape[1]
        boxes = boxes_and_counts[0].reshape([images, rois, classes, 4]).transpose([0, 2, 1, 3])
        scores = scores.reshape([images, rois, classes]) * self._there.unsqueeze(2)
        return self._best(boxes, scores.transpose([0, 2, 1]), self._nms)
