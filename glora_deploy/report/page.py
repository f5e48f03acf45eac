"""One HTML page that needs nothing beside it; the one module that imports jinja2."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib import resources

from ..errors import MissingDependencyError
from .blocks import Section, Tile


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that a page says, as text; whatever stands in it is escaped."""

    title: str
    about: str
    """One line on what it is about."""
    tiles: tuple[Tile, ...]
    notes: tuple[str, ...]
    """What to know before the figures are read."""
    sections: tuple[Section, ...]
    facts: tuple[tuple[str, str], ...]
    """Names and values."""
    release: str
    """Of this project."""


def require_jinja() -> None:
    """Refuse a page that could not be made.

    Raises:
        MissingDependencyError: If jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("jinja2", "report", "a report") from error


def render(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    templates = resources.files(__package__) / "templates"
    template = environment.from_string((templates / "page.html.jinja").read_text("utf-8"))
    return template.render(page=page, style=(templates / "style.css").read_text("utf-8"))
