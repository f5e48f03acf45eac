"""The page as a browser shows it, opened as a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from glora_deploy.report import WrittenReport

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

SECTIONS = ["training", "search", "subnet", "answers", "mistakes", "features", "versions", "facts"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Shown:
    """The page in a window of its own, and all that it said and asked for meanwhile."""

    def __init__(self, browser: Any, report: WrittenReport, **window: Any) -> None:
        self.page = browser.new_context(**window).new_page()
        self.requests: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.url = report.page.as_uri()
        self.page.goto(self.url)


@pytest.fixture(scope="module")
def shown(browser: Any, hostile_report: WrittenReport) -> Shown:
    return Shown(browser, hostile_report, viewport={"width": 1100, "height": 800})


def test_it_asks_for_nothing_beside_itself_and_has_nothing_to_complain_of(shown: Shown) -> None:
    outside = [url for url in shown.requests if not url.startswith("data:")]
    assert outside == [shown.url]
    assert shown.said == []


def test_all_sections_are_there_and_linked(shown: Shown) -> None:
    page = shown.page
    assert page.eval_on_selector_all("main > section", "all => all.map(s => s.id)") == SECTIONS
    links = page.eval_on_selector_all("nav a", "all => all.map(a => a.getAttribute('href'))")
    assert links == [f"#{name}" for name in SECTIONS]
    assert page.locator(".missing").count() == 0


def test_hostile_names_of_classes_are_words_and_nothing_else(shown: Shown) -> None:
    page = shown.page
    assert page.locator("script").count() == 0
    assert page.locator("img[onerror]").count() == 0
    text = page.locator("#answers").text_content()
    for label in ("$x_1$ & 花", "<img src=x onerror=alert(1)>", '<script>"alert(1)"'):
        assert label in text
    drawn = page.locator("#features svg").first.text_content()
    assert "<script>" in drawn
    assert "$x_1$ & 花" in drawn


def test_every_figure_and_picture_says_what_it_shows_and_every_table_has_a_caption(
    shown: Shown,
) -> None:
    page = shown.page
    figures = page.locator("[role=img]")
    assert figures.count() == 5
    assert all(len(figures.nth(i).get_attribute("aria-label")) > 40 for i in range(5))
    pictures = page.eval_on_selector_all("img", "all => all.map(i => [i.alt, i.naturalWidth])")
    assert len(pictures) >= 4  # so many test images have a wrong label
    assert all(alt.startswith("Image of the class ") and width > 0 for alt, width in pictures)
    assert page.locator("table").count() == page.locator("table > caption").count() == 4
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(
    browser: Any, hostile_report: WrittenReport, scheme: str
) -> None:
    page = Shown(browser, hostile_report, color_scheme=scheme).page
    for selector, at_least in (
        ("h1", 7),
        (".about", 4.5),
        (".tiles dt", 4.5),
        ("section .lead", 4.5),
        ("tbody td", 7),
        ("nav a", 4.5),
        ("#training svg text", 4.5),
        ("#subnet svg text", 4.5),
    ):
        assert page.evaluate(CONTRAST, selector) >= at_least, selector
    page.context.close()


CONTRAST = """selector => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => rgb(text).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const element = document.querySelector(selector);
  const style = getComputedStyle(element);
  const ink = element instanceof SVGElement ? style.fill : style.color;
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)")
    behind = behind.parentElement;
  const [a, b] = [light(ink), light(getComputedStyle(behind).backgroundColor)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
"""Contrast of the ink of an element with the first background behind it, as WCAG 2 has it."""


def test_a_phone_scrolls_down_and_not_sideways(browser: Any, hostile_report: WrittenReport) -> None:
    page = Shown(browser, hostile_report, viewport={"width": 360, "height": 740}).page
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    widths = page.eval_on_selector_all(
        "section svg", "all => all.map(s => s.getBoundingClientRect().width)"
    )
    assert min(widths) >= 250
    page.context.close()


def test_the_dark_page_is_dark_and_its_figures_are_drawn_in_its_colours(
    browser: Any, hostile_report: WrittenReport
) -> None:
    def colours(scheme: str) -> list[str]:
        page = Shown(browser, hostile_report, color_scheme=scheme).page
        found = page.evaluate(
            """() => ["#training", "#training svg text"].map(name => {
                 const style = getComputedStyle(document.querySelector(name));
                 return name.endsWith("text") ? style.fill : style.backgroundColor;
               })"""
        )
        page.context.close()
        return list(found)

    light, dark = colours("light"), colours("dark")
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] == "rgb(23, 28, 36)"
    assert light[1] != dark[1]


def test_on_paper_nothing_is_cut_off(browser: Any, hostile_report: WrittenReport) -> None:
    page = Shown(browser, hostile_report).page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.pdf()[:5] == b"%PDF-"
    page.context.close()
