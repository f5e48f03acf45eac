"""The documentation builds as a site, strictly, and asks nobody else for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tracked_files import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PICTURES = sorted((DOCS / "pictures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        try:
            there = find_spec(package)
        except ModuleNotFoundError:
            there = None
        if there is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[docs]'")
    to = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(to)],
        cwd=ROOT,
        # The theme advertises its successor on stderr.
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^(WARNING|ERROR)", done.stderr, re.MULTILINE), done.stderr
    return to


class _Loaded(HTMLParser):
    """What a page makes a browser fetch: links that a reader follows are no part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            return
        for name, value in attributes:
            if name in ("src", "href", "srcset", "poster", "data", "action") and value:
                self.addresses.append(value)


def loaded(page: str) -> list[str]:
    parser = _Loaded()
    parser.feed(page)
    return parser.addresses


def is_remote(address: str) -> bool:
    return re.match(r"([a-z][a-z+.-]*:)?//", address, re.IGNORECASE) is not None


def test_every_page_is_built_with_its_pictures(site: Path) -> None:
    pages = {path.stem for path in PAGES}
    assert {"index", "tutorial", "glora", "reference", "python", "format"} <= pages
    assert pages <= {path.stem for path in site.glob("*.html")}
    assert {path.name for path in PICTURES} == {
        path.name for path in (site / "pictures").glob("*.svg")
    }
    assert not list(site.rglob("*.py"))


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        addresses = loaded(page.read_text("utf-8"))
        assert addresses
        assert [address for address in addresses if is_remote(address)] == [], page.name
    for sheet in site.rglob("*.css"):
        text = sheet.read_text("utf-8")
        asked = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", text)
        assert [address for address in asked if is_remote(address)] == [], sheet.name


def test_an_address_on_another_host_is_found() -> None:
    page = '<a href="https://a"></a><link href="//b/x.css"><script src="HTTPS://c"></script>'
    assert [a for a in loaded(page + '<img src="pictures/flow.svg">') if is_remote(a)] == [
        "//b/x.css",
        "HTTPS://c",
    ]


@pytest.mark.parametrize("package", ["training", "export", "evaluation", "serving"])
def test_the_reference_documents_every_name_that_a_package_offers(site: Path, package: str) -> None:
    text = (site / "reference.html").read_text("utf-8")
    for name in import_module(f"glora_deploy.{package}").__all__:
        assert re.search(rf'id="glora_deploy\.{package}\.[\w.]+\.{name}"', text), name


def test_the_reference_has_docstrings_of_attributes_and_methods_too(site: Path) -> None:
    text = (site / "reference.html").read_text("utf-8")
    assert "Also write model.pixels.onnx" in text
    assert "No step failed, and at least one was measured" in text
    assert 'id="glora_deploy.errors.ParityError"' in text


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_a_picture_reads_in_light_and_dark_and_without_being_seen(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    assert root.find(f"{SVG}title") is not None
    assert root.find(f"{SVG}desc") is not None
    style = root.findtext(f"{SVG}style") or ""
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    for name in {name for element in root.iter() for name in element.get("class", "").split()}:
        if re.search(rf"\.{name} {{[^}}]*(fill|stroke): #", light):
            assert re.search(rf"\.{name} {{", dark), f"{name} has no colour in the dark"
    text = picture.read_text("utf-8")
    assert not re.search(r"(href|src)=|@import|url\(h", text)


def test_a_page_with_python_is_run_by_a_test() -> None:
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for page in PAGES:
        if "```python" in page.read_text("utf-8"):
            assert f'"{page.name}"' in tests, f"{page.name} has code that no test runs"
