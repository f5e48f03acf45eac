"""Built-in tasks that need no download, drawn from a seed in the sizes of VTAB-1K.

===============  =======  ======================================================================
``digits``            10  scikit-learn's 1,797 real handwritten digits, 8x8 grey
``photos``             8  what a patch of scikit-learn's two real photographs shows at its
                          centre; the regions were outlined by hand, and no two splits share a
                          pixel because each takes whole blocks of the photographs
``position``          16  which cell of a 4x4 grid holds a drawn shape (after dSprites location)
``orientation``       12  where a drawn shape points, in steps of 30 degrees clockwise from up
                          (after dSprites orientation)
===============  =======  ======================================================================

Training has 800 images, validation 200, test 500, save that ``digits`` has 800,
199 and 798 and ``photos`` tests on 496.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import MissingDependencyError
from .drawing import SHAPES, draw_shape
from .image_set import ArrayImages, ImageSet, TaskData, split_by_class

N_TRAIN, N_VAL, N_TEST = 800, 200, 500

_DRAWN_SIZE = 64
"""Height and width of a drawn image, in pixels."""

_GRID = 4
"""Cells per side of the ``position`` task."""

_N_DIRECTIONS = 12
"""Classes of the ``orientation`` task."""

PATCH = 24
"""Height and width of a patch of a photograph, in pixels."""

BLOCK = 40
"""Height and width of the blocks of a photograph that are dealt out to the splits, in pixels."""

_MATERIALS = ("sky", "water", "roof", "wall", "tree", "leaf", "petal", "heart")

_PHOTO_REGIONS = """
china.jpg sky 0,0 640,0 640,125 590,130 565,190 335,190 330,110 220,25 190,25 90,100 75,180 0,120
china.jpg water 352,243 420,243 500,240 546,224 546,285 480,295 365,315
china.jpg roof 200,65 215,65 300,115 265,118 100,118 105,108 160,95
china.jpg roof 90,175 110,163 290,163 325,175 315,183 100,183
china.jpg roof 70,270 90,247 340,247 345,258 300,278 85,279
china.jpg roof 200,362 300,352 345,325 368,335 340,365 305,385 235,388
china.jpg wall 122,130 292,130 292,155 122,155
china.jpg wall 102,185 318,185 318,230 102,230
china.jpg wall 82,285 338,275 340,305 300,325 180,340 82,325
china.jpg tree 0,300 20,300 60,345 140,335 200,375 290,400 290,427 0,427
china.jpg tree 0,190 30,185 65,220 40,240 15,270 0,275
china.jpg tree 340,395 390,325 440,310 520,280 560,275 560,427 340,427
china.jpg tree 600,140 630,145 640,165 640,427 560,427 552,220 580,165
flower.jpg leaf 0,0 640,0 640,427 0,427
flower.jpg - 308,75 405,95 455,190 455,260 410,330 308,372 215,340 160,260 160,160 215,95
flower.jpg - 275,427 280,380 345,362 445,370 480,427
flower.jpg - 550,427 575,385 625,385 630,427
flower.jpg petal 308,92 390,115 435,190 430,270 385,320 308,350 230,325 183,270 183,190 225,115
flower.jpg petal 300,427 300,395 345,382 400,385 435,400 440,427
flower.jpg - 308,147 361,169 383,222 361,275 308,297 255,275 233,222 255,169
flower.jpg heart 308,162 350,180 368,222 350,264 308,282 266,264 248,222 266,180
"""
"""Photograph, material (``-`` for none) and outline as x,y corners; later lines paint over."""


class Place(NamedTuple):
    """A patch of a photograph."""

    photo: str
    x: int
    y: int
    label: int


def _split_drawn(
    name: str, classes: tuple[str, ...], pixels: NDArray[np.uint8], labels: NDArray[np.int64]
) -> dict[str, Any]:
    """The first images train, the next validate, the rest test; ids count from 0."""
    ids = tuple(f"{name}/{i}" for i in range(len(labels)))
    images = ImageSet(labels, ids, ArrayImages(pixels))
    train, val, test = np.split(np.arange(len(labels)), [N_TRAIN, N_TRAIN + N_VAL])
    return {
        "name": name,
        "spec": name,
        "classes": classes,
        "train": images.select(train),
        "val": images.select(val),
        "test": images.select(test),
    }


def _load_position(seed: int) -> TaskData:
    """Draw the ``position`` task: shape, size, turn, colours and noise vary freely."""
    rng = np.random.default_rng([seed, 1])
    n = N_TRAIN + N_VAL + N_TEST
    labels = rng.permutation(np.arange(n) % _GRID**2)
    cell = _DRAWN_SIZE / (_GRID + 1)  # half a cell is left free on every side
    shapes = ("square", "ellipse", "triangle", "star", "heart")
    pixels = np.empty((n, _DRAWN_SIZE, _DRAWN_SIZE, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        # Centres keep a tenth of a cell away from its edges, where the answer would be a guess.
        x, y = (np.array([label % _GRID, label // _GRID]) + 0.5 + rng.uniform(0.1, 0.9, 2)) * cell
        pixels[i] = draw_shape(
            rng,
            SHAPES[shapes[rng.integers(len(shapes))]],
            _DRAWN_SIZE,
            centre=(x, y),
            radius=rng.uniform(5, 11),
            angle=rng.uniform(0, 2 * np.pi),
        )
    classes = tuple(f"row {i // _GRID} column {i % _GRID}" for i in range(_GRID**2))
    return TaskData(seed=seed, **_split_drawn("position", classes, pixels, labels))


def _load_orientation(seed: int) -> TaskData:
    """Draw the ``orientation`` task: shape, size, place, colours and noise vary freely."""
    rng = np.random.default_rng([seed, 2])
    n = N_TRAIN + N_VAL + N_TEST
    labels = rng.permutation(np.arange(n) % _N_DIRECTIONS)
    step = 2 * np.pi / _N_DIRECTIONS
    shapes = ("arrow", "wedge", "drop")
    pixels = np.empty((n, _DRAWN_SIZE, _DRAWN_SIZE, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        x, y = rng.uniform(0.4, 0.6, 2) * _DRAWN_SIZE
        pixels[i] = draw_shape(
            rng,
            SHAPES[shapes[rng.integers(len(shapes))]],
            _DRAWN_SIZE,
            centre=(x, y),
            radius=rng.uniform(15, 25),
            angle=(label + rng.uniform(-0.35, 0.35)) * step,
        )
    classes = tuple(f"{i * 360 // _N_DIRECTIONS} degrees" for i in range(_N_DIRECTIONS))
    return TaskData(seed=seed, **_split_drawn("orientation", classes, pixels, labels))


def _load_digits(seed: int) -> TaskData:
    """Split scikit-learn's handwritten digits, each class alike: 800, 199 and 798 images.

    Raises:
        MissingDependencyError: If scikit-learn is not installed.
    """
    digits = _sklearn_datasets().load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    images = ImageSet(
        labels,
        tuple(f"digits/{i}" for i in range(len(labels))),
        ArrayImages(np.repeat(grey[..., None], 3, axis=-1)),
    )
    rng = np.random.default_rng([seed, 3])
    shares = (N_TRAIN / len(labels), N_VAL / len(labels))
    train, val, test = (images.select(part) for part in split_by_class(labels, shares, rng))
    return TaskData(
        name="digits",
        spec="digits",
        seed=seed,
        classes=tuple(map(str, digits.target_names)),
        train=train,
        val=val,
        test=test,
    )


def _load_photos(seed: int) -> TaskData:
    """Draw patches of scikit-learn's two photographs: 100, 25 and 62 of each material.

    Raises:
        MissingDependencyError: If scikit-learn is not installed.
    """
    datasets = _sklearn_datasets()
    photos = {name: datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")}
    rng = np.random.default_rng([seed, 4])
    places = [_block_places(name, photo.shape[:2]) for name, photo in photos.items()]
    blocks = [block for photo_blocks in places for block in photo_blocks]
    # A block counts as the material that most of its patches show.
    dominant = np.array(
        [np.bincount([place.label for place in block]).argmax() for block in blocks]
    )
    val, test, train = split_by_class(dominant, (0.2, 0.3), rng)
    splits = {
        split: _draw_patches(photos, [blocks[i] for i in part], count // len(_MATERIALS), rng)
        for split, part, count in (
            ("train", train, N_TRAIN),
            ("val", val, N_VAL),
            ("test", test, N_TEST),
        )
    }
    return TaskData(
        name="photos",
        spec="photos",
        seed=seed,
        classes=_MATERIALS,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
    )


def _outline_materials(photo: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Paint the outlined regions of a photograph: index of the material + 1, or 0, ``(h, w)``."""
    image = Image.new("L", (size[1], size[0]))
    for line in _PHOTO_REGIONS.split("\n"):
        if line.startswith(photo):
            _, material, *corners = line.split()
            outline = [(int(x), int(y)) for x, y in (corner.split(",") for corner in corners)]
            value = 0 if material == "-" else _MATERIALS.index(material) + 1
            ImageDraw.Draw(image).polygon(outline, fill=value)
    return np.asarray(image)


def _block_places(photo: str, size: tuple[int, int]) -> list[list[Place]]:
    """Every patch with a known centre, block by block; blocks with none are left out."""
    materials = _outline_materials(photo, size)
    blocks = []
    for block_y in range(0, size[0] - BLOCK + 1, BLOCK):
        for block_x in range(0, size[1] - BLOCK + 1, BLOCK):
            corners = product(
                range(block_y, block_y + BLOCK - PATCH + 1),
                range(block_x, block_x + BLOCK - PATCH + 1),
            )
            block = [
                Place(photo, x, y, int(materials[y + PATCH // 2, x + PATCH // 2]) - 1)
                for y, x in corners
                if materials[y + PATCH // 2, x + PATCH // 2]
            ]
            if block:
                blocks.append(block)
    return blocks


def _draw_patches(
    photos: Mapping[str, NDArray[np.uint8]],
    blocks: list[list[Place]],
    n_each: int,
    rng: np.random.Generator,
) -> ImageSet:
    """Draw this many distinct patches of each material from some blocks, in random order."""
    chosen: list[Place] = []
    for label in range(len(_MATERIALS)):
        places = [place for block in blocks for place in block if place.label == label]
        chosen += [places[i] for i in rng.choice(len(places), n_each, replace=False)]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    pixels = [photos[p.photo][p.y : p.y + PATCH, p.x : p.x + PATCH] for p in chosen]
    return ImageSet(
        np.array([place.label for place in chosen], np.int64),
        tuple(f"{p.photo}/x{p.x}y{p.y}" for p in chosen),
        ArrayImages(np.array(pixels, np.uint8)),
    )


def _sklearn_datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "demo", "this built-in task") from error
    return datasets


BUILT_IN_TASKS: dict[str, Callable[[int], TaskData]] = {
    "digits": _load_digits,
    "photos": _load_photos,
    "position": _load_position,
    "orientation": _load_orientation,
}
"""What draws each built-in task from a seed."""
