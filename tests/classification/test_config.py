import re
from pathlib import Path

import pytest
import yaml

from classification.augment import EvalTransform
from classification.config import Config
from classification.config_files import differing_keys, dump_yaml, load_config, parse_setting
from classification.trainer import Trainer
from cyclemlp_backbones import VARIANTS
from cyclemlp_backbones.checks import dataclass_from
from tests.classification.tiny import tiny_config

CONFIGS = Path(__file__).resolve().parent.parent.parent / "classification" / "configs"


def test_the_defaults_are_the_papers_recipe():
    config = Config()
    assert config.rates(512)["peak"] == 5e-4
    assert config.rates(1024) == pytest.approx({"peak": 1e-3, "warmup_lr": 1e-6, "min_lr": 1e-5})
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (300, 5)
    assert (config.schedule.warmup_lr, config.schedule.min_lr) == (1e-6, 1e-5)
    assert (config.mix.mixup, config.mix.cutmix, config.mix.switch, config.mix.smoothing) == (0.8, 1.0, 0.5, 0.1)
    assert (config.augment.policy, config.augment.erase) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (config.optimizer.weight_decay, config.model.drop_path_rate, config.ema.decay) == (0.05, 0.1, 0.99996)
    assert (config.data.repeats, config.amp.dtype) == (3, "float16")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_a_plain_and_a_distilling_configuration(variant):
    plain = load_config(str(CONFIGS / f"cyclemlp_{variant}.yml"))
    distilling = load_config(str(CONFIGS / f"cyclemlp_{variant}_distill.yml"))
    assert plain.model.variant == distilling.model.variant == variant
    assert plain.crop_pct == VARIANTS[variant].crop_pct
    assert (plain.distillation.type, distilling.distillation.type) == ("none", "hard")
    assert distilling.distillation.teacher == "RegNetX_4GF"
    recipe = load_config(None, [("model.variant", variant), ("run.output", plain.run.output)])
    assert plain == recipe  # the files spell out the defaults
    assert (CONFIGS / f"cyclemlp_{variant}.yml").read_text().startswith("# python -m classification train --config")


def test_a_base_is_changed_key_by_key(tmp_path):
    (tmp_path / "base.yml").write_text("data: {batch_size: 64, workers: 2}\nschedule: {epochs: 30}\n")
    (tmp_path / "child.yml").write_text("_base_: base.yml\ndata: {workers: 3}\noptimizer: {lr: 1e-8}\n")
    config = load_config(str(tmp_path / "child.yml"), [("schedule.epochs", 20), ("schedule.warmup_epochs", 2)])
    assert (config.data.batch_size, config.data.workers, config.schedule.epochs) == (64, 3, 20)
    assert config.optimizer.lr == 1e-8  # which YAML calls a string
    (tmp_path / "base.yml").write_text("_base_: child.yml\n")
    with pytest.raises(ValueError, match="leads back to itself"):
        load_config(str(tmp_path / "child.yml"))


def test_a_key_in_the_wrong_section_is_named_where_it_belongs(tmp_path):
    for text, message in (
        ("epochs: 3", "unknown key 'epochs'; did you mean schedule.epochs?"),
        ("data: 3", "data is 3; it takes a mapping of keys"),
        ("mix: {cutmix_minmax: 1}", "mix.cutmix_minmax is 1; it takes a list"),
    ):
        (tmp_path / "config.yml").write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            load_config(str(tmp_path / "config.yml"))


def test_the_name_of_a_configuration_that_ships_is_enough(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("cyclemlp_b2.yml").model.variant == "b2"
    (tmp_path / "cyclemlp_b2.yml").write_text("model: {variant: b3}\n")
    assert load_config("cyclemlp_b2.yml").model.variant == "b3"  # one's own comes first
    with pytest.raises(FileNotFoundError, match=r"no configuration .*cyclemlp_b9\.yml; did you mean cyclemlp_b"):
        load_config("cyclemlp_b9.yml")


def test_the_written_configuration_reads_back():
    config = load_config(None, [("mix.cutmix_minmax", [0.2, 0.8]), ("model.pretrained", "a.pdparams")])
    assert dataclass_from(Config, yaml.safe_load(dump_yaml(config))) == config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule.epoch=3", "did you mean epochs?"),
        ("epochs=3", "unknown key 'epochs'"),
        ("scheduel.epochs=3", "unknown key 'scheduel'; did you mean schedule"),
        ("schedule.epochs=many", "schedule.epochs is 'many'; it takes an integer"),
        ("data.max_broken=2", "data.max_broken is 2.0; it takes a value from 0 to 1"),
        ("run.visualdl=1", "run.visualdl is 1; it takes true or false"),
        ("amp.dtype=half", "choose from none, float16, bfloat16"),
        ("schedule.epochs=5", "no epoch is left after the warm-up"),
        ("model.variant=b9", "choose from b0, b1"),
        ("model.depths=[1, 1, 1, 1]", "give all three or none"),
        ("data.input_size=16", "at least 32"),
        ("optimizer.clip_norm=0", "positive number"),
        ("mix.smoothing=1", "not including, 1"),
        ("data.mean=[0.5]", "takes 3 numbers"),
    ],
)
def test_mistakes_are_named(setting, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        load_config(None, [parse_setting(setting)])


def test_only_what_changes_the_weights_counts_as_another_run():
    config = load_config(None, [("mix.mixup", 0.4), ("run.output", "elsewhere"), ("data.workers", 1)])
    tree = yaml.safe_load(dump_yaml(Config()))
    assert differing_keys(tree, config) == ["mix.mixup: 0.8 in the run state, 0.4 now"]


def test_a_laptops_batch_scales_the_ends_of_the_schedule_where_the_peak_would_fall_below_them(digits, tmp_path):
    config = Config()
    assert config.rates(8) == pytest.approx({"peak": 5e-4 / 64, "warmup_lr": 1e-6 / 64, "min_lr": 1e-5 / 64})
    assert config.rates(256) == pytest.approx({"peak": 2.5e-4, "warmup_lr": 1e-6, "min_lr": 1e-5})  # as it was
    trainer = Trainer(tiny_config(digits, tmp_path, optimizer__lr=5e-4))
    assert trainer._lr(2) == pytest.approx(5e-4 / 64)
    with pytest.raises(ValueError, match=r"peak learning rate is 1e-07.*lower these, or raise optimizer.lr"):
        Trainer(tiny_config(digits, tmp_path, optimizer__lr=1e-7, optimizer__lr_batch=8))


def test_both_protocols_of_evaluation():
    resized = {}
    for variant, given in (("b1", None), ("b1", 0.875), ("b5", None)):
        config = load_config(None, [("model.variant", variant), ("data.crop_pct", given)])
        resized[variant, given] = EvalTransform(config.data, crop_pct=config.crop_pct).resized
    assert resized == {("b1", None): 248, ("b1", 0.875): 256, ("b5", None): 256}
