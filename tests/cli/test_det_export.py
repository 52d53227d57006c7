"""Exported detectors, run by paddle.inference, give what they give themselves: three sizes, one and two images."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import yaml

from tests.adapters.tiny_det import cyclemlp, in_process, write_config, write_data

pytestmark = pytest.mark.slow

SIZES = ((64, 64), (96, 128), (160, 96))


def feeds():
    """Images of three sizes, and per size one and two of them; the second ones are padded and of another scale."""
    random = np.random.RandomState(0)
    for height, width in SIZES:
        images = random.standard_normal((2, 3, height, width)).astype("float32")
        images[1] *= 0.1
        shapes = np.array([[height, width], [height - 10, width - 5]], "float32")
        scales = np.array([[1, 1], [0.5, 0.8]], "float32")
        for chosen in (slice(0, 1), slice(1, 2), slice(0, 2)):
            yield {"image": images[chosen], "im_shape": shapes[chosen], "scale_factor": scales[chosen]}


def dygraph(config, weights):
    from ppdet.core.workspace import create

    from cyclemlp_backbones.adapters.paddledet import register_paddledet
    from cyclemlp_backbones.adapters.paddledet.launch import read_config

    register_paddledet(repair=True)

    model = create(read_config(str(config), []).architecture)
    model.set_state_dict(paddle.load(str(weights)))
    model.eval()
    with paddle.no_grad():
        outputs = [model({name: paddle.to_tensor(array) for name, array in feed.items()}) for feed in feeds()]
    return [[value.numpy() for value in output.values()] for output in outputs]


def exported(folder):
    inference = paddle.inference
    (program,) = (path for path in folder.iterdir() if path.name in ("model.json", "model.pdmodel"))
    config = inference.Config(str(program), str(folder / "model.pdiparams"))
    config.disable_gpu()
    config.disable_glog_info()
    # oneDNN is on by default on a CPU, and fails on several of Paddle's own operators.
    config.disable_onednn() if hasattr(config, "disable_onednn") else config.disable_mkldnn()
    predictor = inference.create_predictor(config)
    results = []
    for feed in feeds():
        for name in predictor.get_input_names():
            predictor.get_input_handle(name).copy_from_cpu(feed[name])
        predictor.run()
        results.append([predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()])
    return results


def save_random(config, weights):
    """A detector's fresh weights, except that RetinaNet's scores are those of a head without its low prior."""
    from ppdet.core.workspace import create

    from cyclemlp_backbones.adapters.paddledet import register_paddledet
    from cyclemlp_backbones.adapters.paddledet.launch import read_config

    register_paddledet(repair=True)

    paddle.seed(1)
    model = create(read_config(str(config), []).architecture)
    for name, parameter in model.named_parameters():
        if name.endswith(("bbox_score.weight", "bbox_delta.weight", "retina_cls.weight")):
            parameter.set_value(parameter * 3)  # scores that differ from box to box
    paddle.save(model.state_dict(), str(weights))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write_data(folder, train=1, val=1)
    return folder


def write(folder, detector, threshold):
    nms = {"nms": {"score_threshold": threshold}}
    return write_config(folder, detector, RetinaHead={**nms, "prior_prob": 0.1}, BBoxPostProcess=nms)


def threshold_between(outputs):
    """A score that one of the first two images has a box above, the other none."""
    best = [float(output[0][:, 1].max()) for output in outputs[:2]]
    assert best[0] != best[1]
    return sum(best) / 2


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn", "mask_rcnn"])
def test_exported_detector_equals_dygraph_and_given_weights_leave_the_pretrained_backbone_out(folder, detector):
    weights = folder / f"{detector}.pdparams"
    config = write(folder, detector, 0.01)
    in_process(save_random, config, weights)
    config = write(folder, detector, threshold_between(in_process(dygraph, config, weights)))
    stale = folder / "exported" / detector / "model.pdmodel"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an older export")
    flags = ["--output_dir", folder / "exported", "-o", f"weights={weights}", "CycleMLP.pretrained=missing.pdparams"]
    status, output = cyclemlp("det", "export", "-c", config, *flags, cwd=folder)
    assert status == 0, output
    expected = in_process(dygraph, config, weights)
    actual = in_process(exported, stale.parent)
    assert len(expected) == len(actual) == 9
    for some, others in zip(actual, expected):
        assert [x.shape for x in some] == [x.shape for x in others]
        for array, other in zip(some, others):
            np.testing.assert_allclose(array, other, rtol=0, atol=1e-4)
    # One image of the first pair has boxes, the other none: RetinaNet gives no row for it, an R-CNN one of score 0.
    boxes, counts = expected[2][:2]
    assert min(counts) == (0 if detector == "retinanet" else 1)
    assert (boxes[:, 1] == 0).sum() == (0 if detector == "retinanet" else 1)
    assert (boxes[:, 1] > 0).sum() > 0
    described = yaml.safe_load((stale.parent / "infer_cfg.yml").read_text())
    assert described["label_list"] == [str(value) for value in range(10)]
    assert [step["type"] for step in described["Preprocess"]] == ["Resize", "NormalizeImage", "Permute", "PadStride"]
    assert described.get("mask", False) == (detector == "mask_rcnn")
