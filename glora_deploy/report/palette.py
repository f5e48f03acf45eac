"""The colours of a report.

A figure is drawn in those of the light page. In the page they become variables of its style sheet,
which have other values on a dark screen: one drawing serves both.
"""

from __future__ import annotations

PAPER = "#ffffff"
INK = "#1c2430"
MUTED = "#5b6675"
RULE = "#d3d9e2"
ACCENT = "#2a5bc7"
SECOND = "#b4531a"
THIRD = "#167a5e"

VARIABLES = {
    PAPER: "--card",
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    ACCENT: "--accent",
    SECOND: "--second",
    THIRD: "--third",
}
"""Of templates/style.css, where each has a value for the light and for the dark page."""

CLASSES = (
    "#3b7dd8",
    "#e07b28",
    "#2f9e6e",
    "#d14b57",
    "#8b6ad0",
    "#a5742c",
    "#d768a8",
    "#7d8794",
    "#9aa628",
    "#1fa7b8",
)
"""For classes, told apart on white and on near black; marks tell further classes apart."""

MARKS = ("o", "s", "^", "D", "v", "P")
"""Shapes for classes beyond the colours."""
