"""Every shipped detection configuration builds; sizes are the paper's; each says how to run it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml

from cyclemlp_backbones import build_classifier
from tests.adapters.tiny_det import DETECTORS, OF_CHECKOUTS, cyclemlp, dataset, in_process, write_data, write_shipped
from tests.adapters.tiny_seg import REPOSITORY

pytestmark = pytest.mark.slow

FOLDER = REPOSITORY / "det_configs"
VARIANTS = ("b1", "b2", "b3", "b4", "b5")
CONFIGS = sorted(FOLDER.glob("*.yml"))

# Millions of parameters with 80 classes, the paper's table.
PAPER = {
    "retinanet": (24.893, 36.540, 48.124, 61.534, 85.918),
    "mask_rcnn": (34.811, 46.458, 58.041, 71.452, 95.254),
}
# Epochs, rate, and sides of training images.
RECIPES = {"1x": (12, [8, 11], [[800, 1333]]), "3x": (36, [27, 33], [[side, 1333] for side in range(640, 801, 32)])}
RATES = {"retinanet": 1e-4, "mask_rcnn": 2e-4, "faster_rcnn": 2e-4, "cascade_mask_rcnn": 1e-4}
NEWER = tuple(f"{head}_cyclemlp_{variant}_fpn_1x_coco" for head in ("fcos", "solov2") for variant in ("b1", "b2"))


def test_there_is_each_detector_in_each_size():
    expected = {f"{detector}_cyclemlp_{variant}_fpn_1x_coco" for detector in DETECTORS for variant in VARIANTS}
    expected |= {f"mask_rcnn_cyclemlp_{variant}_fpn_3x_coco" for variant in VARIANTS}
    expected |= {*NEWER, *OF_CHECKOUTS}
    assert {path.stem for path in CONFIGS} == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_opens_with_its_command(path):
    first = path.read_text().splitlines()[0]
    assert first == f"# cyclemlp det train -c det_configs/{path.name} --eval"


def test_only_known_accuracy_is_stated():
    stated = [path.stem for path in CONFIGS if "accuracy" in path.read_text()]
    assert stated == ["retinanet_cyclemlp_b1_fpn_1x_coco"]
    assert "AP 38.6 (the paper's; not trained here)" in (FOLDER / f"{stated[0]}.yml").read_text()


def build(path, pretrained):
    """The whole detector, as `cyclemlp det train` would build it: what the test below asks of it."""
    from ppdet.core.workspace import create

    from cyclemlp_backbones.adapters.paddledet import register_paddledet
    from cyclemlp_backbones.adapters.paddledet.launch import read_config

    register_paddledet(repair=True)

    config = read_config(str(path), [])
    published = config["CycleMLP"]["pretrained"]
    config["CycleMLP"]["pretrained"] = pretrained
    model = create(config.architecture)
    rate = create("LearningRate")(100)
    optimizer = create("OptimizerBuilder")(rate, model)
    (resize,) = [step["RandomResize"] for step in config["TrainReader"]["sample_transforms"] if "RandomResize" in step]
    return {
        "published": published,
        "parameters": sum(int(np.prod(p.shape)) for p in model.parameters() if not p.stop_gradient),
        "rate": max(rate.values),
        "recipe": (
            config.epoch,
            config["LearningRate"]["schedulers"][0]["milestones"],
            resize["target_size"],
        ),
        "optimizer": type(optimizer).__name__,
        "pad": config["TrainReader"]["batch_transforms"][0]["PadBatch"]["pad_to_stride"],
        "poly": "gt_poly" in config["TrainDataset"]["data_fields"],
        "stem": model.backbone.patch_embed.proj.weight.numpy(),
        "weights": config.weights,
    }


@pytest.fixture(scope="module", params=VARIANTS)
def classifier(request, tmp_path_factory):
    """A variant, a file like the published one of its size, and the stem's weights in it."""
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pdparams"
    model = build_classifier(request.param)
    paddle.save(model.state_dict(), str(path))
    yield request.param, str(path), model.patch_embed.proj.weight.numpy()
    path.unlink()  # up to 300 MB


@pytest.mark.parametrize(("detector", "schedule"), [*((name, "1x") for name in DETECTORS), ("mask_rcnn", "3x")])
def test_configuration_builds_in_the_papers_size_and_recipe_with_a_classifiers_weights(detector, schedule, classifier):
    variant, weights, stem = classifier
    path = FOLDER / f"{detector}_cyclemlp_{variant}_fpn_{schedule}_coco.yml"
    built = in_process(build, path, weights)
    assert built["published"] is True  # a run begins with the published weights, or not at all
    assert built["recipe"] == RECIPES[schedule]
    assert built["rate"] == RATES[detector]
    assert built["optimizer"] == "AdamWDL"
    assert built["pad"] == 32
    assert built["poly"] == ("mask" in detector)
    assert built["weights"] == f"output/{path.stem}/model_final.pdparams"
    if detector in PAPER:
        assert round(built["parameters"] / 1e6, 3) == PAPER[detector][VARIANTS.index(variant)]
    np.testing.assert_array_equal(built["stem"], stem)


def training_sides(path, folder):
    """Shorter sides of the images that the configuration's own reader gives, five times each of those in `folder`."""
    from ppdet.core.workspace import create

    from cyclemlp_backbones.adapters.paddledet import register_paddledet
    from cyclemlp_backbones.adapters.paddledet.launch import read_config

    register_paddledet(repair=True)

    config = read_config(str(path), [])
    config["TrainDataset"].update(dataset(folder, "train"))
    data = create("TrainDataset")()
    data.parse_dataset()
    loader = create("TrainReader")(data, 0)
    batches = [batch for _ in range(5) for batch in loader]
    assert all(side % 32 == 0 for batch in batches for image in batch["image"] for side in image.shape[1:])
    return {int(min(shape.numpy())) for batch in batches for shape in batch["im_shape"]}


@pytest.mark.parametrize(("schedule", "sides"), [("1x", {800}), ("3x", {640, 672, 704, 736, 768, 800})])
def test_images_are_resized_as_the_schedule_says(tmp_path, schedule, sides):
    write_data(tmp_path)
    path = FOLDER / f"mask_rcnn_cyclemlp_b1_fpn_{schedule}_coco.yml"
    seen = in_process(training_sides, path, tmp_path)
    assert seen <= sides
    assert len(seen) >= min(3, len(sides))  # of 20 images


@pytest.mark.parametrize("name", NEWER)
def test_newer_heads_train_two_steps(tmp_path, name):
    write_data(tmp_path / "data")
    status, output = cyclemlp("det", "train", "-c", write_shipped(tmp_path / "data", name), cwd=tmp_path)
    assert status == 0, output[-6000:]
    losses = [float(loss) for loss in re.findall(r" loss: (\S+)", output)]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_base_parts_are_lists_of_files_that_exist():
    """PaddleDetection takes a string for a list of its characters."""
    for path in [*CONFIGS, *sorted((FOLDER / "_base_").glob("*.yml"))]:
        base = yaml.safe_load(path.read_text()).get("_BASE_", [])
        assert isinstance(base, list)
        assert all((path.parent / Path(part)).is_file() for part in base), path
