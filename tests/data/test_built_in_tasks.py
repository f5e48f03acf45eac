from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_image

from glora_deploy.data import built_in_tasks
from glora_deploy.data.built_in_tasks import BLOCK, BUILT_IN_TASKS, PATCH
from glora_deploy.data.drawing import SHAPES, draw_background, draw_colour, draw_mask, draw_shape
from glora_deploy.data.load import ImageSet, TaskData, load_task
from glora_deploy.errors import MissingDependencyError


@cache
def load(name: str, seed: int = 0) -> TaskData:
    return load_task(name, seed=seed)


def pixels(images: ImageSet) -> np.ndarray:
    return np.array([np.asarray(images.image(i)) for i in range(len(images))])


@pytest.mark.parametrize("name", BUILT_IN_TASKS)
def test_a_built_in_task_is_the_same_for_the_same_seed_only(name: str) -> None:
    task, again, other = load(name), load_task(name, seed=0), load(name, 1)
    for split in ("train", "val", "test"):
        one, two, three = (getattr(t, split) for t in (task, again, other))
        np.testing.assert_array_equal(pixels(one), pixels(two))
        np.testing.assert_array_equal(one.labels, two.labels)
        assert (pixels(one)[:10] != pixels(three)[:10]).any()
    assert task.splits_sha256 == again.splits_sha256


@pytest.mark.parametrize(
    ("name", "n_classes", "counts", "size"),
    [
        ("digits", 10, (800, 199, 798), (8, 8)),
        ("photos", 8, (800, 200, 496), (24, 24)),
        ("position", 16, (800, 200, 500), (64, 64)),
        ("orientation", 12, (800, 200, 500), (64, 64)),
    ],
)
def test_built_in_tasks_have_the_documented_sizes(
    name: str, n_classes: int, counts: tuple[int, int, int], size: tuple[int, int]
) -> None:
    task = load(name)
    assert (task.name, task.spec, task.seed, task.n_classes) == (name, name, 0, n_classes)
    assert (len(task.train), len(task.val), len(task.test)) == counts
    for split in (task.train, task.val, task.test):
        assert set(split.labels.tolist()) == set(range(n_classes))
        assert split.image(0).mode == "RGB"
        assert split.image(0).size == size


@pytest.mark.parametrize("name", BUILT_IN_TASKS)
def test_no_two_splits_share_an_image(name: str) -> None:
    task = load(name)
    seen = [
        {image.tobytes() for image in pixels(split)} for split in (task.train, task.val, task.test)
    ]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_digits_are_scikit_learns() -> None:
    task, source = load("digits"), load_digits()
    index = int(task.test.ids[5].split("/")[1])
    assert task.test.labels[5] == source.target[index]
    grey = np.asarray(task.test.image(5), float)
    np.testing.assert_allclose(
        grey / 255 * 16, source.images[index][..., None].repeat(3, 2), atol=0.04
    )
    ids = {*task.train.ids, *task.val.ids, *task.test.ids}
    assert len(ids) == len(source.target) == 1797


def photo_place(image_id: str) -> tuple[str, int, int]:
    photo, place = image_id.split("/")
    x, y = place[1:].split("y")
    return photo, int(x), int(y)


def test_patches_are_cut_from_where_their_ids_say() -> None:
    images = load("photos").train
    for i in range(0, len(images), 40):
        photo, x, y = photo_place(images.ids[i])
        expected = load_sample_image(photo)[y : y + PATCH, x : x + PATCH]
        np.testing.assert_array_equal(np.asarray(images.image(i)), expected)


@pytest.mark.parametrize("seed", range(20))
def test_no_pixel_of_a_photograph_is_in_two_splits(seed: int) -> None:
    task = load("photos", seed)
    owner: dict[tuple[str, int, int], str] = {}
    for split in ("train", "val", "test"):
        for image_id in getattr(task, split).ids:
            photo, x, y = photo_place(image_id)
            block = (photo, x // BLOCK, y // BLOCK)
            assert (x + PATCH - 1) // BLOCK == x // BLOCK
            assert (y + PATCH - 1) // BLOCK == y // BLOCK
            assert owner.setdefault(block, split) == split


def test_patches_show_the_material_that_their_label_names() -> None:
    """The sky is bluer than the roof, and petals are redder than leaves, nearly always."""
    task = load("photos")
    colours = pixels(task.train).astype(float).mean(axis=(1, 2))
    blueness = colours[:, 2] - colours[:, 0]
    by_name = {name: blueness[task.train.labels == i] for i, name in enumerate(task.classes)}
    for blue, red in [("sky", "roof"), ("leaf", "petal"), ("water", "wall"), ("leaf", "heart")]:
        assert np.quantile(by_name[blue], 0.1) > np.quantile(by_name[red], 0.9)


def record_drawn(monkeypatch: pytest.MonkeyPatch, key: str) -> list[Any]:
    """Collect one argument of every shape that a task draws."""
    found: list[Any] = []

    def draw(*_: Any, **kwargs: Any) -> np.ndarray:
        found.append(kwargs[key])
        return np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr(built_in_tasks, "draw_shape", draw)
    return found


def labels_of(task: TaskData) -> np.ndarray:
    return np.concatenate([task.train.labels, task.val.labels, task.test.labels])


def test_a_position_label_is_the_cell_that_holds_the_centre(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    centres = record_drawn(monkeypatch, "centre")
    labels = labels_of(load_task("position", seed=5))
    x, y = (np.array(centres) / (64 / 5) - 0.5).T
    np.testing.assert_array_equal(labels, np.floor(y) * 4 + np.floor(x))
    assert load("position").classes[6] == "row 1 column 2"


def test_an_orientation_label_is_the_nearest_step_of_30_degrees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    angles = record_drawn(monkeypatch, "angle")
    labels = labels_of(load_task("orientation", seed=5))
    np.testing.assert_array_equal(labels, np.round(np.degrees(angles) / 30) % 12)
    assert load("orientation").classes[3] == "90 degrees"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_lies_where_it_was_put(shape: str) -> None:
    mask = draw_mask(SHAPES[shape], 40, centre=(12, 25), radius=8, angle=1.0)
    rows, columns = np.nonzero(mask)
    assert mask.shape == (40, 40)
    assert 0 <= mask.min() < mask.max() == 1
    assert np.hypot(columns + 0.5 - 12, rows + 0.5 - 25).max() < 8 * 1.35
    assert mask[25, 12] == 1 or shape in ("tee", "arrow", "heart")


def test_a_disc_covers_its_area() -> None:
    mask = draw_mask(SHAPES["disc"], 32, centre=(15.3, 16.8), radius=10, angle=0)
    assert mask.sum() == pytest.approx(np.pi * 100, rel=0.03)
    rows, columns = np.mgrid[:32, :32] + 0.5
    centre = (mask * columns).sum() / mask.sum(), (mask * rows).sum() / mask.sum()
    assert centre == pytest.approx((15.3, 16.8), abs=0.1)


@pytest.mark.parametrize(
    ("angle", "heavy_side"),
    [(0, (20, 14)), (np.pi / 2, (26, 20)), (np.pi, (20, 26)), (-np.pi / 2, (14, 20))],
)
def test_a_shape_turns_clockwise_from_upright(angle: float, heavy_side: tuple[int, int]) -> None:
    """A tee's bar is up when upright, on the right after a quarter turn."""
    mask = draw_mask(SHAPES["tee"], 40, centre=(20, 20), radius=12, angle=angle)
    rows, columns = np.mgrid[:40, :40] + 0.5
    weight = (mask * columns).sum() / mask.sum() - 20, (mask * rows).sum() / mask.sum() - 20
    towards = np.sign(np.round(weight)).tolist()
    assert towards == np.sign(np.array(heavy_side) - 20).tolist()


def test_a_drawn_shape_covers_its_background() -> None:
    rng = np.random.default_rng(0)
    image = draw_shape(rng, SHAPES["disc"], 32, centre=(16, 16), radius=8, angle=0).astype(float)
    inside, outside = image[12:20, 12:20].mean(axis=(0, 1)), image[:4].mean(axis=(0, 1))
    assert np.abs(inside - outside).max() > 0.2 * 255


def test_a_shape_stands_out_from_what_lies_beneath_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        avoid = rng.uniform(0, 1, 3)
        assert np.abs(draw_colour(rng, avoid) - avoid).max() >= 0.35


def test_a_background_blends_between_two_colours() -> None:
    image = draw_background(np.random.default_rng(0), 16)
    assert image.shape == (16, 16, 3)
    assert 0 <= image.min() < image.max() <= 1
    np.testing.assert_allclose(np.diff(image, n=2, axis=0), 0, atol=1e-12)


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_a_missing_scikit_learn_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match=r"needs scikit-learn: pip install 'glora-de"):
        load_task(name, seed=0)


def test_reading_data_imports_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys, glora_deploy.data.check, glora_deploy.data.preprocess\n"
        "import glora_deploy.data.load\n"
        "glora_deploy.data.load.load_task('position', seed=0)\n"
        "print({'torch', 'timm', 'sklearn'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
