"""`cyclemlp seg`: what each action leaves behind, and what a mistake is told."""

from __future__ import annotations

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
import paddleseg
import pytest
import yaml
from PIL import Image

from cyclemlp_backbones.adapters.paddleseg import SemanticFPN
from cyclemlp_backbones.cli import main
from cyclemlp_backbones.factory import build_backbone
from cyclemlp_backbones.pictures import class_palette
from tests.adapters.tiny_seg import (
    BACKBONE,
    NUM_CLASSES,
    SEMANTIC_FPN,
    SIZE,
    cyclemlp,
    write_config,
    write_data,
)


def seg(action, config, *flags):
    return main(["seg", action, "--config", str(config), *map(str, flags)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A configuration whose model was trained for four iterations, with all that training can leave behind."""
    folder = tmp_path_factory.mktemp("trained")
    write_data(folder)
    config = write_config(folder, SEMANTIC_FPN)
    flags = [
        "--save_dir",
        folder / "out",
        "--do_eval",
        "--use_ema",
        "--use_vdl",
        "--save_interval",
        1,
        "--log_iters",
        1,
    ]
    run = cyclemlp(
        *("seg", "train", "--config", config, *flags, "--keep_checkpoint_max", 2, "--precision", "fp16", "--seed", 3),
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr
    return config, run


@pytest.fixture
def config(tmp_path):
    write_data(tmp_path)
    return write_config(tmp_path, SEMANTIC_FPN)


@pytest.mark.slow
def test_train_leaves_checkpoints_best_model_log_and_eta(trained):
    config, run = trained
    out = config.parent / "out"
    kept = {path.name for path in out.iterdir() if path.is_dir()}
    assert kept == {"iter_3", "iter_4", "best_model", "ema_best_model"}
    assert list(out.glob("vdlrecords*"))
    assert re.search(r"iter: 4/4, loss: \d\.\d+.* ETA \d\d:\d\d:\d\d", run.stdout)
    names = paddle.load(str(out / "iter_4" / "model.pdparams"))
    assert "backbone.patch_embed.proj.weight" in names
    if not paddle.is_compiled_with_cuda():
        assert "--precision fp16 has no effect on a CPU" in run.stderr


# For a checkpoint that has all: nothing is downloaded, or missed, that it would replace.
MISSING = ["--opts", "model.backbone.pretrained=missing.pdparams", "model.pretrained=missing.pdparams"]


@pytest.mark.slow
def test_val_gives_the_miou_that_training_gave_and_given_weights_leave_the_pretrained_backbone_out(trained, capsys):
    config, run = trained
    best = re.findall(r"The model with the best validation mIoU \((\d\.\d+)\) was saved", run.stdout)[-1]
    capsys.readouterr()
    weights = config.parent / "out" / "best_model" / "model.pdparams"
    assert seg("val", config, "--model_path", weights, *MISSING) == 0
    assert f"mIoU: {best}" in capsys.readouterr().out


@pytest.mark.slow
def test_val_with_windows_and_augmentation_runs(trained, capsys):
    config, _ = trained
    windows = ["--is_slide", "--crop_size", 48, 48, "--stride", 32, 32]
    assert (
        seg("val", config, *windows, "--aug_eval", "--scales", 1.0, 1.25, "--flip_horizontal", "--auc_roc", "True") == 0
    )
    assert re.search(r"#Images: 4 mIoU: .* Auc_roc: \d\.\d+", capsys.readouterr().out)


@pytest.mark.slow
def test_predict_writes_classes_in_the_given_colours_or_those_of_the_other_commands(trained):
    config, _ = trained
    weights = config.parent / "out" / "best_model" / "model.pdparams"
    given = [0, 0, 0, 255, 0, 0, 0, 0, 255]
    model = SemanticFPN(NUM_CLASSES, build_network(), pretrained=weights)
    model.eval()
    pixels = np.asarray(Image.open(config.parent / "0.png"), "float32").transpose(2, 0, 1)[None]
    (logits,) = model(paddle.to_tensor((pixels / 255 - 0.5) / 0.5))
    classes = logits.numpy()[0].argmax(0)
    for folder, more, colours in (("a", ["--custom_color", *given], given), ("b", [], class_palette(NUM_CLASSES))):
        flags = ["--image_path", config.parent / "0.png", "--save_dir", config.parent / folder]
        assert seg("predict", config, "--model_path", weights, *flags, *more) == 0
        picture = Image.open(config.parent / folder / "pseudo_color_prediction" / "0.png")
        np.testing.assert_array_equal(np.asarray(picture), classes)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.reshape(colours, (3, 3))[classes])
        assert Image.open(config.parent / folder / "added_prediction" / "0.png").size == (SIZE, SIZE)


def build_network():
    network = build_backbone("b0")
    network.feat_channels = [spec.channels for spec in network.stage_specs]
    return network


def predictor(folder: Path, files: dict):
    inference = paddle.inference
    config = inference.Config(str(folder / files["model"]), str(folder / files["params"]))
    config.disable_gpu()
    # oneDNN is on by default on a CPU, and fails on several of Paddle's own operators.
    config.disable_onednn() if hasattr(config, "disable_onednn") else config.disable_mkldnn()
    return inference.create_predictor(config)


@pytest.mark.slow
def test_exported_model_equals_dygraph_at_three_sizes_and_given_weights_leave_the_pretrained_backbone_out(trained):
    config, _ = trained
    folder, weights = config.parent / "inference", config.parent / "out" / "iter_4" / "model.pdparams"
    folder.mkdir()
    (folder / "model.pdmodel").write_text("of an older export")
    assert seg("export", config, "--model_path", weights, "--save_dir", folder, "--output_op", "none", *MISSING) == 0
    deploy = yaml.safe_load((folder / "deploy.yaml").read_text())["Deploy"]
    assert sorted(path.suffix for path in folder.glob("model.*") if path.suffix != ".info") == sorted(
        [Path(deploy["model"]).suffix, ".pdiparams"]
    )
    assert deploy["transforms"] == [{"type": "Normalize"}]
    run = predictor(folder, deploy)
    model = SemanticFPN(NUM_CLASSES, build_network(), pretrained=weights)
    model.eval()
    for height, width in ((64, 64), (96, 160), (75, 101)):
        image = np.random.RandomState(height).standard_normal((2, 3, height, width)).astype("float32")
        actual = (
            run.run([paddle.to_tensor(image)])[0].numpy() if hasattr(run, "run_tensors") else run_predictor(run, image)
        )
        assert actual.shape == (2, NUM_CLASSES, height, width)
        np.testing.assert_allclose(actual, model(paddle.to_tensor(image))[0].numpy(), rtol=0, atol=1e-5)


def run_predictor(run, image):
    handle = run.get_input_handle(run.get_input_names()[0])
    handle.copy_from_cpu(image)
    run.run()
    return run.get_output_handle(run.get_output_names()[0]).copy_to_cpu()


def test_opts_override_the_configuration(config, tmp_path):
    source = build_backbone("b0")
    paddle.save(source.state_dict(), str(tmp_path / "b0.pdparams"))
    flags = ["--save_dir", tmp_path / "out", "--iters", 1, "--learning_rate", 1e-30]
    assert seg("train", config, *flags, "--opts", f"model.backbone.pretrained={tmp_path / 'b0.pdparams'}") == 0
    saved = paddle.load(str(tmp_path / "out" / "iter_1" / "model.pdparams"))
    for name, value in source.state_dict().items():
        np.testing.assert_allclose(saved[f"backbone.{name}"].numpy(), value.numpy(), atol=1e-20, err_msg=name)


def misnamed_file(config):
    return [config.with_name("confg.yml")], r"no configuration file .*confg\.yml; did you mean config\.yml"


def unknown_backbone(config):
    write_config(config.parent, {**SEMANTIC_FPN, "backbone": {"type": "CycleMLP_B7"}})
    return [config], r"component \(CycleMLP_B7\) was not found.*did you mean CycleMLP_B"


def unknown_argument(config):
    write_config(config.parent, {**SEMANTIC_FPN, "backbone": {**BACKBONE, "drop_pathrate": 0.1}})
    return [config], r"unexpected keyword argument 'drop_pathrate'"


def missing_part(config):
    config.write_text(
        yaml.safe_dump({key: value for key, value in yaml.safe_load(config.read_text()).items() if key != "loss"})
    )
    return [config], r"config\.yml: .*No loss specified"


def broken_yaml(config):
    config.write_text("model: {type: [")
    return [config], r"config\.yml: ParserError: while parsing"


def resume_from_best_model(config):
    (config.parent / "best_model").mkdir()
    return [config, "--resume_model", config.parent / "best_model"], r"it takes a folder such as output/iter_1000"


def resume_from_interrupted_save(config):
    (config.parent / "iter_5").mkdir()
    return [
        config,
        "--resume_model",
        config.parent / "iter_5",
    ], r"iter_5/model\.pdparams.*such files; .* has no whole checkpoint"


def resume_from_torn_save(config):
    """The newest of two checkpoints was cut short: the one before is named."""
    for number, end in ((5, None), (6, -1)):
        folder = config.parent / f"iter_{number}"
        folder.mkdir()
        (folder / "model.pdparams").write_bytes(pickle.dumps({}))
        (folder / "model.pdopt").write_bytes(pickle.dumps({"LR_Scheduler": {"last_epoch": 3}})[:end])
    resume = ["--resume_model", config.parent / "iter_6"]
    return [config, *resume], r"iter_6/model\.pdopt: .*; go on with --resume_model .*iter_5\n"


def batch_larger_than_data(config):
    return [config, "--batch_size", 9], r"4 training images do not fill one batch of 9"


MISTAKES = [
    misnamed_file,
    unknown_backbone,
    unknown_argument,
    missing_part,
    broken_yaml,
    resume_from_best_model,
    resume_from_interrupted_save,
    resume_from_torn_save,
    batch_larger_than_data,
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_explained_with_exit_status_1(config, capsys, mistake):
    arguments, message = mistake(config)
    assert seg("train", *arguments, "--save_dir", config.parent / "out") == 1
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (config.parent / "out").exists()


@pytest.mark.parametrize("name", ["out", "out/deeper"])
def test_a_file_in_place_of_save_dir_is_kept(config, capsys, name):
    file = config.parent / "out"
    file.write_text("mine")
    assert seg("train", config, "--save_dir", config.parent / name) == 1
    assert re.search(r"save_dir .*out.* takes no checkpoints: .*/out is no folder; give", capsys.readouterr().err)
    assert file.read_text() == "mine"
    script = config.parent / "tools" / "train.py"
    script.parent.mkdir()
    script.write_text("print('begun')")
    run = cyclemlp("seg", script, "--save_dir", config.parent / name, cwd=config.parent)
    assert (run.returncode, run.stdout) == (1, "")
    assert file.read_text() == "mine"


def test_weights_of_another_model_are_refused(config, capsys, tmp_path):
    paddle.save(SemanticFPN(NUM_CLASSES + 1, build_network()).state_dict(), str(tmp_path / "other.pdparams"))
    assert seg("val", config, "--model_path", tmp_path / "other.pdparams") == 1
    assert "misshapen (2): head.conv_seg.weight is [4, 128, 1, 1], needs [3, 128, 1, 1]" in capsys.readouterr().err


def test_wrong_calls_have_exit_status_2(capsys):
    assert main(["seg"]) == 2
    assert main(["seg", "trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["seg", "train", "--confg", "x.yml"])
    assert stopped.value.code == 2


def test_missing_paddleseg_is_an_error_with_the_remedy(config, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("cyclemlp_backbones.adapters.paddleseg")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "paddleseg.cvlibs", None)
    assert seg("val", config) == 1
    assert 'PaddleSeg is not installed; `pip install "cyclemlp-backbones[seg]"`' in capsys.readouterr().err


def test_missing_script_is_an_error(capsys, tmp_path):
    assert main(["seg", str(tmp_path / "tools" / "train.py")]) == 1
    assert "no script" in capsys.readouterr().err


@pytest.mark.slow
def test_script_runs_with_its_checkouts_own_paddleseg(tmp_path):
    shutil.copytree(
        Path(paddleseg.__file__).parent, tmp_path / "paddleseg", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (tmp_path / "paddleseg" / "__init__.py").open("a") as init:
        init.write("\nSTAND_IN = True\n")
    script = tmp_path / "tools" / "train.py"
    script.parent.mkdir()
    script.write_text(
        "import sys, paddleseg\n"
        "from paddleseg.cvlibs import manager\n"
        "if __name__ == '__main__':\n"
        "    print(paddleseg.__file__, paddleseg.STAND_IN, manager.BACKBONES['CycleMLP_B1'].__name__, sys.argv[1:])\n"
        "    sys.exit(7)\n"
    )
    run = cyclemlp("seg", script, "--config", "x.yml", cwd=tmp_path.parent)
    assert run.returncode == 7, run.stderr
    assert run.stdout.split("\n")[-2] == (
        f"{tmp_path / 'paddleseg' / '__init__.py'} True CycleMLP_B1 ['--config', 'x.yml']"
    )


@pytest.mark.slow
def test_interrupt_names_the_checkpoint_to_resume_from(config):
    out = config.parent / "out"
    flags = ["--config", config, "--save_dir", out, "--iters", "10000", "--save_interval", "1"]
    command = [sys.executable, "-m", "cyclemlp_backbones", "seg", "train", *map(str, flags)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            for _ in range(3000):
                # The later of two may be half written, the earlier is whole; old ones are deleted.
                if len(list(out.glob("iter_*/model.pdopt"))) >= 2 or process.poll() is not None:
                    break
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    folder = Path(re.search(r"interrupted; go on with --resume_model (.*)", errors)[1])
    assert (folder / "model.pdparams").is_file()
    assert (folder / "model.pdopt").is_file()
