"""`cyclemlp plot`: what is drawn, as numbers, and that every kind writes a picture."""

import json

import numpy as np
import pytest
from PIL import Image

from cyclemlp_backbones import CycleNet, build_backbone, cycle_offsets, write_checkpoint
from cyclemlp_backbones.cli import main, plot

PADDLESEG = """
2026-01-02 [INFO]\t[TRAIN] epoch: 1, iter: 10/40, loss: 2.3012, lr: 0.001000, batch_cost: 0.1, ETA 00:00:02
2026-01-02 [INFO]\t[TRAIN] epoch: 1, iter: 20/40, loss: 1.5e-1, lr: 0.001000, batch_cost: 0.1, ETA 00:00:01
2026-01-02 [INFO]\t[EVAL] #Images: 8 mIoU: 0.0822 Acc: 0.9000 Kappa: 0.1000 Dice: 0.2000
"""
PADDLEDET = """
[01/02 03:04:05] ppdet.engine INFO: Epoch: [0] [ 0/16] loss_cls: 1.25 loss_reg: 0.5 loss: 1.75 eta: 0
[01/02 03:04:06] ppdet.engine INFO: Epoch: [0] [10/16] loss_cls: 1.0 loss_reg: 0.5 loss: 1.5 eta: 0
 Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.125
 Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = 0.250
"""


def test_offsets_are_those_of_the_layer():
    for channels, length in ((7, 3), (5, 4), (11, 5), (3, 1)):
        drawn = plot.reads(channels, length)
        assert (drawn.sum(1) == 1).all()
        assert (drawn.argmax(1) - length // 2).tolist() == cycle_offsets(channels, (1, length))[:, 1].tolist()


def test_a_receptive_field_covers_what_the_map_reads_and_no_more():
    """Two blocks of K = 3 behind a stem of 7 with stride 4: the strong part is a cross of 3 positions a side, and all
    else comes by the reweighting's mean."""
    model = CycleNet((1, 1, 1, 1), (8, 16, 24, 32), (2, 2, 2, 2), swin_like=True)  # without a mean over the map
    field = plot.receptive_fields(model, 64, 64)[0]
    rows, columns = (np.flatnonzero(field.max(axis)) for axis in (1, 0))
    middle = 16 // 2  # position 8 of 16: pixels 4 * 8 - 2 to 4 * 8 + 4, and a position more on each side
    assert (rows[0], rows[-1]) == (columns[0], columns[-1]) == (4 * middle - 2 - 4, 4 * middle + 4 + 4)
    assert field[rows[0], columns[0]] == 0  # a cross, no square
    assert field.max() == 1
    assert field[4 * middle + 1, 4 * middle + 1] > 0


def test_a_pyramid_gives_like_features_a_like_colour():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    model = build_backbone("b0")
    maps = plot.pyramid(model, image)
    assert [y.shape for y in maps] == [(16, 16, 3), (8, 8, 3), (4, 4, 3), (2, 2, 3)]
    assert all(y.min() == 0 and y.max() == 1 for y in maps)
    first = maps[0][:, :, 0]
    assert abs(first[8, 4] - first[4, 4]) < 0.05 < 0.5 < abs(first[8, 4] - first[8, 12])


def test_curves_are_read_from_the_logs_of_all_three_programs(tmp_path):
    rows = [{"event": "train", "step": 50, "loss": 6.5, "lr": 1e-3}, {"event": "evaluation", "step": 100, "top1": 12.5}]
    for name, text in (("seg", PADDLESEG), ("det", PADDLEDET), ("cls", "\n".join(map(json.dumps, rows)))):
        (tmp_path / name).write_text(text)
    assert plot.read_curves(tmp_path / "seg") == {"loss": [(10, 2.3012), (20, 0.15)], "mIoU": [(20, 0.0822)]}
    assert plot.read_curves(tmp_path / "det") == {"loss": [(1, 1.75), (2, 1.5)], "AP": [(2, 0.125)]}
    assert plot.read_curves(tmp_path / "cls") == {"loss": [(50, 6.5)], "top1": [(100, 12.5)]}


def masks(folder, *pictures):
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(np.array(picture, np.uint8)).save(folder / f"{number}.png")
    return folder


def test_confusion_counts_pixels_or_images(tmp_path):
    truth = masks(tmp_path / "truth", [[0, 0, 1], [1, 2, 255]], [[2, 2]])
    predicted = masks(tmp_path / "predicted", [[0, 1, 1], [1, 2, 0]], [[2, 0]])
    assert plot.confusion(predicted, truth).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 2]]
    (tmp_path / "p.csv").write_text("name,class1,probability1\na b.jpg,1,0.9\nc.jpg,0,0.5\nd.jpg,unreadable\n")
    (tmp_path / "val.txt").write_text("c.jpg 0\na b.jpg 0\nd.jpg 1\n")
    assert plot.confusion(tmp_path / "p.csv", tmp_path / "val.txt").tolist() == [[1, 1], [0, 0]]


def test_every_kind_writes_its_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = build_backbone("b0", in_channels=3)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    write_checkpoint("w.pdparams", arrays, layout="paddle")
    Image.new("RGB", (70, 50), "red").save("x.jpg")
    (tmp_path / "seg.log").write_text(PADDLESEG)
    (tmp_path / "names.txt").write_text("sky\nsea\n")
    masks(tmp_path / "m", [[0, 1], [1, 1]])
    for arguments in (
        "offsets --channels 5 --kernel 5",
        "receptive-field b0 --size 64x96",
        "pyramid w.pdparams x.jpg",
        "curves seg.log seg.log",
        "confusion m m --names names.txt",
    ):
        assert main(["plot", *arguments.split(), "--out", "p.png"]) == 0, capsys.readouterr().err
        with Image.open("p.png") as picture:
            assert min(picture.size) > 100
        (tmp_path / "p.png").unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("curves empty.log", "has no line with loss, mIoU, top1, AP"),
        ("confusion m none", "has no mask none/0.png to be compared with"),
        ("confusion empty m", "no folder of masks or CSV file empty"),
        ("pyramid b0 none.jpg", "no image none.jpg"),
        ("offsets --out none/p.png", "there is no folder none; create it first"),
        ("receptive-field b9", "b9"),
    ],
)
def test_a_wrong_call_says_what_to_do(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.log").write_text("nothing\n")
    masks(tmp_path / "m", [[0, 1]])
    assert main(["plot", *arguments.split()]) == 1
    assert message in capsys.readouterr().err
