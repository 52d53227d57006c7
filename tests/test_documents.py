"""The READMEs and the model cards are true to the code and to each other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import paddle
import pytest

from cyclemlp_backbones import VARIANTS
from cyclemlp_backbones.cli import COMMANDS
from cyclemlp_backbones.complexity import multiply_adds
from cyclemlp_backbones.weights.loading import PUBLISHED

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402

FOREIGN_MESSAGES = {
    "numpy.core.multiarray failed to import",
    "'FieldDescriptor' object has no attribute 'label'",
    "UnboundLocalError: mean_iou",
    "'list' object has no attribute 'shape'",
    "ConvertPirAttribute2RuntimeAttribute",
}
"""What docs/faq.md quotes of other programs."""

READMES = [path.read_text(encoding="utf-8") for path in generate.READMES.values()]
PAGES = [ROOT / "README.md", ROOT / "README_zh.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("[CS]*.md")]


def test_cards_are_of_all_variants_and_have_the_codes_figures():
    assert [card["variant"] for card in generate.cards()] == list(VARIANTS)
    for card in generate.cards():
        variant = VARIANTS[card["variant"]]
        assert card["parameters"] == variant.parameters
        assert card["multiply_adds"] == multiply_adds(variant)
        assert card["imagenet_top1"]["paper"] == variant.paper_top1
        urls = [file["url"] for file in card["published"] if "url" in file]
        assert urls == [PUBLISHED[name] for name in PUBLISHED if name == card["variant"]]


def test_documents_show_the_cards_and_the_settings():
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == generate.configuration()
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == generate.details()
    for language, readme in generate.READMES.items():
        assert generate.PART.read(readme) == generate.table(language)


def test_the_readme_fits_two_screens():
    assert [text.count("\n") <= 150 for text in READMES] == [True, True]


def test_both_languages_say_the_same():
    """The same sections, code, links, pictures and figures, in the same order."""
    compare(*READMES)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "zh").glob("*.md")), ids=lambda path: path.name)
def test_a_chinese_page_says_what_the_english_one_does(page):
    chinese = page.read_text(encoding="utf-8").replace("](../", "](").replace("`../", "`")
    compare((ROOT / "docs" / page.name).read_text(encoding="utf-8"), chinese)


def compare(english, chinese):
    def sections(text):
        return [len(heading) for heading in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), re.M)]

    def code(text):
        lines = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()]
        return [line.split("#")[0].rstrip() for line in lines]

    def tables(text):
        return [re.findall(r"\d[\d.]*", line) for line in text.splitlines() if line.startswith("|")]

    assert sections(english) == sections(chinese)
    assert code(english) == code(chinese)
    assert tables(english) == tables(chinese)
    for links in (r"\]\((?!README)([^)]*)\)", r"`([^`]+)`"):
        prose = (
            re.sub(r"\s+", " ", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)) for text in (english, chinese)
        )
        one, other = (sorted(re.findall(links, text)) for text in prose)
        assert one == other


def test_every_repair_is_documented():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "cyclemlp_backbones" / "adapters").rglob("*.py")]
    repairs = {name for source in sources for name in re.findall(r'(?:REPAIRS\.row|Repair)\(\s*"(\w+)"', source)}
    assert len(repairs) > 20
    assert repairs - set(re.findall(r"`(\w+)`", (ROOT / "docs" / "support.md").read_text(encoding="utf-8"))) == set()


def test_questions_quote_our_messages_as_they_are():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cyclemlp_backbones").rglob("*.py"))
    questions = re.findall(r"^\*\*`(.+?)`", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.M)
    assert [text for text in questions if text not in FOREIGN_MESSAGES and text not in sources] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))]
    assert [link for link in links if not (page.parent / link.split("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_targets_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)[0].split())
    blocks = re.findall(r"^```.*?^```", text, re.S | re.M)
    code = "\n".join([*blocks, *re.findall(r"`[^`\n]+`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))])
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z-]+)", code, re.M)) <= targets
    assert set(re.findall(r"(?:^|`|\()cyclemlp ([a-z][a-z-]*)", text, re.M)) - {"backbones"} <= {*COMMANDS, "variants"}


def test_the_readmes_python_runs(capsys):
    paddle.seed(0)
    for text in (*READMES, (ROOT / "docs" / "python.md").read_text(encoding="utf-8")):
        (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
        exec(code, {})
    assert re.search(r"^4 64 .*\[1, 64, 56, 80\]", capsys.readouterr().out)


@pytest.mark.slow
def test_the_first_five_minutes_go_as_both_languages_say(tmp_path):
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("quickstart.md", "zh/quickstart.md")]
    english, chinese = (re.findall(r"```\n(pip install.*?)```", page, re.S)[0] for page in pages)
    assert english == chinese
    commands = english.partition("\n")[2].replace("cyclemlp ", f"{sys.executable} -m cyclemlp_backbones ")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "results" / "overlays").glob("*.jpg"))) == 8
