"""Anti-aliased shapes on noisy backgrounds, drawn from a random generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

FloatArray = NDArray[np.float64]

SUPERSAMPLING = 4
"""A mask is drawn this many times larger, then averaged down."""

_MIN_CONTRAST = 0.35
"""Least difference, in some channel from 0 to 1, between a shape and what lies beneath it."""


def _regular(n: int) -> FloatArray:
    """Corners of a regular polygon on the unit circle, ``(n, 2)``, the first one upwards."""
    turns = np.arange(n) * (2 * np.pi / n)
    return np.stack([np.sin(turns), -np.cos(turns)], axis=1)


def _star() -> FloatArray:
    radii: FloatArray = np.tile([1.0, 0.45], 5)[:, None]
    return _regular(10) * radii


def _heart() -> FloatArray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -y / 16], axis=1)


def _drop() -> FloatArray:
    arc = np.linspace(-0.15 * np.pi, 1.15 * np.pi, 32)
    belly = np.stack([0.6 * np.cos(arc), 0.4 + 0.6 * np.sin(arc)], axis=1)
    return np.concatenate([belly, [[0.0, -1.0]]])


SHAPES: dict[str, FloatArray] = {
    "square": _regular(4),
    "disc": _regular(40),
    "ellipse": _regular(40) * [0.5, 1.0],
    "triangle": _regular(3),
    "star": _star(),
    "heart": _heart(),
    "drop": _drop(),
    "arrow": np.array(
        [[0, -1], [0.75, -0.1], [0.28, -0.1], [0.28, 1], [-0.28, 1], [-0.28, -0.1], [-0.75, -0.1]]
    ),
    "wedge": np.array([[0, -1], [0.55, 0.9], [-0.55, 0.9]]),
    "tee": np.array(
        [
            [-0.8, -1],
            [0.8, -1],
            [0.8, -0.5],
            [0.2, -0.5],
            [0.2, 1],
            [-0.2, 1],
            [-0.2, -0.5],
            [-0.8, -0.5],
        ]
    ),
}
"""Outlines within the unit circle or nearly so, ``(k, 2)`` as x right and y down, upright."""


def draw_mask(
    outline: FloatArray, size: int, *, centre: tuple[float, float], radius: float, angle: float
) -> FloatArray:
    """How much of each pixel a shape covers.

    Args:
        outline: Corners within the unit circle, ``(k, 2)``, such as a value of ``SHAPES``.
        size: Height and width of the mask, in pixels.
        centre: x and y in pixels from the top left corner; the shape may leave the mask.
        radius: Of the circle the shape lies in, in pixels.
        angle: Clockwise turn from upright, in radians.

    Returns:
        ``(size, size)``, float64 from 0 to 1.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    corners = outline @ np.array([[cos, sin], [-sin, cos]]) * radius + centre
    image = Image.new("L", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    # Pillow's coordinates name pixel centres, ours their corners.
    points = corners * SUPERSAMPLING - 0.5
    ImageDraw.Draw(image).polygon([(x, y) for x, y in points.tolist()], fill=255)
    return np.asarray(image.reduce(SUPERSAMPLING), np.float64) / 255


def draw_background(rng: np.random.Generator, size: int) -> FloatArray:
    """A linear blend of two colours in a random direction: ``(size, size, 3)`` from 0 to 1."""
    first, second = rng.uniform(0, 1, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    blend = (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2) + 0.5
    image: FloatArray = first + blend[..., None] * (second - first)
    return image


def draw_colour(rng: np.random.Generator, avoid: FloatArray) -> FloatArray:
    """A random colour ``(3,)``, each channel from 0 to 1, that differs visibly from another."""
    while True:
        colour = rng.uniform(0, 1, 3)
        if np.abs(colour - avoid).max() >= _MIN_CONTRAST:
            return colour


def draw_shape(
    rng: np.random.Generator,
    outline: FloatArray,
    size: int,
    *,
    centre: tuple[float, float],
    radius: float,
    angle: float,
) -> NDArray[np.uint8]:
    """One shape in a random colour on a random background, with noise: ``(size, size, 3)``."""
    image = draw_background(rng, size)
    mask = draw_mask(outline, size, centre=centre, radius=radius, angle=angle)[..., None]
    colour = draw_colour(rng, avoid=np.average(image, axis=(0, 1), weights=mask[..., 0]))
    image = image * (1 - mask) + colour * mask
    image += rng.normal(0, rng.uniform(0, 0.06), image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
