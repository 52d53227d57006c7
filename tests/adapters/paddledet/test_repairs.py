"""Each repair: switched off alone, the defect's own error; switched on, the step works; not needed, not applied."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import types

import numpy as np
import paddle
import pytest

from cyclemlp_backbones.pictures import class_palette
from tests.adapters.tiny_det import SIZE, cyclemlp, in_process, write_config, write_data

pytestmark = pytest.mark.slow

PADDLE_2 = paddle.version.major == "2"

# What fails without the repair: the detector, the action, and the error.
DEFECTS = {
    "concat_scalars": ("faster_rcnn", "train", "The axis is expected to be in range of [0, 0)"),
    "run_length_masks": ("mask_rcnn", "train", "could not convert string to float: 'size'"),
    "text_size": ("mask_rcnn", "infer", "'ImageDraw' object has no attribute 'textsize'"),
    "static_programs": ("retinanet", "export", "Can't call main_program when full_graph=False"),
    "static_nms": (
        "retinanet",
        "export",
        "should be one of [str, bytes, Variable]. but received : Value",
    ),
    "static_proposals": ("faster_rcnn", "export", "but received axis:0 >= in_dims.size():0"),
    "static_predictions": ("faster_rcnn", "export", "Does not support rank inconsistency: rank1=0, rank2=1"),
}


def expected_status(name: str) -> str:
    """What the only recent release on PyPI, 2.6.0, needs on this Paddle."""
    newer = dict.fromkeys(
        ("font", "export_program", "static_batch_size", "ttf_counts"), False
    )  # defects of later releases
    of_paddle = {"static_nms": not PADDLE_2, "queryinst_labels": not PADDLE_2, "zlib_order": PADDLE_2}
    needed = {**of_paddle, **newer}.get(name, True)
    return "applied" if needed else "not needed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, and per detector the weights of a short training, which also is the test that it works with all repairs."""
    folder = tmp_path_factory.mktemp("repairs")
    write_data(folder)
    for detector in ("retinanet", "faster_rcnn", "mask_rcnn"):
        write_config(folder, detector, epoch=1, RetinaHead={"prior_prob": 0.1})
        status, output = run(folder, detector, "train")
        assert status == 0, output
    return folder


def run(folder, detector, action, **environment):
    flags = {"infer": ["--infer_dir", folder / "val", "--draw_threshold", "0.05"], "train": ["-o", "epoch=1"]}
    weights = [] if action == "train" else ["-o", f"weights={folder / 'out' / detector / 'model_final.pdparams'}"]
    config = folder / f"{detector}.yml"
    arguments = ["det", action, "-c", config, *flags.get(action, []), *weights]
    return cyclemlp(*arguments, cwd=folder, environment=environment)


def status_in_this_release():
    from cyclemlp_backbones.adapters.paddledet.repairs import REPAIRS

    return REPAIRS.apply(), all(repair.until for repair in REPAIRS.rows)


def test_status_says_what_this_release_needs():
    status, all_say_until = in_process(status_in_this_release)
    assert status == {name: expected_status(name) for name in status}
    assert {*DEFECTS, "zlib_order", "annotations", "layer_decay"} < set(status)
    assert all_say_until


# What releases that do not need a repair have in the place that its probe looks at.
MENDED = {
    "concat_scalars": "def forward(rois):\n    return paddle.concat([paddle.shape(r)[0:1] for r in rois])\n",
    "text_size": "def draw_bbox(draw, text):\n    return imagedraw_textsize_c(draw, text, font=None)\n",
    "static_programs": "class Trainer:\n    def get(self):\n        return to_static(self, full_graph=True)\n",
    "static_nms": "def multiclass_nms():\n    return in_dynamic_or_pir_mode()\n",
    "static_proposals": "class RPNHead:\n    def _gen_proposal(self, im_shape):\n        return im_shape.shape[0]\n",
    "static_predictions": "class BBoxPostProcess:\n    def get_pred(self, bbox_num):\n        return fill(bbox_num)\n",
}


def still_needed(name, folder):
    from cyclemlp_backbones.adapters.paddledet import repairs

    (folder / "newer.py").write_text(MENDED[name])
    sys.path.insert(0, str(folder))
    newer = importlib.import_module("newer")
    repairs._CONCATENATING = ("newer",)
    repairs.visualizer = repairs.ops = newer
    for part in ("Trainer", "RPNHead", "BBoxPostProcess"):
        setattr(repairs, part, getattr(newer, part, None))
    (repair,) = [repair for repair in repairs.REPAIRS.rows if repair.name == name]
    return repair.needed()


@pytest.mark.parametrize("name", MENDED)
def test_a_release_that_mended_it_is_left_alone(tmp_path, name):
    assert not in_process(still_needed, name, tmp_path)


LATER = """
class Trainer:
    def __init__(self, **cfg):
        self.cfg = cfg

    def export(self):
        return self.cfg.get("export_with_pir", False)

def get_path(url, root):
    raise OSError("no network")

def draw_bbox(font_url):
    return get_path(font_url, "~/.cache/paddle/")[0]
"""


def with_stand_ins_of_a_later_release(folder, with_matplotlib):
    """What that release exports without and with a user's setting; and the font that it writes labels in."""
    from PIL import ImageFont

    from cyclemlp_backbones.adapters.paddledet import repairs

    (folder / "later.py").write_text(LATER)
    sys.path.insert(0, str(folder))
    repairs.visualizer = later = importlib.import_module("later")
    repairs.Trainer = later.Trainer
    if not with_matplotlib:
        importlib.util.find_spec = lambda name: None
    for repair in repairs.REPAIRS.rows:
        if repair.name in ("font", "export_program") and repair.needed():
            repair.apply()
    font = ImageFont.truetype(later.draw_bbox("https://example.org/simfang.ttf"), 18, encoding="utf-8")
    return later.Trainer().export(), later.Trainer(export_with_pir=False).export(), font.getbbox("person 0.98")[2] > 50


@pytest.mark.parametrize("with_matplotlib", [True, False])
def test_a_later_release_exports_what_paddle_writes_and_draws_without_a_network(tmp_path, with_matplotlib):
    exports = (not PADDLE_2, False)
    assert in_process(with_stand_ins_of_a_later_release, tmp_path, with_matplotlib) == (*exports, True)


@pytest.mark.parametrize("name", DEFECTS)
def test_without_the_repair_the_step_meets_the_defect(folder, name):
    detector, action, error = DEFECTS[name]
    off = "text_size,pictures" if name == "text_size" else name  # our drawing of boxes asks for no textsize
    status, output = run(folder, detector, action, CYCLEMLP_PADDLEDET_REPAIRS_OFF=off)
    exports_nevertheless = PADDLE_2 and name == "static_predictions"  # there, a batch shows the defect: below
    if expected_status(name) == "not needed" or exports_nevertheless:
        assert status == 0, output
    else:
        assert status != 0
        assert error in output


@pytest.mark.parametrize(
    ("detector", "action"),
    sorted({(detector, action) for detector, action, _ in DEFECTS.values() if action != "train"}),
)
def test_with_all_repairs_the_step_works(folder, detector, action):
    status, output = run(folder, detector, action)
    assert status == 0, output


def labels_colours(off):
    """Of ten pictures with one object, of the second class, at the upper edge: the colour in which its box is drawn."""
    os.environ["CYCLEMLP_PADDLEDET_REPAIRS_OFF"] = off
    from PIL import Image
    from ppdet.utils import visualizer

    from cyclemlp_backbones.adapters.paddledet.repairs import REPAIRS

    REPAIRS.apply()
    found = [
        {"image_id": 7, "category_id": 12, "bbox": [150, 2, 200, 150], "score": 0.9},
        {"image_id": 8, "category_id": 5, "bbox": [0, 0, 300, 290], "score": 0.9},
    ]
    pictures = [
        visualizer.visualize_results(Image.new("RGB", (400, 300)), found, None, None, None, None, 7, {5: "a", 12: "b"})
        for _ in range(10)
    ]
    return [tuple(picture.getpixel((250, 152))) for picture in pictures]


def test_infer_draws_a_class_in_the_colour_that_every_command_draws_it_in():
    assert set(in_process(labels_colours, "")) == {class_palette(3)[2]}
    assert len(set(in_process(labels_colours, "pictures"))) > 1


def test_without_the_repair_training_takes_a_box_outside_its_image(tmp_path):
    write_data(tmp_path, train=2, val=1)
    write_config(tmp_path, "retinanet", epoch=1, RetinaHead={"prior_prob": 0.1})
    path = tmp_path / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["annotations"].append({**document["annotations"][0], "id": 999, "bbox": [SIZE, 3, 10, 10]})
    path.write_text(json.dumps(document))
    status, output = run(tmp_path, "retinanet", "train", CYCLEMLP_PADDLEDET_REPAIRS_OFF="annotations")
    assert status == 0, output


def build_optimizer(folder):
    from ppdet.core.workspace import create, load_config

    from cyclemlp_backbones.adapters.paddledet import LAYER_DECAY, register_paddledet

    os.environ["CYCLEMLP_PADDLEDET_REPAIRS_OFF"] = "layer_decay"
    register_paddledet(repair=True)
    optimizer = {"optimizer": {"set_param_lr_func": LAYER_DECAY}}
    settings = load_config(str(write_config(folder, "retinanet", OptimizerBuilder=optimizer)))
    create("OptimizerBuilder")(0.01, create(settings.architecture))


def test_without_the_repair_adamwdl_knows_no_decay_of_ours(tmp_path):
    with pytest.raises(NameError, match="cyclemlp_layer_decay"):
        in_process(build_optimizer, tmp_path)


def test_unknown_repair_is_refused_by_name(folder):
    status, output = run(folder, "retinanet", "train", CYCLEMLP_PADDLEDET_REPAIRS_OFF="text_size,concat")
    assert status == 1
    assert (
        "names 'concat'; the repairs are zlib_order, yaml_code, pickle_code, lost_errors, lost_workers, concat_scalars"
        in output
    )


def original_and_repaired(name, use):
    """`use(module)` with the repairs that it needs in order to run at all, and with `name` too."""
    os.environ["CYCLEMLP_PADDLEDET_REPAIRS_OFF"] = name
    from cyclemlp_backbones.adapters.paddledet.repairs import REPAIRS

    REPAIRS.apply()
    original = use()
    (repair,) = [repair for repair in REPAIRS.rows if repair.name == name]
    repair.apply()
    return original, use()


def propose():
    from ppdet.modeling.proposal_generator.rpn_head import RPNHead

    head = RPNHead(in_channel=4)
    head.eval()
    head.test_proposal.post_nms_top_n = 10  # fewer than all levels give together
    head.test_proposal.pre_nms_top_n = 200
    random = np.random.RandomState(0)
    sizes = (16, 8, 4, 2, 1)
    feats = [paddle.to_tensor(random.standard_normal((2, 4, n, n)).astype("float32")) for n in sizes]
    scores, deltas = (
        [paddle.to_tensor(random.standard_normal((2, c, n, n)).astype("float32")) for n in sizes] for c in (3, 12)
    )
    inputs = {"im_shape": paddle.to_tensor([[64.0, 64.0], [50.0, 40.0]])}
    rois, counts = head._gen_proposal(scores, deltas, head.anchor_generator(feats), inputs)
    return np.concatenate([some.numpy() for some in rois]), counts.numpy().tolist()


def test_proposals_are_paddledetections():
    (rois, counts), (repaired, repaired_counts) = in_process(original_and_repaired, "static_proposals", propose)
    assert counts == repaired_counts == [10, 10]
    np.testing.assert_array_equal(rois, repaired)


def decode():
    from ppdet.modeling.heads.cascade_head import CascadeHead
    from ppdet.modeling.layers import RCNNBox

    random = np.random.RandomState(0)
    corners = random.uniform(-5, 50, (5, 2))
    boxes = np.concatenate([corners, corners + random.uniform(2, 40, (5, 2))], 1)
    deltas, scores = random.standard_normal((5, 12)), random.uniform(0, 1, (5, 4))
    boxes, deltas, scores = (paddle.to_tensor(x.astype("float32")) for x in (boxes, deltas, scores))
    im_shape, counts = paddle.to_tensor([[60.0, 48.0], [20.0, 30.0]]), paddle.to_tensor([2, 3], dtype="int32")
    (decoded, _), kept = RCNNBox(num_classes=3)((deltas, scores), ([boxes[:2], boxes[2:]], counts), im_shape, None)
    head = types.SimpleNamespace(training=False, proposal_counts=counts)
    head.original_get_rois_from_boxes = functools.partial(CascadeHead._get_rois_from_boxes, head)
    whole = CascadeHead._get_rois_from_boxes.__name__ == "rois_from_boxes"
    rois, _ = CascadeHead._get_rois_from_boxes(head, [boxes] if whole else [boxes[:2], boxes[2:]], im_shape)
    return decoded.numpy(), kept.numpy(), np.concatenate([some.numpy() for some in rois])


def test_boxes_of_a_batch_are_decoded_as_paddledetection_does():
    for some, others in zip(*in_process(original_and_repaired, "static_proposals", decode), strict=True):
        np.testing.assert_allclose(some, others, rtol=1e-6)


def predict():
    from ppdet.modeling.post_process import BBoxPostProcess, MaskPostProcess

    random = np.random.RandomState(0)
    corners = random.uniform(-5, 50, (5, 2))
    boxes = np.concatenate(
        [np.full((5, 1), 3), np.full((5, 1), 0.5), corners, corners + random.uniform(2, 40, (5, 2))], 1
    )
    boxes[4, 4:] = boxes[4, 2:4] = 70  # outside
    masks = random.uniform(0, 1, (5, 7, 7))
    boxes, masks = (paddle.to_tensor(x.astype("float32")) for x in (boxes, masks))
    im_shape, scale_factor = paddle.to_tensor([[60.0, 48.0]]), paddle.to_tensor([[0.5, 0.75]])
    boxer = BBoxPostProcess()
    kept, scaled, counts = boxer.get_pred(boxes, paddle.to_tensor([5], dtype="int32"), im_shape, scale_factor)
    pasted = MaskPostProcess()(masks, scaled, counts, boxer.get_origin_shape())
    return [x.numpy() for x in (kept, scaled, counts, pasted)]


def test_predictions_of_one_image_are_paddledetections():
    original, repaired = in_process(original_and_repaired, "static_predictions", predict)
    assert original[1][4, 0] == -1
    assert original[3].shape == (5, 120, 64)
    for some, others in zip(original, repaired):
        np.testing.assert_allclose(some, others, rtol=1e-6)


def predict_batch(counts, off=""):
    """Boxes and masks of a batch of two images in one go, and of each image alone."""
    os.environ["CYCLEMLP_PADDLEDET_REPAIRS_OFF"] = off
    from ppdet.modeling.post_process import BBoxPostProcess, MaskPostProcess

    from cyclemlp_backbones.adapters.paddledet import register_paddledet

    register_paddledet(repair=True)

    random = np.random.RandomState(1)
    total = sum(counts)
    corners = random.uniform(0, 30, (total, 2))
    boxes = np.concatenate([np.full((total, 2), 0.5), corners, corners + random.uniform(2, 20, (total, 2))], 1)
    rows = [max(1, count) for count in counts]  # the mask head gives a mask for the box that stands in for none
    masks = random.uniform(0, 1, (sum(rows), 7, 7))
    im_shape, scale_factor = np.array([[60, 48], [40, 50]]), np.array([[0.5, 0.75], [1, 1]])

    def run(chosen, chosen_masks, images):
        boxer = BBoxPostProcess()
        boxes_of, masks_of, shapes, factors = (
            paddle.to_tensor(x.astype("float32"))
            for x in (boxes[chosen], masks[chosen_masks], im_shape[images], scale_factor[images])
        )
        number = paddle.to_tensor([counts[image] for image in images], dtype="int32")
        _, scaled, number = boxer.get_pred(boxes_of, number, shapes, factors)
        return scaled.numpy(), MaskPostProcess()(masks_of, scaled, number, boxer.get_origin_shape()).numpy()

    alone = [
        run(slice(0, counts[0]), slice(0, rows[0]), [0]),
        run(slice(counts[0], None), slice(rows[0], None), [1]),
    ]
    return run(slice(None), slice(None), [0, 1]), alone


@pytest.mark.parametrize("counts", [(2, 3), (0, 3), (2, 0), (0, 0)])
def test_predictions_of_a_batch_are_those_of_its_images(counts):
    (boxes, masks), alone = in_process(predict_batch, counts)
    first = 0
    for image, (image_boxes, image_masks) in enumerate(alone):
        rows = slice(first, first + len(image_boxes))
        np.testing.assert_array_equal(boxes[rows], image_boxes)
        height, width = image_masks.shape[1:]
        np.testing.assert_array_equal(masks[rows, :height, :width], image_masks)
        assert (masks[rows, height:] == -1).all()
        assert (masks[rows, :, width:] == -1).all()
        if counts[image] == 0:
            assert image_boxes[0, 1] == 0
            assert image_masks.max() == 0
        first += len(image_boxes)
    assert first == len(boxes) == len(masks) == sum(max(1, count) for count in counts)


def test_without_the_repair_the_second_image_of_a_batch_gets_the_firsts_size():
    (_, masks), alone = in_process(predict_batch, (2, 3), "static_predictions")
    height, width = alone[1][1].shape[1:]
    assert (height, width) == (40, 50)
    assert (masks[2:, height:] != -1).any()


def rasterize(segmentations, box):
    from ppdet.modeling.proposal_generator import target

    from cyclemlp_backbones.adapters.paddledet import register_paddledet

    register_paddledet(repair=True)

    return [target.rasterize_polygons_within_box(code, np.array(box), 14).numpy() for code in segmentations]


def test_run_lengths_give_the_masks_that_polygons_give():
    from pycocotools import mask as mask_util

    polygon = [[12.0, 10.0, 40.0, 10.0, 40.0, 50.0, 12.0, 50.0]]
    compressed = mask_util.merge(mask_util.frPyObjects(polygon, 64, 64))
    pixels = np.concatenate([[0], mask_util.decode(compressed).ravel(order="F")])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    uncompressed = {"size": [64, 64], "counts": np.diff([0, *changes, 64 * 64]).tolist()}
    for box in ([12.0, 10.0, 40.0, 50.0], [4.0, 6.0, 32.0, 62.0]):
        expected, *others = in_process(rasterize, [polygon, compressed, uncompressed], box)
        assert 0 < expected.sum() <= 14 * 14
        for mask in others:
            np.testing.assert_array_equal(mask, expected)


def suppress(return_index):
    from ppdet.modeling import ops

    from cyclemlp_backbones.adapters.paddledet import register_paddledet

    register_paddledet(repair=True)

    random = np.random.RandomState(0)
    corners = random.uniform(0, 50, (2, 40, 2))
    boxes = paddle.to_tensor(
        np.concatenate([corners, corners + random.uniform(5, 30, (2, 40, 2))], 2).astype("float32")
    )
    scores = paddle.to_tensor(random.uniform(0, 1, (2, 3, 40)).astype("float32"))
    settings = {"score_threshold": 0.3, "nms_top_k": 30, "keep_top_k": 20, "return_index": return_index}
    repaired = ops.multiclass_nms(boxes, scores, **settings)
    original = getattr(ops.multiclass_nms, "__wrapped__", ops.multiclass_nms)(boxes, scores, **settings)
    return [[None if x is None else x.numpy() for x in outputs] for outputs in (repaired, original)]


@pytest.mark.parametrize("return_index", [False, True])
def test_suppression_is_paddledetections(return_index):
    repaired, original = in_process(suppress, return_index)
    assert repaired[0].shape == (40, 6)
    assert (repaired[2] is None) == (not return_index)
    for some, others in zip(repaired, original):
        np.testing.assert_array_equal(some, others)


def choose_anchors():
    """How many anchors of two levels, 16 and 4, are candidates for each of three boxes."""
    from ppdet.modeling.assigners.atss_assigner import ATSSAssigner

    distances = paddle.to_tensor(np.random.RandomState(0).uniform(size=(1, 3, 20)).astype("float32"))
    chosen, index = ATSSAssigner(topk=9)._gather_topk_pyramid(distances, [16, 4], paddle.ones([1, 3, 1]))
    return chosen[:, :, :16].sum(-1).tolist(), chosen[:, :, 16:].sum(-1).tolist(), index.shape


def lose_labels():
    from ppdet.modeling.losses.queryinst_loss import QueryInstLoss

    targets = [{"labels": paddle.to_tensor([[1], [2]], dtype="int32")}]
    logits = paddle.to_tensor([[[-9.0, 9, -9], [-9, -9, -9], [-9, -9, 9]]])
    pairs = [(paddle.to_tensor([0, 2]), paddle.to_tensor([0, 1]))]
    return float(QueryInstLoss(num_classes=3).loss_classes(logits, targets, pairs, 1.0)["loss_cls"])


def without_and_with(name, use):
    """The error of `use` without the repair `name`, None if there is none; its result with it."""
    os.environ["CYCLEMLP_PADDLEDET_REPAIRS_OFF"] = name
    from cyclemlp_backbones.adapters.paddledet.repairs import REPAIRS

    REPAIRS.apply()
    try:
        use()
        error = None
    except Exception as raised:
        error = str(raised)
    (repair,) = [repair for repair in REPAIRS.rows if repair.name == name]
    repair.apply()
    return error, use()


def test_a_level_of_few_anchors_gives_all_of_them():
    error, chosen = in_process(without_and_with, "few_anchors", choose_anchors)
    assert "topk" in error
    assert chosen == ([[9.0] * 3], [[4.0] * 3], [1, 3, 13])


def test_queryinst_compares_its_labels():
    error, loss = in_process(without_and_with, "queryinst_labels", lose_labels)
    assert (error is None) == (expected_status("queryinst_labels") == "not needed")
    assert loss < 1e-3
