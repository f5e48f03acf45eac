"""Confusions and mistakes of answers that are made up."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from glora_deploy.evaluation.evaluate_version import Evaluation
from glora_deploy.evaluation.metrics import metrics_of
from glora_deploy.evaluation.predictions import Predictions
from glora_deploy.report.answers_section import MOST_CELLS, answers_section
from glora_deploy.report.blocks import Figure, Gallery, Table
from glora_deploy.report.features_section import MOST_POINTS, drawn_images, features_section
from glora_deploy.report.mistakes_section import MOST, mistakes_section
from tasks import make_images


def make_evaluation(logits: np.ndarray, targets: np.ndarray) -> Evaluation:
    labels = tuple(f"class {i}" for i in range(logits.shape[1]))
    predictions = Predictions(
        labels=labels,
        images=make_images(len(targets), seed=0),
        targets=targets.astype(np.int64),
        logits=logits.astype(np.float32),
    )
    return Evaluation(
        network="delta",
        task="pets",
        version="v1",
        delta_sha256="0" * 64,
        precision="fp32",
        data="digits",
        split="test",
        splits_sha256="0" * 64,
        recorded_accuracy=None,
        seconds=1.0,
        metrics=metrics_of(predictions.logits, predictions.targets, labels),
        predictions=predictions,
        notes=(),
    )


def right(n: int, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are sure of the right class, and the classes."""
    targets = np.arange(n) % n_classes
    return 5.0 * np.eye(n_classes)[targets], targets


def test_without_mistakes_there_is_no_picture_and_no_table_of_them() -> None:
    evaluation = make_evaluation(*right(9))
    assert mistakes_section(evaluation, "").missing == "No image was answered wrong."
    blocks = answers_section(evaluation, "").blocks
    assert [type(block) for block in blocks] == [Figure, Table]
    assert isinstance(blocks[0], Figure)
    assert "No image is answered wrong." in blocks[0].alt


def test_the_surest_mistakes_come_first() -> None:
    logits, targets = right(20)
    sureness = {3: 7.0, 11: 9.0, 5: 8.0}
    for image, logit in sureness.items():
        logits[image] = 0
        logits[image, (targets[image] + 1) % 3] = logit
    evaluation = make_evaluation(logits, targets)
    section = mistakes_section(evaluation, "")
    (gallery,) = section.blocks
    assert isinstance(gallery, Gallery)
    assert section.lead == "3 images of 20 are answered wrong."
    assert [each.lines[2] for each in gallery.pictures] == ["image/11", "image/5", "image/3"]
    share = np.exp(9) / (np.exp(9) + 2)
    answered, own = gallery.pictures[0].lines[:2]
    assert answered == f"class 0 with {share:.1%}"
    assert own.startswith("is class 2, given 0.0%")
    with Image.open(BytesIO(gallery.pictures[0].png)) as shown:
        assert shown.tobytes() == evaluation.predictions.images.image(11).tobytes()


def test_no_more_than_some_mistakes_are_shown() -> None:
    logits, targets = right(40)
    (gallery,) = mistakes_section(make_evaluation(-logits, targets), "").blocks
    assert isinstance(gallery, Gallery)
    assert len(gallery.pictures) == MOST


@pytest.mark.parametrize("n_classes", [MOST_CELLS, 60, 250])
def test_any_number_of_classes_can_be_shown(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(2 * n_classes) % n_classes
    logits = rng.normal(size=(len(targets), n_classes))
    blocks = answers_section(make_evaluation(logits, targets), "").blocks
    figure, confused, classes = blocks
    assert isinstance(figure, Figure)
    assert isinstance(confused, Table)
    assert isinstance(classes, Table)
    assert ("<image" in figure.drawings[0].svg) == (n_classes > MOST_CELLS)
    assert len(confused.rows) == 10
    assert len(classes.rows) == min(n_classes, 200)
    assert ("50 classes that are better are left out" in classes.caption) == (n_classes == 250)
    assert bool(classes.folded) == (n_classes > 20)


def test_a_map_of_many_images_shows_some_of_them_the_same_at_every_call() -> None:
    few, many = (make_evaluation(*right(n)) for n in (30, MOST_POINTS + 100))
    assert drawn_images(few) == list(range(30))
    drawn = drawn_images(many)
    assert len(set(drawn)) == MOST_POINTS
    assert drawn == sorted(drawn) == drawn_images(many)


def test_too_few_images_make_no_map() -> None:
    features = np.zeros((4, 3), np.float32)
    section = features_section(features, features, np.zeros(4, np.int64), ("a",), n_images=4)
    assert section.missing == "A map needs 10 images at least, there are 4."


@pytest.mark.parametrize("n_classes", [3, 40])
def test_a_map_says_how_many_neighbours_are_alike(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(80) % n_classes
    mixed = rng.normal(size=(80, 5)).astype(np.float32)
    apart = 50 * np.eye(n_classes, dtype=np.float32)[targets]
    apart += rng.normal(size=apart.shape).astype(np.float32)
    labels = tuple(f"class {i}" for i in range(n_classes))
    section = features_section(mixed, apart, targets, labels, n_images=90)
    (figure,) = section.blocks
    assert isinstance(figure, Figure)
    assert "80 images drawn from 90" in figure.caption
    assert figure.alt.endswith("100.0% after.")
    assert [each.name for each in figure.drawings] == ["features-before", "features-after"]
    assert ("class 2</text>" in figure.drawings[0].svg) == (n_classes == 3)
