"""`cyclemlp det`: what each action leaves behind, and what a mistake is told."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from cyclemlp_backbones.cli import main
from cyclemlp_backbones.deploy.drawing import fitted
from tests.adapters.tiny_det import cyclemlp, write_config, write_data
from tests.adapters.tiny_seg import REPOSITORY
from tests.adapters.tiny_seg import cyclemlp as cyclemlp_afresh

pytestmark = pytest.mark.slow


def det(action, config, *flags):
    """Exit status and output of `cyclemlp det action -c config flags`, run in the configuration's folder."""
    return cyclemlp("det", action, "-c", config, *flags, cwd=config.parent)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A Mask R-CNN that was trained for two epochs, with all that training can leave behind."""
    folder = tmp_path_factory.mktemp("trained")
    write_data(folder)
    config = write_config(folder, "mask_rcnn", TestDataset={"anno_path": "annotations/instances_train.json"})
    flags = ["--eval", "--amp", "--use_vdl", "True", "--vdl_log_dir", folder / "vdl", "--enable_ce"]
    status, output = det("train", config, *flags, "-o", "use_gpu=true", "use_ema=true")
    assert status == 0, output
    return config, output


@pytest.fixture
def config(tmp_path):
    write_data(tmp_path)
    return write_config(tmp_path, "retinanet", epoch=1)


def weights_of(config, name):
    return config.parent / "out" / config.stem / f"{name}.pdparams"


def test_train_leaves_checkpoints_best_model_and_log(trained):
    config, output = trained
    saved = {path.name for path in weights_of(config, "0").parent.iterdir()}
    kinds = ("pdparams", "pdopt", "pdema")
    assert saved == {f"{name}.{kind}" for name in ("0", "model_final", "best_model") for kind in kinds}
    assert list((config.parent / "vdl").iterdir())
    assert re.search(r"Epoch: \[1\] \[1/2\] learning_rate: 0\.001000 loss_mask: \d\.\d+ .* eta: \d:\d\d:\d\d", output)
    if not paddle.is_compiled_with_cuda():
        assert "this Paddle has no CUDA: running on the CPU" in output
        assert "--amp has no effect on a CPU" in output


def precisions(output):
    return re.findall(r"Average Precision .*IoU=0\.50:0\.95 \| area=   all .* = (-?\d\.\d+)", output)


# Of a checkpoint that has all: nothing is downloaded, or missed, that it would replace.
MISSING = "CycleMLP.pretrained=missing.pdparams"


def test_eval_gives_the_precision_that_training_gave_and_given_weights_leave_the_pretrained_backbone_out(trained):
    config, output = trained
    best = re.findall(r"Best test bbox ap is (\d\.\d+)", output)[-1]
    status, output = det("eval", config, "-o", f"weights={weights_of(config, 'best_model')}", MISSING, "--classwise")
    assert status == 0, output
    assert precisions(output)[0] == best
    assert len(precisions(output)) == 2
    assert "per-category PR curve" in output


def test_eval_writes_predictions_that_it_scores_again(trained):
    config, _ = trained
    folder = config.parent / "predictions"
    flags = ["--output_eval", folder, "-o", f"weights={weights_of(config, 'best_model')}"]
    status, first = det("eval", config, *flags)
    assert status == 0, first
    assert {path.name for path in folder.iterdir()} == {"bbox.json", "mask.json"}
    status, second = det("eval", config, *flags, "--json_eval")
    assert status == 0, second
    assert precisions(second) == precisions(first)
    (folder / "bbox.json").unlink()
    (folder / "mask.json").unlink()
    status, output = det("eval", config, *flags, "--json_eval")
    assert status == 1
    assert "has none of proposal.json, bbox.json, mask.json" in output


def test_resume_goes_on_after_the_checkpoint(trained):
    config, _ = trained
    flags = ["-r", weights_of(config, "0"), "-o", "save_dir=resumed", "use_ema=true"]
    status, output = det("train", config, *flags)
    assert status == 0, output
    assert re.findall(r"Epoch: \[(\d+)\]", output) == ["1", "1"]
    states = [
        paddle.load(str(folder / config.stem / "model_final.pdopt"))["last_epoch"]
        for folder in (config.parent / "out", config.parent / "resumed")
    ]
    assert states == [2, 2]


def test_infer_draws_boxes_labels_and_masks_and_given_weights_leave_the_pretrained_backbone_out(trained):
    config, _ = trained
    folder = config.parent / "pictures"
    flags = ["--infer_img", config.parent / "train" / "000000.png", "--output_dir", folder, "--save_results", "True"]
    best = f"weights={weights_of(config, 'best_model')}"
    status, output = det("infer", config, *flags, "--draw_threshold", "0.05", "-o", best, MISSING)
    assert status == 0, output
    with Image.open(config.parent / "train" / "000000.png") as file:
        source = fitted(file.convert("RGB"))  # which a small picture is enlarged to; a legend comes below
    scale, rows = source.width / file.width, source.height
    picture = np.asarray(Image.open(folder / "000000.png"), "int64")[:rows]
    boxes = [box for box in json.loads((folder / "bbox.json").read_text()) if box["score"] >= 0.05]
    assert boxes
    assert json.loads((folder / "mask.json").read_text())
    painted = np.abs(picture - np.asarray(source)).sum(-1) > 0
    x, y, width, height = (round(scale * value) for value in boxes[-1]["bbox"])  # the last that is drawn, so on top
    inside = [row for row in (y, y + height) if 0 <= row < len(painted)]
    assert any(painted[row, max(0, x) : x + width].mean() > 0.9 for row in inside)
    status, output = det("infer", config, *flags, "--draw_threshold", "1.0", "-o", best)
    assert status == 0, output
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "000000.png"))[:rows], np.asarray(source))


def test_pretrained_backbone_is_where_training_begins(config):
    source = paddle.load(str(save_backbone(config.parent)))
    flags = ["-o", f"CycleMLP.pretrained={config.parent / 'backbone.pdparams'}", "LearningRate.base_lr=1e-30"]
    status, output = det("train", config, *flags)
    assert status == 0, output
    saved = paddle.load(str(weights_of(config, "model_final")))
    for name in ("patch_embed.proj.weight", "network.6.1.mlp.fc2.weight", "norm6.weight"):
        np.testing.assert_allclose(saved[f"backbone.{name}"].numpy(), source[name].numpy(), atol=1e-20, err_msg=name)


def save_backbone(folder):
    from cyclemlp_backbones import build_backbone

    path = folder / "backbone.pdparams"
    paddle.save(build_backbone("b0").state_dict(), str(path))
    return path


def test_a_data_set_may_have_its_class_as_a_tag(config):
    path = rewrite(config, "TestDataset:", "TestDataset: !ImageFolder")  # as PaddleDetection's own configurations do
    status, output = det("export", path, "-o", "weights=none")
    assert status == 1
    assert "error: no weights file none.pdparams" in output


def misnamed_file(config):
    return [config.with_name("retinnet.yml")], r"no configuration file .*; did you mean retinanet\.yml"


def mistyped_module(config):
    return [rewrite(config, "CycleMLP:", "CycleMPL:")], r"nobody reads 'CycleMPL'; did you mean CycleMLP\?"


def mistyped_argument(config):
    return [rewrite(config, "drop_path_rate:", "drop_pathrate:")], "unexpected keyword argument 'drop_pathrate'"


def part_of_a_configuration(config):
    part = config.with_name("part.yml")
    part.write_text("epoch: 1\n")
    return [part], "names no architecture"


def broken_yaml(config):
    return [rewrite(config, "epoch: 1", "epoch: [")], r"retinanet\.yml: ParserError"


def unknown_option(config):
    return [config, "-o", "epochs=3"], r"-o epochs: the configuration has no such key; did you mean epoch\?"


def unknown_argument(config):
    return [config, "-o", "CycleMLP.depth=3"], r"-o CycleMLP\.depth: CycleMLP takes arch, drop_path_rate"


def too_few_classes(config):
    return [config, "-o", "num_classes=3"], "num_classes is 3, but .* has 10 categories; set num_classes: 10"


def batch_larger_than_data(config):
    return [config, "-o", "TrainReader.batch_size=9"], "4 training images do not fill one batch of 9 per device"


def no_data(config):
    option = f"TrainDataset.dataset_dir={config.parent / 'nowhere'}"
    return [config, "-o", option], r"no annotation file .*nowhere/annotations/instances_train\.json"


def no_data_for_evaluation(config):
    option = "EvalDataset.anno_path=annotations/instances_test.json"
    return [config, "--eval", "-o", option], r"no annotation file .*/instances_test\.json; -o EvalDataset\.dataset_dir="


def missing_backbone(config):
    return [config, "-o", "CycleMLP.pretrained=b9.pdparams"], r"no weights file b9\.pdparams"


def missing_weights(config):
    return [config, "-o", "pretrain_weights=x"], r"no weights file x\.pdparams; -o pretrain_weights=FILE"


def weights_of_another_network(config):
    return [config, "-o", f"pretrain_weights={other_weights(config)}"], r"do not fit, nothing was loaded\s+missing"


def resume_without_state(config):
    return [config, "-r", other_weights(config)], r"other\.pdopt.*such files; .* has no whole"


def resume_from_nothing(config):
    return [config, "-r", "x.pdparams"], r"no weights file x\.pdparams"


MISTAKES = [
    misnamed_file,
    mistyped_module,
    mistyped_argument,
    part_of_a_configuration,
    broken_yaml,
    unknown_option,
    unknown_argument,
    too_few_classes,
    batch_larger_than_data,
    no_data,
    no_data_for_evaluation,
    missing_backbone,
    missing_weights,
    weights_of_another_network,
    resume_without_state,
    resume_from_nothing,
]


def rewrite(config, old, new):
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    return config


def other_weights(config):
    path = config.parent / "other.pdparams"
    paddle.save({"fc.weight": paddle.zeros([3])}, str(path))
    return path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_explained_with_exit_status_1(config, mistake):
    (path, *flags), message = mistake(config)
    status, output = cyclemlp("det", "train", "-c", path, *flags, cwd=config.parent)
    assert status == 1, output
    assert re.search("cyclemlp det: error: .*" + message, output, re.DOTALL), output
    assert not (config.parent / "out").exists()


SCRIPT = """
import sys
from ppdet.core.workspace import load_config
from ppdet.engine import Trainer
Trainer(load_config(sys.argv[2]), mode="train").train()
"""


@pytest.mark.parametrize(
    ("how", "off", "told"), [("action", "", True), ("script", "", True), ("script", "save_dir", False)]
)
def test_a_folder_that_takes_no_checkpoints_is_told_before_training(config, how, off, told):
    (config.parent / "out").write_text("mine")
    (config.parent / "train.py").write_text(SCRIPT)  # in short, a checkout's
    arguments = ["train" if how == "action" else config.parent / "train.py", "-c", config]
    environment = {"CYCLEMLP_PADDLEDET_REPAIRS_OFF": off}
    status, output = cyclemlp("det", *arguments, cwd=config.parent, environment=environment)
    assert status == 1
    assert ("retinanet takes no checkpoints" in output) == (not off)
    assert ("Epoch" in output) == bool(off)
    assert (config.parent / "out").read_text() == "mine"


@pytest.mark.parametrize("how", ["action", "script"])
def test_a_torn_checkpoint_is_not_resumed_and_the_last_whole_one_named(config, how):
    folder = config.parent / "out" / "retinanet"
    folder.mkdir(parents=True)
    for name, end in (("0", None), ("1", -1)):
        (folder / f"{name}.pdparams").write_bytes(pickle.dumps({}))
        (folder / f"{name}.pdopt").write_bytes(pickle.dumps({"last_epoch": 0})[:end])
    (config.parent / "train.py").write_text("print('begun')")
    action = "train" if how == "action" else config.parent / "train.py"
    status, output = det(action, config, "-r", folder / "1.pdparams")
    assert status == 1
    assert re.search(r"1\.pdopt: .*; go on with -r .*retinanet/0\.pdparams\n", output), output
    assert "begun" not in output


def test_weights_of_another_detector_are_refused(trained, config):
    trained_config, _ = trained
    for action in ("eval", "infer", "export"):
        flags = ["--infer_dir", config.parent / "val"] if action == "infer" else []
        status, output = det(action, config, *flags, "-o", f"weights={weights_of(trained_config, 'model_final')}")
        assert status == 1
        assert re.search(r"does not fit the RetinaNet of the configuration: missing \(\d+\): ", output)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give an image with --infer_img or a folder of images with --infer_dir"),
        (["--infer_img", "x.png"], r"no image --infer_img x\.png"),
        (["--infer_dir", "annotations"], r"no image \(.*\) in --infer_dir annotations"),
        (["--infer_dir", "val", "-o", "TestDataset.anno_path=x.json"], r"no file .*x\.json with the names of the 10"),
        (["--infer_dir", "val", "-o", "weights=null"], "the configuration gives no weights"),
    ],
)
def test_infer_without_what_it_needs_is_an_error(config, flags, message):
    status, output = det("infer", config, *flags)
    assert status == 1
    assert re.search(message, output)


def test_slicing_without_what_it_needs_is_an_error(config):
    for action, flags in (("eval", []), ("infer", ["--infer_dir", "val"])):
        status, output = det(action, config, *flags, "--slice_infer")
        assert status == 1
        assert "--slice_infer cuts images with the package sahi: pip install sahi" in output
    (config.parent / "sahi.py").write_text("")  # in the way of imports, to come to what is checked after it
    run = cyclemlp_afresh("det", "eval", "-c", config, "--slice_infer", cwd=config.parent)
    assert run.returncode == 1
    assert "EvalDataset that cuts its images, name: SlicedCOCODataSet; it is COCODataSet" in run.stderr


def test_wrong_calls_have_exit_status_2(capsys):
    assert main(["det"]) == 2
    assert main(["det", "evla"]) == 2
    assert "did you mean eval?" in capsys.readouterr().err
    for flags in (["--confg", "x.yml"], []):
        with pytest.raises(SystemExit) as stopped:
            main(["det", "train", *flags])
        assert stopped.value.code == 2


def test_script_runs_with_its_checkouts_own_ppdet(tmp_path):
    import ppdet

    checkout = tmp_path / "PaddleDetection"
    shutil.copytree(Path(ppdet.__file__).parent, checkout / "ppdet", ignore=shutil.ignore_patterns("__pycache__"))
    with (checkout / "ppdet" / "__init__.py").open("a") as init:
        init.write("\nSTAND_IN = True\n")
    script = checkout / "tools" / "train.py"
    script.parent.mkdir()
    script.write_text(
        "import sys, ppdet\n"
        "from ppdet.core.workspace import create\n"
        "if __name__ == '__main__':\n"
        "    print(ppdet.__file__, ppdet.STAND_IN, create('CycleMLP').out_shape[3].channels, sys.argv[1:])\n"
        "    sys.exit(7)\n"
    )
    run = cyclemlp_afresh("det", script, "-c", "x.yml", cwd=tmp_path)
    assert run.returncode == 7, run.stderr
    assert run.stdout.split("\n")[-2] == f"{checkout / 'ppdet' / '__init__.py'} True 512 ['-c', 'x.yml']"


def test_interrupt_names_the_checkpoint_to_resume_from(config):
    command = [sys.executable, "-m", "cyclemlp_backbones", "det", "train", "-c", str(config), "-o", "epoch=10000"]
    folder = config.parent / "out" / "retinanet"
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=REPOSITORY
    ) as process:
        try:
            for _ in range(3000):
                if (folder / "1.pdopt").exists() or process.poll() is not None:
                    break
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    weights = Path(re.search(r"interrupted; go on with -r (.*)", errors)[1])
    assert weights.is_file()
    assert weights.with_suffix(".pdopt").is_file()
