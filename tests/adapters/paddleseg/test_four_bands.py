"""Images of four channels, as from satellites, through PaddleSeg with its own commands' checks."""

from __future__ import annotations

import re

import numpy as np
import paddle
import pytest
import yaml
from paddleseg.cvlibs import manager
from paddleseg.datasets import Dataset
from paddleseg.transforms import Compose

from cyclemlp_backbones import build_backbone
from cyclemlp_backbones.cli import main
from tests.adapters.tiny_seg import BACKBONE, NUM_CLASSES, SEMANTIC_FPN, SIZE, write_config, write_data

BANDS = {"mean": [0.5] * 4, "std": [0.5] * 4}


class FourBands(Dataset):
    """Noise in three bands; the fourth tells the class. PaddleSeg's own Dataset takes 1 and 3 channels only."""

    NUM_CLASSES = NUM_CLASSES
    IMG_CHANNELS = 4
    IGNORE_INDEX = 255

    def __init__(self, transforms, **arguments):
        super().__init__(transforms=transforms, num_classes=NUM_CLASSES, **arguments)
        self.transforms = Compose(transforms, img_channels=4)

    def __getitem__(self, index):
        label = self.file_list[index][1]
        label = np.asarray(paddle.vision.image_load(label))
        bands = np.random.RandomState(index).randint(0, 256, (SIZE, SIZE, 4)).astype("float32")
        bands[:, :, 3] = 120.0 * label
        sample = self.transforms({"img": bands, "label": label, "gt_fields": ["label"], "trans_info": []})
        if self.mode == "val":
            sample["label"] = sample["label"][None]
        return sample


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(manager.DATASETS.components_dict, "FourBands", FourBands)
    write_data(tmp_path)
    config = write_config(tmp_path, {**SEMANTIC_FPN, "backbone": {**BACKBONE, "in_channels": 4}}, iters=16)
    document = yaml.safe_load(config.read_text())
    for name in ("train_dataset", "val_dataset"):
        document[name].update(type="FourBands", transforms=[{"type": "Normalize", **BANDS}])
        del document[name]["num_classes"]
    config.write_text(yaml.safe_dump(document))
    return config


def seg(action, config, *flags):
    return main(["seg", action, "--config", str(config), *map(str, flags)])


def test_four_bands_train_evaluate_and_export(config, capsys):
    out = config.parent / "out"
    assert seg("train", config, "--save_dir", out, "--log_iters", 1, "--save_interval", 1, "--do_eval") == 0
    losses = [float(loss) for loss in re.findall(r"iter: \d+/16, loss: (\d\.\d+)", capsys.readouterr().out)]
    assert len(losses) == 16
    assert np.mean(losses[-4:]) < 0.6 * losses[0]
    weights = out / "best_model" / "model.pdparams"
    stem = paddle.load(str(weights))["backbone.patch_embed.proj.weight"]
    assert stem.shape == [32, 4, 7, 7]
    assert seg("val", config, "--model_path", weights) == 0
    miou = float(re.search(r"mIoU: (\d\.\d+)", capsys.readouterr().out)[1])
    assert miou > 0.5
    assert seg("export", config, "--model_path", weights, "--save_dir", config.parent / "inference") == 0
    described = yaml.safe_load((config.parent / "inference" / "deploy.yaml").read_text())["Deploy"]
    assert described["input_shape"] == [None, 4, None, None]


def test_weights_of_three_channels_start_a_training_of_four(config):
    source = build_backbone("b0").state_dict()
    paddle.save(source, str(config.parent / "b0.pdparams"))
    flags = ["--save_dir", config.parent / "out", "--iters", 1, "--learning_rate", 1e-30]
    assert seg("train", config, *flags, "--opts", f"model.backbone.pretrained={config.parent / 'b0.pdparams'}") == 0
    saved = paddle.load(str(config.parent / "out" / "iter_1" / "model.pdparams"))
    stem = source["patch_embed.proj.weight"].numpy()[:, [0, 1, 2, 0]] * 0.75
    np.testing.assert_allclose(saved["backbone.patch_embed.proj.weight"].numpy(), stem, rtol=1e-6)
    block = "network.0.0.attn.sfc_h.weight"
    np.testing.assert_allclose(saved[f"backbone.{block}"].numpy(), source[block].numpy(), atol=1e-20)


def test_three_channels_for_four_bands_are_told_apart(config, capsys):
    assert seg("train", config, "--opts", "model.backbone.in_channels=3", "--save_dir", config.parent / "out") == 1
    assert "in_channels in model config (3) and the img_channels in train_dataset class (4)" in capsys.readouterr().err
