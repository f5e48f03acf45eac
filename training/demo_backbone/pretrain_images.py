"""Images to pretrain the demo backbone on: letters, invented characters, shapes, textures.

All are drawn from random numbers; none is a digit as such (O, I, S and Z look like some) and none
comes from a built-in task. Each image has one ground, at most one subject on it, and the answers
to three sorts of questions: what the subject is, what the ground is, and a row of ``NUMBERS``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from glora_deploy.data.drawing import SUPERSAMPLING, FloatArray, draw_mask

SIZE = 32
"""Height and width of an image, in pixels."""

LETTER_STROKES = {
    "A": "0,6 2,0 4,6|1,4 3,4",
    "B": "0,6 0,0 3,0 4,1 3,3 0,3|3,3 4,4 4,5 3,6 0,6",
    "C": "4,1 3,0 1,0 0,1 0,5 1,6 3,6 4,5",
    "D": "0,0 0,6 2,6 4,4 4,2 2,0 0,0",
    "E": "4,0 0,0 0,6 4,6|0,3 3,3",
    "F": "4,0 0,0 0,6|0,3 3,3",
    "G": "4,1 3,0 1,0 0,1 0,5 1,6 3,6 4,5 4,3 2,3",
    "H": "0,0 0,6|4,0 4,6|0,3 4,3",
    "I": "2,0 2,6|1,0 3,0|1,6 3,6",
    "J": "3,0 3,5 2,6 1,6 0,5",
    "K": "0,0 0,6|4,0 0,3 4,6",
    "L": "0,0 0,6 4,6",
    "M": "0,6 0,0 2,3 4,0 4,6",
    "N": "0,6 0,0 4,6 4,0",
    "O": "1,0 0,1 0,5 1,6 3,6 4,5 4,1 3,0 1,0",
    "P": "0,6 0,0 3,0 4,1 4,2 3,3 0,3",
    "Q": "1,0 0,1 0,5 1,6 3,6 4,5 4,1 3,0 1,0|2,4 4,6",
    "R": "0,6 0,0 3,0 4,1 4,2 3,3 0,3|1,3 4,6",
    "S": "4,1 3,0 1,0 0,1 0,2 1,3 3,3 4,4 4,5 3,6 1,6 0,5",
    "T": "0,0 4,0|2,0 2,6",
    "U": "0,0 0,5 1,6 3,6 4,5 4,0",
    "V": "0,0 2,6 4,0",
    "W": "0,0 1,6 2,3 3,6 4,0",
    "X": "0,0 4,6|4,0 0,6",
    "Y": "0,0 2,3 4,0|2,3 2,6",
    "Z": "0,0 4,0 0,6 4,6",
}
"""Each letter as strokes parted by ``|``, a stroke as x,y points on a grid 4 wide and 6 high."""

N_INVENTED = 40
"""Characters of two or three random strokes, the same in every run."""


def _arc(start: float, end: float, radius: float = 1.0) -> FloatArray:
    angle = np.linspace(start, end, 24)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius


OUTLINES: dict[str, FloatArray] = {
    "pentagon": _arc(0, 2 * np.pi)[np.linspace(0, 23, 6).astype(int)[:5]],
    "bar": np.array([[-0.3, -1], [0.3, -1], [0.3, 1], [-0.3, 1]]),
    "stair": np.array([[-0.3, -1], [0.3, -1], [0.3, -0.3], [1, -0.3], [1, 0.3], [0.3, 0.3]]),
    "half": _arc(0, np.pi),
    "crescent": np.concatenate([_arc(0, np.pi), _arc(np.pi, 0) * [1, 0.45]]),
    "ell": np.array([[-0.6, -1], [0, -1], [0, 0.4], [0.7, 0.4], [0.7, 1], [-0.6, 1]]),
    "chevron": np.array([[0, -0.8], [1, 0.3], [1, 0.9], [0, -0.1], [-1, 0.9], [-1, 0.3]]),
    "kite": np.array([[0, -1], [0.6, -0.3], [0, 1], [-0.6, -0.3]]),
    "quarter": np.concatenate([_arc(0, np.pi / 2, 1.4) - 0.6, [[-0.6, -0.6]]]),
    "flag": np.array([[-0.5, -1], [0.8, -0.5], [-0.3, 0], [-0.3, 1], [-0.5, 1]]),
}
"""Outlines within the unit circle or nearly so, ``(k, 2)``; none is a shape of the demo tasks."""

TURNING = frozenset(("half", "crescent", "ell", "chevron", "kite", "quarter", "flag"))
"""Outlines that look different after any turn, so that their angle is a fair question."""

SUBJECTS = ("nothing", *LETTER_STROKES, *(f"invented {i}" for i in range(N_INVENTED)), *OUTLINES)
GROUNDS = ("flat", "gradient", "stripes", "checks", "dots", "cloud", "grain")

NUMBERS = (
    *("subject x", "subject y", "subject radius", "subject cos", "subject sin"),
    *("subject red", "subject green", "subject blue"),
    *("ground red", "ground green", "ground blue"),
    *("ground frequency", "ground cos", "ground sin"),
)
"""Answers that are numbers near -1 to 1; NaN where an image has no such answer."""


@dataclass(frozen=True, slots=True)
class PretrainImages:
    """Drawn images with every answer."""

    pixels: NDArray[np.uint8]
    """``(n, SIZE, SIZE, 3)``."""
    subjects: NDArray[np.int64]
    """Index into ``SUBJECTS``, ``(n,)``."""
    grounds: NDArray[np.int64]
    """Index into ``GROUNDS``, ``(n,)``."""
    numbers: NDArray[np.float32]
    """``(n, len(NUMBERS))``."""


def draw_images(n: int, rng: np.random.Generator) -> Iterator[PretrainImages]:
    """Draw n images, a thousand or fewer at a time."""
    for start in range(0, n, 1000):
        drawn = [_draw_image(rng) for _ in range(min(1000, n - start))]
        pixels, subjects, grounds, numbers = zip(*drawn, strict=True)
        yield PretrainImages(
            np.array(pixels, np.uint8),
            np.array(subjects, np.int64),
            np.array(grounds, np.int64),
            np.array(numbers, np.float32),
        )


def _draw_image(rng: np.random.Generator) -> tuple[NDArray[np.uint8], int, int, FloatArray]:
    numbers = np.full(len(NUMBERS), np.nan)
    # A share is ink on plain paper, as scans of handwriting are.
    on_paper = rng.random() < 0.3
    ground = 0 if on_paper else int(rng.integers(len(GROUNDS)))
    image = _draw_ground(rng, GROUNDS[ground], numbers)
    if on_paper and rng.random() < 0.7:
        image[:] = rng.integers(2)
    numbers[8:11] = image.mean(axis=(0, 1)) * 2 - 1
    subject = _draw_subject_kind(rng, on_paper)
    if subject:
        mask = _draw_subject(rng, SUBJECTS[subject], numbers)[..., None]
        colour = _contrasting(rng, image.mean(axis=(0, 1)))
        if on_paper and rng.random() < 0.7:
            colour[:] = image.mean() < 0.5
        numbers[5:8] = colour * 2 - 1
        image = image * (1 - mask) + colour * mask
    return _spoil(rng, image), subject, ground, numbers


def _draw_subject_kind(rng: np.random.Generator, on_paper: bool) -> int:
    n_letters = len(LETTER_STROKES)
    draw = rng.random()
    if draw < 0.45:
        return 1 + int(rng.integers(n_letters))
    if draw < 0.7:
        return 1 + n_letters + int(rng.integers(N_INVENTED))
    if draw < 0.9 or on_paper:
        return 1 + n_letters + N_INVENTED + int(rng.integers(len(OUTLINES)))
    return 0


def _contrasting(rng: np.random.Generator, avoid: FloatArray) -> FloatArray:
    while True:
        colour = rng.uniform(0, 1, 3)
        if np.abs(colour - avoid).max() >= 0.3:
            return colour


def _draw_ground(rng: np.random.Generator, kind: str, numbers: FloatArray) -> FloatArray:
    """A ground of one kind in two random colours: ``(SIZE, SIZE, 3)`` from 0 to 1."""
    first, second = rng.uniform(0, 1, (2, 3))
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(1.5, 9)
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE - 0.5
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    phase_a, phase_b = rng.uniform(0, 2 * np.pi, 2)
    wave_a = np.sin(2 * np.pi * frequency * along + phase_a)
    wave_b = np.sin(2 * np.pi * frequency * across + phase_b)
    sharp = rng.uniform(1, 6)
    match kind:
        case "flat":
            pattern = np.zeros((SIZE, SIZE))
        case "gradient":
            pattern = along + 0.5
        case "stripes":
            pattern = np.clip(sharp * wave_a, -1, 1) / 2 + 0.5
        case "checks":
            pattern = np.clip(sharp * wave_a * wave_b, -1, 1) / 2 + 0.5
        case "dots":
            pattern = np.clip(sharp * (wave_a + wave_b - 1), -1, 1) / 2 + 0.5
        case "cloud":
            pattern = _noise(rng, rng.uniform(1.4, 2.2))
        case _:
            pattern = _noise(rng, rng.uniform(0.2, 1.2))
    if kind in ("stripes", "checks", "dots"):
        # Checks and dots look the same after a quarter turn, stripes after a half.
        turns = 2 if kind == "stripes" else 4
        numbers[11:] = frequency / 5 - 1, np.cos(turns * angle), np.sin(turns * angle)
    image: FloatArray = first + pattern[..., None] * (second - first)
    if kind in ("cloud", "grain"):
        image += (_noise(rng, 1.5)[..., None] - 0.5) * rng.normal(0, 0.4, 3)
    return np.clip(image, 0, 1)


def _noise(rng: np.random.Generator, exponent: float) -> FloatArray:
    """Noise whose amplitude falls with frequency to this power: ``(SIZE, SIZE)`` from 0 to 1."""
    rows, columns = np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None]
    radius = np.hypot(rows, columns)
    radius[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(SIZE, SIZE))) / radius**exponent
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (SIZE, SIZE))
    clipped: FloatArray = np.clip(noise / (4 * noise.std()) + 0.5, 0, 1)
    return clipped


def _draw_subject(rng: np.random.Generator, subject: str, numbers: FloatArray) -> FloatArray:
    """How much of each pixel the subject covers: ``(SIZE, SIZE)`` from 0 to 1."""
    if subject in OUTLINES:
        radius, angle = rng.uniform(2.5, 13), rng.uniform(0, 2 * np.pi)
    else:
        radius, angle = rng.uniform(6, 16), rng.normal(0, 0.15)
    centre = SIZE / 2 + rng.uniform(-1, 1, 2) * (SIZE / 2 - 0.8 * radius)
    numbers[:3] = *(centre / (SIZE / 2) - 1), radius / 8 - 1
    if subject in OUTLINES:
        if subject in TURNING:
            numbers[3:5] = np.cos(angle), np.sin(angle)
        x, y = centre.tolist()
        return draw_mask(OUTLINES[subject], SIZE, centre=(x, y), radius=radius, angle=angle)
    if subject in LETTER_STROKES and rng.random() < 0.25:
        return _draw_printed(subject, centre, radius, angle)
    return _draw_strokes(rng, _strokes(subject), centre, radius, angle)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_printed(letter: str, centre: FloatArray, radius: float, angle: float) -> FloatArray:
    image = Image.new("L", (SIZE * SUPERSAMPLING,) * 2)
    x, y = (centre * SUPERSAMPLING).tolist()
    # A capital is about 0.7 of its font's size high.
    font = _font(round(2 * radius / 0.7) * SUPERSAMPLING)
    ImageDraw.Draw(image).text((x, y), letter, fill=255, font=font, anchor="mm")
    image = image.rotate(-np.degrees(angle), Image.Resampling.BILINEAR, center=(x, y))
    return np.asarray(image.reduce(SUPERSAMPLING), np.float64) / 255


@cache
def _strokes(character: str) -> tuple[FloatArray, ...]:
    """Control points of each stroke, ``(k, 2)`` within -1 to 1."""
    if character in LETTER_STROKES:
        grid = [
            np.array([point.split(",") for point in stroke.split()], np.float64)
            for stroke in LETTER_STROKES[character].split("|")
        ]
    else:
        rng = np.random.default_rng([2306, int(character.split()[1])])
        grid = [
            rng.permutation([(x, y) for x in (0, 2, 4) for y in (0, 2, 4, 6)])[:k].astype(float)
            for k in rng.integers(2, 5, size=rng.integers(2, 4))
        ]
    return tuple((stroke - [2, 3]) / 3 for stroke in grid)


def _draw_strokes(
    rng: np.random.Generator,
    strokes: tuple[FloatArray, ...],
    centre: FloatArray,
    radius: float,
    angle: float,
) -> FloatArray:
    """Write a character with a shaky hand and a pen of random width."""
    shear, squeeze = rng.normal(0, 0.2), rng.uniform(0.6, 1.2)
    cos, sin = np.cos(angle), np.sin(angle)
    bend = np.array([[squeeze, 0], [-shear, 1]]) @ np.array([[cos, sin], [-sin, cos]])
    shake, rounds = rng.uniform(0.02, 0.14), int(rng.integers(0, 3))
    width = rng.uniform(1.2, 0.8 + radius * 0.28) * SUPERSAMPLING
    image = Image.new("L", (SIZE * SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
        points = (stroke + rng.normal(0, shake, stroke.shape)) @ bend * radius + centre
        for _ in range(rounds):
            points = _round_corners(points)
        line = [(x, y) for x, y in (points * SUPERSAMPLING - 0.5).tolist()]
        pen.line(line, fill=255, width=round(width), joint="curve")
        for x, y in (line[0], line[-1]):
            pen.circle((x, y), width / 2, fill=255)
    return np.asarray(image.reduce(SUPERSAMPLING), np.float64) / 255


def _round_corners(points: FloatArray) -> FloatArray:
    """Cut every corner once (Chaikin); the ends stay."""
    first, second = points[:-1], points[1:]
    cut = np.stack([0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second], axis=1)
    return np.concatenate([points[:1], cut.reshape(-1, 2), points[-1:]])


def _spoil(rng: np.random.Generator, image: FloatArray) -> NDArray[np.uint8]:
    """Lose resolution and add noise, each in a share of the images."""
    pixels = Image.fromarray(np.round(image * 255).astype(np.uint8))
    if rng.random() < 0.45:
        low = int(rng.integers(8, 25))
        pixels = pixels.resize((low, low), Image.Resampling.BOX)
        pixels = pixels.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    noisy = np.asarray(pixels, np.float64)
    if rng.random() < 0.6:
        noisy = noisy + rng.normal(0, rng.uniform(0, 16), noisy.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)
