"""`agreement.py ROOT CONFIG WEIGHTS EXPORTED`: whether the model that the checkout ROOT exported equals its dygraph.

The largest difference allowed is 1e-4. Of masks, which are cut at a score of one half, so that rounding can turn a
pixel, it is the share of pixels that differ. Prints, as JSON, the repairs that the checkout needed.
"""

import json
import sys
from pathlib import Path

root, config_path, weights, exported = map(Path, sys.argv[1:])
sys.path.insert(0, str(root))

import numpy as np  # noqa: E402
import paddle  # noqa: E402

import cyclemlp_backbones  # noqa: E402, F401  before paddle

RANDOM = np.random.RandomState(0)


def feeds():
    """One image, then two of another size; the second is padded and of another scale."""
    for images, height, width in ((1, 64, 64), (2, 96, 160)):
        yield {
            "image": RANDOM.standard_normal((images, 3, height, width)).astype("float32"),
            "im_shape": np.array([[height, width], [height - 10, width - 5]][:images], "float32"),
            "scale_factor": np.array([[0.5, 0.8], [1, 1]][:images], "float32"),
        }


def segmenter():
    """A function of an export's inputs, by PaddleSeg; its package; the repairs."""
    import paddleseg
    from paddleseg.cvlibs import Config, SegBuilder

    from cyclemlp_backbones.adapters.paddleseg import register_paddleseg
    from cyclemlp_backbones.adapters.paddleseg.repairs import REPAIRS

    register_paddleseg(repair=True)
    model = SegBuilder(Config(str(config_path))).model
    return model, lambda feed: model(feed["image"]), paddleseg, REPAIRS


def detector():
    from cyclemlp_backbones.adapters.paddledet import register_paddledet  # isort: skip  first: imgaug with numpy 2
    import ppdet
    from ppdet.core.workspace import create, load_config

    from cyclemlp_backbones.adapters.paddledet.repairs import REPAIRS

    register_paddledet(repair=True)
    model = create(load_config(str(config_path)).architecture)
    return model, lambda feed: list(model(feed).values()), ppdet, REPAIRS


def predictor():
    config = paddle.inference.Config(
        str(next(path for path in exported.iterdir() if path.suffix in (".json", ".pdmodel"))),
        str(next(exported.glob("*.pdiparams"))),
    )
    config.disable_gpu()
    config.disable_glog_info()
    config.disable_onednn() if hasattr(config, "disable_onednn") else config.disable_mkldnn()
    return paddle.inference.create_predictor(config)


def main() -> None:
    model, call, package, repairs = segmenter() if (root / "paddleseg").is_dir() else detector()
    if root.resolve() not in Path(package.__file__).resolve().parents:
        raise ImportError(f"{package.__file__} is not the checkout's")
    model.set_state_dict(paddle.load(str(weights)))
    model.eval()
    run = predictor()
    for feed in feeds():
        with paddle.no_grad():
            expected = [x.numpy() for x in call({name: paddle.to_tensor(x) for name, x in feed.items()})]
        names = run.get_input_names()
        for name in names:  # PaddleSeg's only input has a name of Paddle's
            run.get_input_handle(name).copy_from_cpu(feed["image" if len(names) == 1 else name])
        run.run()
        actual = [run.get_output_handle(name).copy_to_cpu() for name in run.get_output_names()]
        if len(actual) != len(expected):
            raise ValueError(f"{len(actual)} outputs, {len(expected)} in dygraph")
        for some, others in zip(actual, expected):
            is_mask = others.ndim == 3 and others.dtype.kind == "i"
            some, others = ((some != others).mean(), 0) if is_mask else (some, others)
            np.testing.assert_allclose(some, others, rtol=0, atol=1e-4)
        if not (np.abs(expected[0]) > 0).any():
            raise ValueError("nothing was predicted")
    print(json.dumps([name for name, status in repairs.apply().items() if status == "applied"]))


if __name__ == "__main__":
    main()
