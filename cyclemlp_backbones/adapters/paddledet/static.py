"""Parts of PaddleDetection's R-CNNs, written so that they also run as a static graph with an open batch size.

They replace methods of PaddleDetection's classes (see `repairs`), which stay there as `original_NAME` for exports for
ONNX and for edge boards: Paddle's translation to a static graph takes methods, and no function out of a variable. It
reads the source in this file. Predictions are handled without a loop over images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.vision.ops import distribute_fpn_proposals
from ppdet.modeling.bbox_utils import delta2bbox
from ppdet.modeling.post_process import paste_mask


def predict_masks(
    self: Any, body_feats: Any, rois: Any, rois_num: Any, scale_factor: Any, feat_func: Any = None
) -> Any:
    """`MaskHead.forward_test`: masks [R, 28, 28], also of the box that stands in for none."""
    if self.export_onnx:
        return self.original_forward_test(body_feats, rois, rois_num, scale_factor, feat_func)
    rois, rois_num, _ = fill_empty(rois, rois_num)
    features = self.roi_extractor(body_feats, [rois[:, 2:]], rois_num)
    logits = self.mask_fcn_logits(self.head(feat_func(features) if self.share_bbox_feat else features))
    chosen = paddle.arange(0, paddle.shape(rois)[0], dtype="int64") * self.num_classes + rois[:, 0].astype("int64")
    return F.sigmoid(paddle.gather(logits.flatten(0, 1), chosen))


def gen_proposal(
    self: Any, scores: list[Tensor], bbox_deltas: list[Tensor], anchors: list[Tensor], inputs: Mapping[str, Tensor]
) -> tuple[list[Tensor], Tensor]:
    """`RPNHead._gen_proposal`: per image, the best proposals of all levels.

    Returns boxes [R, 4] of all images in a row, as a list of one, and how many each image has, int32 [N]. In training
    they are a list by image.
    """
    if self.training or self.export_onnx:
        return self.original_gen_proposal(scores, bbox_deltas, anchors, inputs)
    boxes, box_scores, images = [], [], []
    for score, delta, anchor in zip(scores, bbox_deltas, anchors):
        rois, roi_scores, counts, most = self.test_proposal(
            scores=score, bbox_deltas=delta, anchors=anchor, im_shape=inputs["im_shape"]
        )
        boxes.append(rois)
        box_scores.append(roi_scores.flatten())
        # Paddle 3 takes these whole numbers for floats, which its other operators then fail to read.
        counts = sum(distribute_fpn_proposals(rois, 4, 5, 4, 224, rois_num=counts)[2])
        images.append(image_of(counts))
    images = paddle.concat(images).unsqueeze(0) - paddle.arange(0, paddle.shape(counts)[0], dtype="int64").unsqueeze(1)
    # A row an image; what is another image's comes last and is left out.
    table = paddle.concat(box_scores).unsqueeze(0) - (images != 0).astype("float32") * 1e30
    most = paddle.minimum(paddle.shape(table)[1:2].astype("int64"), paddle.full([1], most, "int64"))
    best, index = paddle.topk(table, most, axis=1)
    chosen = best > -1e29
    counts = chosen.astype("int32").sum(axis=1).astype("int32")
    return [paddle.gather(paddle.concat(boxes), paddle.masked_select(index, chosen))], counts


def image_of(counts: Tensor) -> Tensor:
    """The image of each of the boxes that stand in a row, int64 [R]; `counts` [N] says how many each image has."""
    ends = paddle.cumsum(counts.astype("int64")).unsqueeze(0)
    positions = paddle.arange(0, counts.astype("int64").sum(), dtype="int64").unsqueeze(1)
    return (positions >= ends).astype("int64").sum(axis=1)


def decode_boxes(
    self: Any, bbox_head_out: tuple[Tensor, Tensor], rois: tuple[list[Tensor], Tensor], im_shape: Tensor, _: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """`RCNNBox.__call__`: boxes [R, classes, 4] within their images, with the number of each image's, and scores."""
    boxes, counts = rois
    if self.export_onnx:
        return self.original_call(bbox_head_out, rois, im_shape, _)
    boxes = paddle.concat(boxes) if len(boxes) > 1 else boxes[0]
    boxes = clip_boxes(delta2bbox(bbox_head_out[0], boxes, self.prior_box_var), im_shape, counts)
    return (paddle.expand(boxes, [-1, self.num_classes, -1]), counts), bbox_head_out[1][:, :-1]


def clip_boxes(boxes: Tensor, im_shape: Tensor, counts: Tensor) -> Tensor:
    """Boxes [R, C, 4] within their images, whose heights and widths are `im_shape` [N, 2]."""
    limits = paddle.concat([im_shape[:, 1:2], im_shape[:, 0:1]] * 2, axis=1)
    return paddle.clip(paddle.minimum(boxes, paddle.gather(limits, image_of(counts)).unsqueeze(1)), min=0.0)


def cascade(self: Any, body_feats: Any = None, rois: Any = None, rois_num: Any = None, inputs: Any = None) -> Any:
    """`CascadeHead.forward`, which keeps for `rois_from_boxes` how many boxes each image has."""
    vars(self)["proposal_counts"] = rois_num  # a layer's own way would keep an earlier run's tensor in the program
    return self.original_forward(body_feats, rois, rois_num, inputs)


def rois_from_boxes(self: Any, boxes: Sequence[Tensor], im_shape: Tensor) -> tuple[list[Tensor], Tensor]:
    """`CascadeHead._get_rois_from_boxes`: a stage's boxes within their images, as the next stage's proposals."""
    if self.training:
        return self.original_get_rois_from_boxes(boxes, im_shape)
    return [clip_boxes(boxes[0].unsqueeze(1), im_shape, self.proposal_counts).squeeze(1)], self.proposal_counts


def fill_empty(bboxes: Tensor, bbox_num: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gives each image without a box one of score 0, as several operators want at least one.

    `bboxes` [R, 6] (label, score, x1, y1, x2, y2) of all images in a row, `bbox_num` [N] how many each has. Returns the
    boxes [R', 6], their numbers [N], and the image of each box, int64 [R'].
    """
    counts = bbox_num.astype("int64")
    filled = paddle.maximum(counts, paddle.ones_like(counts))
    image_of_box = image_of(filled)
    position = paddle.arange(0, paddle.shape(image_of_box)[0], dtype="int64")
    position = position - paddle.gather(paddle.cumsum(filled) - filled, image_of_box)
    source = paddle.gather(paddle.cumsum(counts) - counts, image_of_box) + position
    stand_in = paddle.to_tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 1.0]], dtype="float32").astype(bboxes.dtype)
    index_of_stand_in = paddle.zeros_like(source) + paddle.shape(bboxes)[0].astype("int64")
    source = paddle.where(paddle.gather(counts, image_of_box) == 0, index_of_stand_in, source)
    return paddle.gather(paddle.concat([bboxes, stand_in]), source), filled.astype(bbox_num.dtype), image_of_box


def get_pred(
    self: Any, bboxes: Tensor, bbox_num: Tensor, im_shape: Tensor, scale_factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`BBoxPostProcess.get_pred`: boxes in the original images' pixels, clipped to them.

    `bboxes` and `bbox_num` as for `fill_empty`, `im_shape` [N, 2] (height, width) of the resized images, `scale_factor`
    [N, 2] (y, x). Returns the filled boxes before rescaling and after it, both [R', 6], and their numbers [N]. The
    label of a box that clipping leaves empty is -1.
    """
    if self.export_eb or self.export_onnx:
        return self.original_get_pred(bboxes, bbox_num, im_shape, scale_factor)
    bboxes, bbox_num, image_of_box = fill_empty(bboxes, bbox_num)
    original = paddle.floor(im_shape / scale_factor + 0.5)
    limits = paddle.gather(original, image_of_box)
    self.origin_shape_list = limits  # what get_origin_shape gives: height and width for every box
    scales = paddle.gather(scale_factor, image_of_box)
    low = paddle.zeros_like(limits[:, 0:1])
    corners = []
    for column, axis in ((2, 1), (3, 0), (4, 1), (5, 0)):  # x1, y1, x2, y2; heights and y scales come first
        pixels = bboxes[:, column : column + 1] / scales[:, axis : axis + 1]
        corners.append(paddle.maximum(paddle.minimum(pixels, limits[:, axis : axis + 1]), low))
    visible = paddle.logical_and(corners[2] > corners[0], corners[3] > corners[1])
    label = bboxes[:, 0:1]
    label = paddle.where(visible, label, paddle.ones_like(label) * -1)
    return bboxes, paddle.concat([label, bboxes[:, 1:2], *corners], axis=1), bbox_num


def paste_masks(self: Any, mask_out: Tensor, bboxes: Tensor, bbox_num: Tensor, origin_shape: Tensor) -> Tensor:
    """`MaskPostProcess.__call__`: the masks of the boxes in the original images' pixels, int32 [R, H, W] of 0 and 1.

    `mask_out` [R, 28, 28] are probabilities for the boxes `bboxes` [R, 6]; those of score 0, which stand in for images
    without a box, get empty masks. `origin_shape` [R, 2] is the height and width of each box's image; H and W are the
    largest, and what lies outside a smaller image is -1.
    """
    if self.export_onnx or self.assign_on_cpu:
        return self.original_paste_masks(mask_out, bboxes, bbox_num, origin_shape)
    origin_shape = paddle.cast(origin_shape, "int32")
    height, width = paddle.max(origin_shape[:, 0]), paddle.max(origin_shape[:, 1])
    pasted = paste_mask(mask_out.unsqueeze(1), bboxes[:, 2:6], height, width, False)
    detected = (bboxes[:, 1] > 0).reshape([-1, 1, 1])
    covered = paddle.logical_and(pasted >= self.binary_thresh, detected).astype("int32")
    rows = paddle.arange(0, height, dtype="int32").reshape([1, -1, 1])
    columns = paddle.arange(0, width, dtype="int32").reshape([1, 1, -1])
    inside = paddle.logical_and(
        rows < origin_shape[:, 0].reshape([-1, 1, 1]), columns < origin_shape[:, 1].reshape([-1, 1, 1])
    )
    return paddle.where(inside, covered, -paddle.ones_like(covered))
