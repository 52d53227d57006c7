"""examples/serve's page in a real browser: `make test-serve`, which needs Chromium and playwright.

CHROMIUM names the browser's program; SCREENSHOT the file of a picture of the page.
"""

import os
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from examples.serve.latency import serving
from tests.deploy.conftest import CLASSES, FORMATS
from tests.deploy.test_serve import picture

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def page(classifier):
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.fail(f"no browser: install one of {', '.join(NAMES)}, or name its program in CHROMIUM")
    with serving(classifier / FORMATS[-1], "--max-pixels", 50_000) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 800})
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(address)
        yield page
        browser.close()


def choose(page, name, content):
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})


def test_a_chosen_image_gets_its_overlay_and_its_results(page):
    expect(page.locator("#model")).to_contain_text("CycleNet, task cls, 4 classes")
    choose(page, "photo.png", picture(0, (160, 120)))
    expect(page.locator("#overlay")).to_be_visible()
    expect(page.locator("#said")).to_contain_text("photo.png: 160 x 120 pixels")
    assert page.locator("#overlay").evaluate("image => image.complete && image.naturalWidth") == 360
    shown = page.locator("#results tr").all_inner_texts()
    assert len(shown) == 1 + len(CLASSES)
    assert all(any(name in line for line in shown[1:]) for name in CLASSES)
    if "SCREENSHOT" in os.environ:
        page.screenshot(path=os.environ["SCREENSHOT"])
    assert page.errors == []


def test_what_is_refused_is_said(page):
    choose(page, "large.png", picture(0, (400, 300)))
    expect(page.locator("#said.error")).to_contain_text("400 x 300 pixels are more than --max-pixels 50000")
    choose(page, "text.png", b"no picture")
    expect(page.locator("#said.error")).to_contain_text("UnidentifiedImageError")
    expect(page.locator("#overlay")).to_be_hidden()
    choose(page, "again.png", picture(1))
    expect(page.locator("#overlay")).to_be_visible()
    assert page.errors == []
