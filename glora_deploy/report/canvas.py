"""Figures drawn with matplotlib, the one module that imports it: out come SVG and PNG."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingDependencyError
from .palette import INK, MUTED, PAPER, RULE, VARIABLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PNG_DPI = 160
"""A figure of 8 inches is 1280 pixels wide."""

_FONT = "DejaVu Sans"
_STYLE: dict[str, Any] = {
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.family": _FONT,
    "font.size": 9,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text: sharp, selectable, in the page's own type
    "svg.hashsalt": "glora-deploy",
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $x$
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": RULE,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 8.5,
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawing, finished."""

    name: str
    """Of its PNG, without the ending; unique on the page."""
    width: float
    """In inches; text of 9 points is 9 points at this width."""
    svg: str
    """An ``<svg>`` element without a prologue; its colours are variables of the page."""
    png: bytes
    """The same on white."""


def require_matplotlib() -> None:
    """Refuse a report that could not be drawn.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report", "a report") from error


def draw(
    name: str,
    paint: Callable[[list[Axes]], None],
    *,
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
) -> Drawing:
    """Draw.

    Args:
        name: Of the drawing; unique on the page.
        paint: Paints on the axes, given row by row.
        width: In inches.
        height: In inches.
        rows: Of axes.
        columns: Of axes.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(cast(Any, _STYLE)), warnings.catch_warnings():
        # Names in Chinese, say: browsers have such letters, the font of the PNG has a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        paint([each for row in axes for each in row])
        svg, png = StringIO(), BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(png, format="png", dpi=PNG_DPI, facecolor=PAPER, metadata={"Software": ""})
    return Drawing(name, width, _for_page(svg.getvalue(), name), png.getvalue())


def _for_page(svg: str, name: str) -> str:
    """An SVG file as an element of a page: ids of its own, no prologue, colours as variables."""
    svg = svg[svg.index("<svg") :]
    for unneeded in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>"):
        svg = re.sub(unneeded, "", svg, flags=re.DOTALL)
    # Tags alone: what stands between them are words of the user's.
    return re.sub(r"<[^>]+>", lambda tag: _tag_for_page(tag.group(), name), svg).strip()


def _tag_for_page(tag: str, name: str) -> str:
    if tag.startswith("<svg"):
        tag = re.sub(r' (width|height)="[^"]*"', "", tag)
    tag = re.sub(r'(?<= id=")|(?<=url\(#)|(?<=href="#)', f"{name}-", tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var({variable})")
    return tag.replace(f"'{_FONT}'", "var(--sans)")


def in_percent(axis: Axes) -> None:
    """Write the numbers of the vertical axis, shares of 1, in percent; no two of them alike."""
    from matplotlib.ticker import PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1))


def fill_cell(axis: Axes, column: int, row: int, *, colour: str, strength: float) -> None:
    """Paint one cell of a grid whose cells lie around whole numbers.

    Args:
        axis: The grid's.
        column: Of the cell.
        row: Of the cell.
        colour: Of a full cell.
        strength: Opacity, 0 to 1; at 0 it has an outline alone.
    """
    left, right, top, bottom = column - 0.46, column + 0.46, row - 0.45, row + 0.45
    x, y = [left, right, right, left], [top, top, bottom, bottom]
    if strength > 0:
        axis.fill(x, y, facecolor=colour, alpha=strength, linewidth=0)
    else:
        axis.fill(x, y, facecolor="none", edgecolor=RULE, linewidth=0.6)


def fill_cells(axis: Axes, strengths: NDArray[np.float64], *, colour: str) -> None:
    """Paint a whole grid as one picture.

    Args:
        axis: The grid's.
        strengths: Opacity of each cell, ``(rows, columns)``, 0 to 1.
        colour: Of a full cell; the picture has it on light and dark pages alike.
    """
    from matplotlib.colors import to_rgb

    pixels = np.empty((*strengths.shape, 4))
    pixels[..., :3] = to_rgb(colour)
    pixels[..., 3] = np.sqrt(strengths)  # what is rare must be seen too
    axis.imshow(pixels, interpolation="nearest")
