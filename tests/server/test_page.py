"""The page, in a browser."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.local_service import served

from hgt_infer import Generator, SamplingParams

MODEL = "goose"

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STATUS = "the server responded with a status of 400"
SCREENSHOTS = os.environ.get("HGT_INFER_SCREENSHOTS")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, which may raise nothing, complain of nothing but an answer's status, and ask nobody else."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: STATUS in message.text or complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith((address, "data:")) or complaints.append(request.url),
    )
    open_page(page, address)
    yield page
    context.close()
    assert complaints == []


def open_page(page: Any, address: str) -> None:
    """Go to the page and wait for its models: what is written before is refused."""
    page.goto(address)
    page.locator("#model option").first.wait_for(state="attached")


def shoot(page: Any, name: str) -> None:
    """Keep a picture where HGT_INFER_SCREENSHOTS names a folder."""
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS, f"{name}.png"), full_page=True)


def test_five_tweets_grow_and_can_be_copied(page: Any, generator: Generator) -> None:
    page.get_by_label("Beginning of the tweet").fill("My dream")
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Tokens at most").fill("12")
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text=re.compile(r"\d+ tokens in [\d.]+ s: \d+ a second")).wait_for()
    params = SamplingParams(n=5, max_tokens=12, seed=3, temperature=1, top_p=0.95)
    [output] = generator.generate(["My dream"], params)
    expected = ["My dream" + sample.text for sample in output.completions]
    assert page.get_by_role("listitem").locator("p").all_text_contents() == expected
    page.get_by_role("button", name="Copy tweet 2").click()
    page.get_by_role("button", name="Copy tweet 2").filter(has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == expected[1]
    shoot(page, "page")


def test_an_error_is_shown_in_words(page: Any) -> None:
    page.get_by_label("Beginning of the tweet").fill("a " * 999)
    page.get_by_role("button", name="Write").click()
    page.get_by_role("status").filter(has_text=re.compile("no room|tokens")).wait_for()
    assert "wrong" in page.get_by_role("status").get_attribute("class")
    shoot(page, "error")


def test_writing_can_be_stopped(browser: Any, artifact: Path) -> None:
    with Generator(artifact, device="cpu", num_slots=1) as generator, served({MODEL: generator}) as url:
        page = browser.new_page()
        open_page(page, url)
        page.get_by_label("Samples").fill("16")
        page.get_by_label("Tokens at most").fill("512")
        page.get_by_role("button", name="Write").click()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("status").filter(has_text="Stopped.").wait_for()
        assert page.get_by_role("button", name="Stop").is_disabled()
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser: Any, address: str, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    open_page(page, address)
    page.get_by_role("button", name="Write").click()
    page.get_by_role("status").filter(has_text="a second").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for element in page.locator("button:visible, input:visible").all():
        assert element.bounding_box()["height"] >= 36  # a thumb's
    shoot(page, f"phone_{scheme}")
    context.close()


def test_every_control_has_a_name_and_is_reached_by_the_keyboard(page: Any) -> None:
    names = []
    page.get_by_label("Beginning of the tweet").focus()
    for _ in range(7):
        names.append(
            page.evaluate(
                "document.activeElement.labels?.[0]?.textContent.trim() ?? document.activeElement.textContent"
            )
        )
        page.keyboard.press("Tab")
    assert names == [
        *("Beginning of the tweet", "Samples", "Tokens at most", "Temperature", "Top p", "Seed", "Write")
    ]


def test_a_choice_of_models_where_there_are_several(
    browser: Any, artifact: Path, generator: Generator
) -> None:
    with Generator(artifact, device="cpu", num_slots=1) as other, served({"a": generator, "b": other}) as url:
        page = browser.new_page()
        open_page(page, url)
        page.get_by_label("Model").select_option("b")
        page.get_by_role("button", name="Write").click()
        page.get_by_role("status").filter(has_text="a second").wait_for()
        assert other.stats().finished == 5
        page.close()
