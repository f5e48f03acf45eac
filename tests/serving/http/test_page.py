"""The page for people, in a browser."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.settings import ServerSettings
from http_server import Served, serving
from toy_engine import LABELS, ToyEngine, sha256_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WEB = Path(__file__).parents[3] / "serving" / "web"

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def png() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((32, 24), 60).convert("RGB").save(file, "PNG")
    return file.getvalue()


FILE: Any = {"name": "noise.png", "mimeType": "image/png", "buffer": png()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which every complaint of the browser's fails the test.

    Ask for it after the server: it polls, and must be closed first.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(0)  # the one limit is pytest's
    made = context.new_page()
    complaints: list[str] = []
    made.on("console", lambda message: complaints.append(message.text))
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.complaints = complaints
    yield made
    context.close()
    assert complaints == []


def open_page(page: Any, served: Served) -> None:
    page.goto(served.url)
    page.wait_for_selector("#state:has-text('ready')")


@pytest.mark.parametrize("name", ["index.html", "app.js", "style.css"])
def test_the_page_needs_nothing_from_elsewhere(name: str) -> None:
    text = (WEB / name).read_text("utf-8")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    assert not re.search(r"\son[a-z]+=|style=", text)


def test_the_page_is_served_under_a_strict_policy(client: TestClient) -> None:
    for path in ("/", "/app.js", "/style.css"):
        response = client.get(path)
        policy = response.headers["content-security-policy"]
        assert response.status_code == 200
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    assert client.get("/favicon.ico").status_code == 204


@in_a_browser
def test_an_image_is_answered_by_two_tasks_side_by_side(served: Served, page: Any) -> None:
    open_page(page, served)
    assert page.text_content("#state") == "ready: 2 tasks, 3 versions"
    page.select_option("#task-a", "pets")
    page.select_option("#version-a", "v1")
    page.select_option("#task-b", "digits")
    page.set_input_files("#file", FILE)
    for side, task, version in (("a", "pets", "v1"), ("b", "digits", "v1")):
        page.wait_for_selector(f"#answer-{side} .bars")
        assert page.text_content(f"#answer-{side} h3") == f"{task} {version}"
        names = page.locator(f"#answer-{side} .name").all_text_contents()
        assert set(names) <= set(LABELS[task])
        delta = page.get_attribute(f"#answer-{side} code", "title")
        assert delta == sha256_of(task, version)
        assert " ms: decode " in page.text_content(f"#answer-{side} .latency")
    page.select_option("#version-a", "v2")
    page.wait_for_selector("#answer-a h3:has-text('pets v2')")


@in_a_browser
def test_a_version_that_comes_later_can_be_chosen(
    served: Served, page: Any, engine: ToyEngine
) -> None:
    open_page(page, served)
    page.select_option("#task-a", "pets")
    page.select_option("#version-a", "v1")
    engine.add("pets", "v3")
    page.wait_for_selector("#version-a option[value=v3]", state="attached")
    assert page.input_value("#version-a") == "v1"
    assert page.text_content("#state") == "ready: 2 tasks, 4 versions"


@in_a_browser
def test_what_is_in_memory_and_waits_is_shown(served: Served, page: Any) -> None:
    open_page(page, served)
    page.wait_for_selector("#hot tr")
    rows = page.locator("#hot tr").all_text_contents()
    assert [row.startswith(name) for row, name in zip(rows, ("digits", "pets"), strict=True)] == [
        True,
        True,
    ]
    assert "Swaps so far" in page.text_content("#numbers")
    assert page.get_attribute("#budget", "max") == "10000"


@in_a_browser
def test_an_error_of_the_server_is_read_out_where_the_answer_would_be(
    served: Served, page: Any
) -> None:
    open_page(page, served)
    broken = FILE | {"buffer": b"GIF89a"}
    page.set_input_files("#file", broken)
    page.wait_for_selector("#answer-a [role=alert]")
    assert "must be a whole JPEG" in page.text_content("#answer-a [role=alert]")
    assert any("400" in text for text in page.complaints)  # the browser notes the status itself
    page.complaints.clear()


@in_a_browser
def test_the_keyboard_alone_reaches_and_works_everything(served: Served, page: Any) -> None:
    open_page(page, served)
    page.on("filechooser", lambda chooser: chooser.set_files(FILE))
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[:3] == ["task-a", "version-a", "task-b"]
    assert {"file", "SUMMARY"} <= set(reached)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.focus("#task-a")
    page.keyboard.press("p")  # a list of options moves to what is typed
    assert page.input_value("#task-a") == "pets"
    page.focus("#file")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer-a .bars")
    page.focus("#again")
    with page.expect_response("**/predict*") as asked:
        page.keyboard.press("Enter")
    assert asked.value.status == 200


@in_a_browser
@pytest.mark.parametrize("event", ["paste", "drop"])
def test_an_image_can_be_pasted_and_dropped(served: Served, page: Any, event: str) -> None:
    open_page(page, served)
    page.evaluate(
        """([event, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
            const made = event === "paste"
                ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
                : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
            document.getElementById("drop").dispatchEvent(made);
        }""",
        [event, list(png())],
    )
    page.wait_for_selector("#answer-a .bars")


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(served: Served, page: Any, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    open_page(page, served)
    page.set_input_files("#file", FILE)
    page.wait_for_selector("#answer-a .bars")
    pairs = page.evaluate(
        """() => ["h1", "h3", ".meta", "label", "select", "#state", "#again", "td"].map((one) => {
            const element = document.querySelector(one);
            let ground = element;
            const solid = (at) => !getComputedStyle(at).backgroundColor.endsWith(", 0)");
            while (!solid(ground)) ground = ground.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
        })"""
    )
    for text, ground in pairs:
        assert contrast(text, ground) >= 4.5  # WCAG 2.2, level AA


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two CSS colours, as WCAG defines it."""
    shades = []
    for colour in (first, second):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        shades.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(shades) + 0.05) / (min(shades) + 0.05)


@in_a_browser
@pytest.mark.parametrize("width", [320, 375, 1280])
def test_nothing_is_wider_than_the_screen(served: Served, page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    open_page(page, served)
    page.set_input_files("#file", FILE)
    page.wait_for_selector("#answer-a .bars")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@in_a_browser
def test_a_token_is_asked_for_and_used(page: Any, engine: ToyEngine) -> None:
    settings = ServerSettings(tokens=Tokens(inference="asking-token"))
    with serving(build_app(engine, settings)) as served:
        page.goto(served.url)
        page.wait_for_selector("#access[open]")
        assert "inference token" in page.text_content("#state")
        page.fill("#token", "asking-token")
        page.keyboard.press("Enter")
        page.wait_for_selector("#task-a option[value=pets]", state="attached")
        page.set_input_files("#file", FILE)
        page.wait_for_selector("#answer-a .bars")
        assert any("401" in text for text in page.complaints)
        page.complaints.clear()
        page.goto("about:blank")  # it would go on asking the server that leaves
