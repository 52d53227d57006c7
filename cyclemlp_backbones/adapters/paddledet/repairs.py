"""Repairs of PaddleDetection releases, each applied only where the installed one fails.

PaddleDetection 2.6.0 is the newest release on PyPI and predates Paddle 2.6 and 3. Each repair probes for the behaviour
or the code of PaddleDetection that it mends, so that a release without the defect is left alone. For debugging, the
environment variable CYCLEMLP_PADDLEDET_REPAIRS_OFF holds names of repairs to leave out, separated by commas.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import io
import itertools
import json
import logging
import os
import re
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import ppdet.modeling.architectures.faster_rcnn
import ppdet.modeling.heads.cascade_head
import ppdet.modeling.post_process
import ppdet.modeling.proposal_generator.rpn_head  # noqa: F401  these modules are looked up by name
import pycocotools.mask as mask_util
from paddle import Tensor, nn
from PIL import Image, ImageDraw, ImageFont
from ppdet.data.source.coco import COCODataSet
from ppdet.engine import trainer
from ppdet.engine.trainer import Trainer
from ppdet.modeling import layers, ops
from ppdet.modeling.assigners import atss_assigner
from ppdet.modeling.heads.cascade_head import CascadeHead
from ppdet.modeling.heads.mask_head import MaskHead
from ppdet.modeling.losses import queryinst_loss
from ppdet.modeling.post_process import BBoxPostProcess, MaskPostProcess
from ppdet.modeling.proposal_generator import target
from ppdet.modeling.proposal_generator.rpn_head import RPNHead
from ppdet.optimizer import optimizer as optimizer_builders
from ppdet.optimizer.adamw import layerwise_lr_decay
from ppdet.utils import visualizer

from cyclemlp_backbones.adapters import guards
from cyclemlp_backbones.adapters.paddledet import LAYER_DECAY, static
from cyclemlp_backbones.adapters.repairs import Repairs, fails, scalars_do_not_concatenate
from cyclemlp_backbones.coco import check_annotations
from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.deploy.drawing import Object, with_objects
from cyclemlp_backbones.layer_decay import apply_layer_decay
from cyclemlp_backbones.pictures import class_palette

_NOT_MENDED = "not mended upstream (develop of October 2024)"
REPAIRS = Repairs("ppdet", "CYCLEMLP_PADDLEDET_REPAIRS_OFF")

_CONCATENATING = (
    "ppdet.modeling.proposal_generator.rpn_head",
    "ppdet.modeling.proposal_generator.target",
    "ppdet.modeling.heads.cascade_head",
    "ppdet.modeling.architectures.faster_rcnn",
    "ppdet.modeling.post_process",
)
# A list of items without an axis, as it is gathered for `concat`.
_SCALARS = re.compile(r"(?:append\(|concat\(\[)paddle\.shape\(\w+\)\[0\]|bbox_num_i = bbox_num\[i\]\n")


def _modules_that_concatenate_scalars() -> list[types.ModuleType]:
    return [module for name in _CONCATENATING if _SCALARS.search(inspect.getsource(module := sys.modules[name]))]


def _scalars_are_concatenated() -> bool:
    return scalars_do_not_concatenate() and bool(_modules_that_concatenate_scalars())


@paddle.jit.not_to_static
def _concat(x: Sequence[Tensor] | Tensor, axis: int = 0, name: str | None = None) -> Tensor:
    """`paddle.concat` that takes scalars of a list as tensors of shape [1].

    In a static graph `x` may be an array of tensors, which has no length and is handed on.
    """
    if isinstance(x, (list, tuple)):
        x = [item.reshape([1]) if len(item.shape) == 0 else item for item in x]
    return paddle.concat(x, axis=axis, name=name)


class _Paddle(types.ModuleType):
    """What the name `paddle` means in a module of PaddleDetection: Paddle with some functions replaced."""

    def __init__(self, **replaced: Any):
        super().__init__("paddle")
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(paddle, name)


@REPAIRS.row(
    "concat_scalars", until="PaddleDetection 2.7.1, which slices instead of indexing", needed=_scalars_are_concatenated
)
def _repair_concat() -> None:
    """R-CNNs concatenate tensors that have no axis, a ValueError since Paddle 2.6."""
    for module in _modules_that_concatenate_scalars():
        module.paddle = _Paddle(concat=_concat)  # type: ignore[attr-defined]


def _polygons_only() -> bool:
    code = {"size": [2, 2], "counts": [0, 4]}
    return fails(lambda: target.rasterize_polygons_within_box(code, np.array([0.0, 0.0, 2.0, 2.0]), 2), ValueError)


@REPAIRS.row("run_length_masks", until=_NOT_MENDED, needed=_polygons_only)
def _repair_mask_targets() -> None:
    """Mask R-CNN trains with polygons only; a run-length code, as COCO's format allows, is a ValueError."""
    rasterize_polygons = target.rasterize_polygons_within_box

    def rasterize(segmentation: Any, box: np.ndarray, resolution: int) -> Tensor:
        """The part of a mask in `box` (x1, y1, x2, y2), read at the centres of `resolution` x `resolution` cells."""
        if not isinstance(segmentation, Mapping):
            return rasterize_polygons(segmentation, box, resolution)
        if isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        mask = mask_util.decode(segmentation)
        centres = (np.arange(resolution) + 0.5) / resolution
        columns, rows = (box[axis] + centres * (box[axis + 2] - box[axis]) for axis in (0, 1))
        rows = np.clip(rows.astype(np.int64), 0, mask.shape[0] - 1)
        columns = np.clip(columns.astype(np.int64), 0, mask.shape[1] - 1)
        return paddle.to_tensor(mask[np.ix_(rows, columns)], dtype="int32")

    target.rasterize_polygons_within_box = rasterize


def _labels_ask_for_textsize() -> bool:
    return "draw.textsize(" in inspect.getsource(visualizer) and not hasattr(ImageDraw.ImageDraw, "textsize")


def _text_size(self: ImageDraw.ImageDraw, text: str) -> tuple[int, int]:
    """Width and height of `text` in pixels, from its origin."""
    _, _, right, bottom = self.textbbox((0, 0), text)
    return round(right), round(bottom)


@REPAIRS.row(
    "text_size", until="PaddleDetection 2.7.1, whose imagedraw_textsize_c knows both", needed=_labels_ask_for_textsize
)
def _repair_text_size() -> None:
    """Drawing a label asks for ImageDraw.textsize, which Pillow 10 removed, an AttributeError."""
    ImageDraw.ImageDraw.textsize = _text_size


@REPAIRS.row("font", until=_NOT_MENDED, needed=lambda: "get_path(font_url" in inspect.getsource(visualizer.draw_bbox))
def _repair_font() -> None:
    """Drawing labels downloads simfang.ttf, also where there is no network; an installed font does it.

    That font if an earlier run has fetched it, else matplotlib's DejaVu Sans, else Pillow's.
    """
    get_path = visualizer.get_path

    @functools.wraps(get_path)
    def installed(url: str, root: str, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        if Path(root, Path(url).name).expanduser().is_file():
            return get_path(url, root, *args, **kwargs)
        if importlib.util.find_spec("matplotlib"):
            from matplotlib import font_manager

            return font_manager.findfont("DejaVu Sans"), True
        return io.BytesIO(ImageFont.load_default(18).font_bytes), True

    visualizer.get_path = installed


@REPAIRS.row(
    "pictures",
    until=_NOT_MENDED,
    needed=lambda: "np.random.randint(len(color_list))" in inspect.getsource(visualizer.draw_bbox),
)
def _repair_pictures() -> None:
    """`infer` draws a class in another colour in each picture, and names that reach beyond it or cover each other.

    Boxes and masks are drawn as `cyclemlp predict` does; what else there is (keypoints, rotated boxes) stays as it was.
    """
    original = visualizer.visualize_results

    @functools.wraps(original)
    def visualize_results(
        image: Image.Image,
        bbox_res: Sequence[Mapping[str, Any]] | None,
        mask_res: Sequence[Mapping[str, Any]] | None,
        segm_res: Any,
        keypoint_res: Any,
        pose3d_res: Any,
        im_id: int,
        catid2name: Mapping[int, str],
        threshold: float = 0.5,
    ) -> Image.Image:
        found = [result for result in bbox_res or () if result["image_id"] == im_id]
        others = segm_res is not None or keypoint_res is not None or pose3d_res is not None
        if bbox_res is None or others or any(len(result["bbox"]) != 4 for result in found):
            return original(image, bbox_res, mask_res, segm_res, keypoint_res, pose3d_res, im_id, catid2name, threshold)
        codes = [result["segmentation"] for result in mask_res or () if result["image_id"] == im_id]
        number = {category: label for label, category in enumerate(catid2name)}
        objects = []
        for result, code in itertools.zip_longest(found, codes):
            x, y, width, height = result["bbox"]
            mask = None if code is None else functools.partial(mask_util.decode, code)
            box = (x, y, x + width, y + height)
            objects.append(Object(number[result["category_id"]], result["score"], box, mask))
        names = [str(name) for name in catid2name.values()]
        return with_objects(image, objects, names, class_palette(len(names) + 1)[1:], threshold)

    for module in (visualizer, trainer):
        module.visualize_results = visualize_results


def _static_layers_have_no_program() -> bool:
    if "full_graph=True" in inspect.getsource(Trainer):
        return False
    layer = paddle.jit.to_static(paddle.nn.Identity(), input_spec=[paddle.static.InputSpec([1], name="x")])
    return fails(lambda: layer.forward.main_program, RuntimeError)


@REPAIRS.row(
    "static_programs",
    until="PaddleDetection 2.7.1, which asks for full_graph=True",
    needed=_static_layers_have_no_program,
)
def _repair_static_programs() -> None:
    """Export asks for the program of a static layer, which Paddle 3 has only for whole graphs, a RuntimeError."""
    export = Trainer.export

    @functools.wraps(export)
    def with_whole_graphs(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        before = os.environ.get("ENABLE_FALL_BACK")
        os.environ["ENABLE_FALL_BACK"] = "False"  # no falling back to Python: one graph with a program
        try:
            return export(self, *args, **kwargs)
        finally:
            del os.environ["ENABLE_FALL_BACK"]
            if before is not None:
                os.environ["ENABLE_FALL_BACK"] = before

    Trainer.export = with_whole_graphs


@REPAIRS.row(
    "export_program",
    until="not mended upstream (release 2.9)",
    needed=lambda: _exports_as_json() and "export_with_pir" in inspect.getsource(Trainer),
)
def _repair_export_program() -> None:
    """Export of 2.8.1 and 2.9 writes the program of Paddle 2, whose translation Paddle 3.2 and later have given up.

    Unless the configuration says `export_with_pir: true`, which the repair sets where it says nothing.
    """
    export = Trainer.export

    @functools.wraps(export)
    def as_json(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        self.cfg.setdefault("export_with_pir", True)
        return export(self, *args, **kwargs)

    Trainer.export = as_json


def _exports_as_json() -> bool:
    return hasattr(paddle.framework, "use_pir_api") and paddle.framework.use_pir_api()


def _nms_knows_no_pir() -> bool:
    return _exports_as_json() and "in_dynamic_or_pir_mode" not in inspect.getsource(ops.multiclass_nms)


_NMS_ARGUMENTS = (  # in the operator's order
    "bboxes", "scores", "rois_num", "score_threshold", "nms_top_k", "keep_top_k", "nms_threshold", "normalized",
    "nms_eta", "background_label",
)  # fmt: skip


@REPAIRS.row(
    "static_nms",
    until="PaddleDetection's develop of October 2024, which calls the operator of both",
    needed=_nms_knows_no_pir,
)
def _repair_nms() -> None:
    """Multiclass_nms builds an operator of Paddle 2's static graphs, a TypeError in Paddle 3's."""
    original = ops.multiclass_nms
    signature = inspect.signature(original)

    @paddle.jit.not_to_static
    @functools.wraps(original)
    def multiclass_nms(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        settings = given.arguments
        output, index, counts = paddle._C_ops.multiclass_nms3(*(settings[name] for name in _NMS_ARGUMENTS))
        return output, counts if settings["return_rois_num"] else None, index if settings["return_index"] else None

    ops.multiclass_nms = multiclass_nms


@REPAIRS.row(
    "static_proposals",
    until="PaddleDetection 2.7.1, which takes the batch size from im_shape.shape",
    needed=lambda: "paddle.slice(paddle.shape(im_shape)" in inspect.getsource(RPNHead._gen_proposal),
)
def _repair_proposals() -> None:
    """RPNHead._gen_proposal does not translate to a static graph, a ValueError on export.

    A program of its loop over images would join their proposals, which differ in number.
    """
    RPNHead.original_gen_proposal = RPNHead._gen_proposal
    RPNHead._gen_proposal = static.gen_proposal
    layers.RCNNBox.original_call = layers.RCNNBox.__call__
    layers.RCNNBox.__call__ = static.decode_boxes
    CascadeHead.original_forward = CascadeHead.forward
    CascadeHead.original_get_rois_from_boxes = CascadeHead._get_rois_from_boxes
    CascadeHead.forward = static.cascade
    CascadeHead._get_rois_from_boxes = static.rois_from_boxes


@REPAIRS.row(
    "static_predictions",
    until=_NOT_MENDED,
    needed=lambda: "for i in range(bbox_num.shape[0])" in inspect.getsource(BBoxPostProcess.get_pred),
)
def _repair_predictions() -> None:
    """Predictions of boxes and masks do not translate to a static graph, and mix up the images of a batch."""
    BBoxPostProcess.original_get_pred = BBoxPostProcess.get_pred
    MaskPostProcess.original_paste_masks = MaskPostProcess.__call__
    MaskHead.original_forward_test = MaskHead.forward_test
    BBoxPostProcess.get_pred = static.get_pred
    MaskPostProcess.__call__ = static.paste_masks
    MaskHead.forward_test = static.predict_masks


@paddle.jit.not_to_static
def _slice(input: Any, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> Any:
    """`paddle.slice` that takes a shape, a list of numbers or scalars, and gives the number that range() wants."""
    return input[starts[0]] if isinstance(input, (list, tuple)) else paddle.slice(input, axes, starts, ends)


@REPAIRS.row(
    "static_batch_size",
    until="PaddleDetection's develop of October 2024, which slices paddle.shape(im_shape)",
    needed=lambda: "paddle.slice(im_shape.shape" in inspect.getsource(layers.RCNNBox.__call__),
)
def _repair_batch_size() -> None:
    """RCNNBox slices im_shape.shape, a list, in a static graph, an AttributeError on export of 2.7.1's R-CNNs."""
    layers.paddle = _Paddle(slice=_slice)


def _integers_do_not_compare() -> bool:
    some, others = (paddle.zeros([1], dtype=dtype) for dtype in ("int32", "int64"))
    return fails(lambda: some == others, TypeError)


@REPAIRS.row(
    "queryinst_labels",
    until=_NOT_MENDED,
    needed=lambda: (
        _integers_do_not_compare()
        and "tgt_labels == paddle.arange(0, self.num_classes)" in inspect.getsource(queryinst_loss)
    ),
)
def _repair_queryinst_labels() -> None:
    """QueryInst compares labels, int32, with a range of int64, a TypeError on Paddle 3."""
    queryinst_loss.paddle = _Paddle(arange=functools.partial(paddle.arange, dtype="int32"))


@REPAIRS.row(
    "few_anchors",
    until=_NOT_MENDED,
    needed=lambda: "distances, self.topk, axis" in inspect.getsource(atss_assigner),
)
def _repair_few_anchors() -> None:
    """ATSSAssigner (TOOD, PP-YOLOE) wants nine anchors of each level, a ValueError for an image that has fewer."""

    def topk(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
        return paddle.topk(x, min(k, x.shape[axis]), axis=axis, largest=largest)

    atss_assigner.paddle = _Paddle(topk=topk)


@REPAIRS.row(
    "ttf_counts",
    until=_NOT_MENDED,
    needed=lambda: "return results, results.shape[0:1]" in inspect.getsource(layers.TTFBox._decode),
)
def _repair_ttf_counts() -> None:
    """TTFBox (TTFNet) concatenates shapes, which are no tensors, a ValueError in evaluation."""
    decode = layers.TTFBox._decode

    def decode_with_count(self: layers.TTFBox, *args: Tensor) -> tuple[Tensor, Tensor]:
        results, _ = decode(self, *args)
        return results, paddle.shape(results)[0:1]

    layers.TTFBox._decode = decode_with_count


def _dataset_takes_any_annotations() -> bool:
    """Whether COCODataSet reads a box that lies outside its image."""
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 4, 4], "area": 16, "iscrowd": 0}],
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        Path(folder, "a.json").write_text(json.dumps(document))
        Path(folder, "a.png").touch()
        dataset = COCODataSet(dataset_dir=folder, image_dir=".", anno_path="a.json")
        logging.disable(logging.INFO)  # how many boxes it found
        try:
            return not fails(dataset.parse_dataset, ValueError)
        finally:
            logging.disable(logging.NOTSET)


@REPAIRS.row("annotations", until=_NOT_MENDED, needed=_dataset_takes_any_annotations)
def _repair_annotations() -> None:
    """COCODataSet trains on boxes outside their image, and names no entry of a file that it cannot read."""
    parse = COCODataSet.parse_dataset

    @functools.wraps(parse)
    def check_and_parse(self: COCODataSet) -> None:
        paths = (os.path.join(self.dataset_dir, name) for name in (self.anno_path, self.image_dir))
        check_annotations(*paths, fields=self.data_fields)
        parse(self)

    COCODataSet.parse_dataset = check_and_parse


@REPAIRS.row("save_dir", until=_NOT_MENDED, needed=lambda: "os.access" not in inspect.getsource(Trainer.train))
def _check_save_dir_first() -> None:
    """A `save_dir` that takes no checkpoints is noticed at the first of them, when an epoch is lost."""
    train = Trainer.train

    @functools.wraps(train)
    def check_and_train(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        guards.check_save_dir(Path(self.cfg.save_dir, self.cfg.filename))
        return train(self, *args, **kwargs)

    Trainer.train = check_and_train


def _layer_decay_passes_cyclemlp_by() -> bool:
    parameter = types.SimpleNamespace(name="p", optimize_attr={"learning_rate": 1.0})
    factor = layerwise_lr_decay(0.5, {"p": "backbone.network.0.0.norm1.weight"}, 4, parameter)
    return (1.0 if factor is None else factor) * parameter.optimize_attr["learning_rate"] == 1.0


@REPAIRS.row("layer_decay", until=_NOT_MENDED, needed=_layer_decay_passes_cyclemlp_by)
def _repair_layer_decay() -> None:
    """AdamWDL's layerwise_lr_decay knows names of transformers only, and leaves CycleMLP's rates as they are.

    The repair makes it take `set_param_lr_func: cyclemlp_layer_decay` with its `layer_decay`.
    """
    build = optimizer_builders.build_adamwdl

    @functools.wraps(build)
    def build_with_layer_decay(
        model: nn.Layer,
        lr: Any,
        *,
        layer_decay: float = 0.65,
        set_param_lr_func: str | None = "layerwise_lr_decay",
        **arguments: Any,
    ) -> Any:
        if set_param_lr_func == LAYER_DECAY:
            optimizer = build(model, lr, layer_decay=1.0, set_param_lr_func=None, **arguments)
            apply_layer_decay(model, layer_decay)
            return optimizer
        if set_param_lr_func is not None and isinstance(getattr(model, "backbone", None), CycleNet):
            raise ValueError(
                f"set_param_lr_func is {set_param_lr_func!r}, which does not know CycleMLP's parameters; "
                f"it takes {LAYER_DECAY} or null"
            )
        return build(model, lr, layer_decay=layer_decay, set_param_lr_func=set_param_lr_func, **arguments)

    optimizer_builders.build_adamwdl = build_with_layer_decay
