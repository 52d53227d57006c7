"""The commands of docs/pretraining.md, as the program would read them."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from classification import commands, inference, lists
from classification.metrics import Evaluation

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "pretraining.md"


def documented(start):
    """The commands of the page's code blocks that contain `start`, with the shell's variables put in."""
    text = PAGE.read_text()
    lines = [line.strip() for block in re.findall(r"```\n(.*?)```", text, re.S) for line in block.splitlines()]
    data = next(line for line in lines if line.startswith("DATA=")).removeprefix("DATA=").strip('"')
    found = [line for line in lines if start in line and not line.startswith("#")]
    return [shlex.split(line.replace("$DATA", data).replace("$b", "3"), comments=True) for line in found]


def test_training_commands_have_the_recipes_global_batch():
    found = documented("train.py") + documented("classification train") + documented("cyclemlp cls train")
    batches = []
    for words in found:
        start = next(n for n, word in enumerate(words) if word in ("classification/train.py", "train"))
        config = commands.train_config(words[start + 1 :])
        devices = words[words.index("--devices") + 1].count(",") + 1 if "--devices" in words else 1
        nodes = int(words[words.index("--nnodes") + 1]) if "--nnodes" in words else 1
        batches.append(config.data.batch_size * config.optimizer.accumulate * devices * nodes)
        assert (config.data.train_list, config.data.val_images) == ("train.txt", "IMAGENET/val")
        assert (config.distillation.teacher_weights is not None) == ("distill" in " ".join(words))
    assert batches == [1024] * 5


def test_the_evaluation_command_reads_published_weights(monkeypatch):
    seen = []

    def evaluate(config, world):
        seen.append(config)
        return Evaluation(82.4, 96.0, 0.7, 50_000)

    monkeypatch.setattr(inference, "evaluate_weights", evaluate)
    (words,) = documented("classification eval")
    assert commands.main(words[words.index("eval") :]) == 0
    assert (seen[0].model.variant, seen[0].model.pretrained) == ("b3", "published")
    assert (seen[0].data.val_images, seen[0].data.val_list) == ("IMAGENET/val", "val.txt")


def test_the_lists_command_parses():
    parser = argparse.ArgumentParser()
    lists.add_arguments(parser)
    (words,) = documented("classification lists")
    arguments = parser.parse_args(words[words.index("lists") + 1 :])
    assert (arguments.train, arguments.val, arguments.output) == ("IMAGENET/train", "IMAGENET/val", ".")


@pytest.mark.parametrize("path", re.findall(r"classification/configs/[a-z0-9_$]+\.yml", PAGE.read_text()))
def test_named_configurations_exist(path):
    assert (ROOT / path.replace("$b", "1")).is_file()
