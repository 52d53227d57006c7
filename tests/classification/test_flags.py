"""The predecessor's documented commands, as its README has them, against the settings that a YAML file would hold."""

import shlex

import pytest

from classification import commands
from classification.config_files import load_config

TRAIN = (
    "--train-data-dir /home/aistudio/data/train_data00 --train-txt-path /home/aistudio/train00.txt "
    "--val-data-dir /home/aistudio/data/val_data --val-txt-path /home/aistudio/val.txt "
    "--epochs 2 --batch-size 256 --lr 1e-8 --distillation-type soft "
    "--model-pretrained pretrained/CycleMLP_pretrained/paddle_CycleMLP_B1.pdparams "
    "--teacher-pretrained /home/aistudio/RegNetX_4GF_pretrained.pdparams"
)
MEANT = {
    "data.train_images": "/home/aistudio/data/train_data00",
    "data.train_list": "/home/aistudio/train00.txt",
    "data.val_images": "/home/aistudio/data/val_data",
    "data.val_list": "/home/aistudio/val.txt",
    "schedule.epochs": 2,
    "schedule.warmup_epochs": 0.2,
    "schedule.min_lr": 1e-8 / 50,
    "schedule.warmup_lr": 1e-8 / 500,
    "data.batch_size": 256,
    "optimizer.lr": 1e-8,
    "distillation.type": "soft",
    "distillation.teacher": "RegNetX_4GF",
    "model.pretrained": "pretrained/CycleMLP_pretrained/paddle_CycleMLP_B1.pdparams",
    "distillation.teacher_weights": "/home/aistudio/RegNetX_4GF_pretrained.pdparams",
}


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        ("", {}),
        ("--is_amp True", {"amp.dtype": "float16"}),
        ("--is_amp False", {"amp.dtype": "none"}),
        ("--is_distributed True", {"run.distributed": True}),
        ("--is_distributed False", {"run.distributed": False}),
        (
            "--model CycleMLP_B5 --input-size 384 --num-classes 21841 --output_dir out --distillation-type hard "
            "--distillation-alpha 0.7 --distillation-tau 3 --teacher-model resnet50",
            {
                "model.variant": "b5",
                "data.input_size": 384,
                "model.num_classes": 21841,
                "run.output": "out",
                "distillation.type": "hard",
                "distillation.alpha": 0.7,
                "distillation.tau": 3.0,
                "distillation.teacher": "resnet50",
            },
        ),
    ],
)
def test_training_commands(more, settings):
    config = commands.train_config(shlex.split(f"{TRAIN} {more}"))
    meant = load_config(None, {**MEANT, **settings}.items())
    assert config == meant


def test_the_default_learning_rate_keeps_the_recipes_schedule():
    config = commands.train_config(["--lr", "5e-4", "--epochs", "300"])
    assert config == load_config(None)


def test_the_predecessors_other_flags_set_what_they_meant():
    flags = (
        "--drop 0.0 --opt AdamW --opt-eps 1e-7 --opt-beta1 0.8 --sched CosineAnnealingDecay --lr 1e-3 --eta-min 2e-6 "
        "--last-epoch -1 --start_epoch 0 --color-jitter 0.4 --train-interpolation bilinear --mixup-prob 0.9 "
        "--mixup-switch-prob 0.3 --mixup-mode pair --cutmix-minmax 0.2 0.8 --finetune b1.pdparams --crop-pct 0.875 "
        "--train-data-mode train --val-data-mode val --init_loss_scaling 1024"
    )
    meant = {
        "optimizer.lr": 1e-3,
        "schedule.min_lr": 2e-6,
        "optimizer.epsilon": 1e-7,
        "optimizer.beta1": 0.8,
        "augment.color_jitter": 0.4,
        "augment.interpolation": "bilinear",
        "mix.probability": 0.9,
        "mix.switch": 0.3,
        "mix.mode": "pair",
        "mix.cutmix_minmax": [0.2, 0.8],
        "model.pretrained": "b1.pdparams",
        "data.crop_pct": 0.875,
        "amp.initial_scale": 1024.0,
    }
    assert commands.train_config(shlex.split(flags)) == load_config(None, meant.items())


@pytest.mark.parametrize("door", ["eval", "predict"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_evaluation_commands(door, number, monkeypatch):
    import classification.inference as inference

    seen = []

    def load(config):
        seen.append(config)
        raise OSError("seen")

    monkeypatch.setattr(inference, "_load", load)
    monkeypatch.setattr(inference, "read_samples", lambda *_, **__: None)
    monkeypatch.setattr(inference, "read_list", lambda *_, **__: None)
    monkeypatch.setattr(inference.Path, "is_dir", lambda _: True)
    weights = f"data/CycleMLP_pretrained/paddle_CycleMLP_B{number}.pdparams"
    size = "--batch-size 10" if number > 2 else ""
    command = f"--model CycleMLP_B{number} {size} --model-pretrained {weights} "
    what = "val" if door == "eval" else "test"
    command += f"--{what}-data-dir val --{what}-txt-path val.txt --{what}-data-mode {what} --drop 0"
    assert commands.main([door, *shlex.split(command)]) == 1
    settings = {"model.variant": f"b{number}", "model.pretrained": weights, "data.val_images": "val"}
    settings |= {"data.val_list": "val.txt", **({"data.batch_size": 10} if number > 2 else {})}
    assert seen == [load_config(None, settings.items())]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--is_amp maybe", "it takes true or false"),
        ("--model CycleMLP_B9", "unknown CycleMLP variant"),
        ("--distillation 1", "unrecognized arguments"),
        ("--opt SGD", "argument --opt: 'SGD'; the optimizer is AdamW: --set optimizer"),
        ("--sched StepDecay", "argument --sched: 'StepDecay'; the schedule is a warm-up and a cosine: --set schedule"),
        ("--t-max 100", "argument --t-max: '100'; the cosine ends with the run: --epochs"),
        ("--last-epoch 3", "argument --last-epoch: '3'; a run goes on where it was by itself: --resume auto"),
        ("--start_epoch 3", "argument --start_epoch: '3'; a run goes on where it was by itself: --resume auto"),
        ("--train-data-mode test", "argument --train-data-mode: 'test'; data.train_list has labels"),
        ("--val-data-mode test", "argument --val-data-mode: 'test'; data.val_list has labels"),
        ("--drop 0.1", "argument --drop: '0.1'; the network has no dropout, but stochastic depth: --drop-path"),
    ],
)
def test_wrong_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        commands.train_config(shlex.split(flags))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
