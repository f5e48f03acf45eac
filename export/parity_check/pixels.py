"""Does the model that takes decoded pixels see what Pillow makes of them, and answer alike?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from glora_deploy.data.preprocess import Preprocessing, normalise, to_pixels
from glora_deploy.errors import MissingDependencyError
from glora_deploy.parity import PIXEL_LIMIT, Limits, Outcome, PixelDifference, Step, judge
from glora_deploy.precision import Precision
from glora_deploy.release_memory import release_memory
from glora_deploy.store.export_record import MODEL_FILE, PIXELS_FILE

from ..onnx_model.ort_session import PROVIDERS, OnnxSession
from ..onnx_model.preprocessing_graph import LEVELS, PIXELS
from ..onnx_model.with_preprocessing import (
    PILLOW,
    PROBABILITIES,
    only_preprocessing,
    pillow_version,
)
from .batch_sizes import in_batches
from .inputs import ParityInputs
from .stages import NO_BF16

AWKWARD = "noise of awkward sizes"

_Stack = NDArray[np.uint8]
"""Images of one size, ``(n, h, w, 3)``."""


def check_pixels(
    folder: Path,
    preprocessing: Preprocessing,
    inputs: ParityInputs,
    precision: Precision,
    limits: Limits,
) -> list[Step]:
    """Compare ``model.pixels.onnx`` with the store's own preprocessing before ``model.onnx``.

    Pixels are compared where the graph rounds them to 8 bits, before they are normalised;
    probabilities with the softmax of the logits, their largest error taken as it is.

    Args:
        folder: The export, which holds both models.
        preprocessing: Of the network.
        inputs: Its photos are fed one by one, at their own sizes.
        precision: Of the export.
        limits: What the probabilities must keep, with 1 as their spread.

    Returns:
        A step for the photos, if there are any, and one for noise whose sizes are a pixel, a line,
        the network's own, and far from its shape.

    Raises:
        ExportError: If ONNX Runtime refuses a model, or it has no preprocessing.
        DataError: If a photo cannot be read.
    """
    stage, cpu = f"pixels-{precision}", PROVIDERS["cpu"][0]
    sets = _sets(inputs, preprocessing.size)
    try:
        seen = _see(folder / PIXELS_FILE, preprocessing, sets)
        answers = None if precision == "bf16" else _answer(folder, sets, seen)
    except MissingDependencyError as error:
        reason = str(error)
        return [
            Step(stage=stage, inputs=name, n_images=0, outcome="skipped", reason=reason)
            for name in sets
        ]
    steps = []
    for name, (images, difference, problem) in seen.items():
        if problem or answers is None:
            outcome: Outcome = "fail" if problem else "skipped"
            n, reason = len(images), problem or NO_BF16
            step = Step(stage=stage, inputs=name, n_images=n, outcome=outcome, reason=reason)
        else:
            found, expected = answers[name]
            against = [(f"softmax of onnx-{precision}", expected)]
            step = judge(stage, name, found, against, spread=1, limits=limits, what=PROBABILITIES)
        steps.append(step.model_copy(update={"pixels": difference, "provider": cpu}))
    return steps


_Sets = Mapping[str, Callable[[], Iterator[_Stack]]]
"""Images by what they are, made anew for each pass over them: photos are large."""


class _Seen(NamedTuple):
    """What the preprocessing makes of one set of images."""

    images: NDArray[np.float32]
    """As Pillow has them: ``(n, 3, h, w)``, normalised."""
    difference: PixelDifference
    problem: str
    """Why the difference is too large; empty if it is not."""


def _sets(inputs: ParityInputs, size: tuple[int, int]) -> _Sets:
    photos = inputs.photos

    def each_photo() -> Iterator[_Stack]:
        assert photos is not None
        return (np.asarray(photos.image(i).convert("RGB"))[None] for i in range(len(photos)))

    def each_awkward() -> Iterator[_Stack]:
        rng = np.random.default_rng(0)
        return (rng.integers(0, 256, (*shape, 3), np.uint8) for shape in _awkward(*size))

    ours = {} if photos is None else {inputs.data: each_photo}
    return {**ours, AWKWARD: each_awkward}


def _awkward(height: int, width: int) -> list[tuple[int, int, int]]:
    """Numbers and sizes of images beside those of a network: one pixel, lines, its own, far off."""
    return [
        (1, 1, 1),
        (1, 1, 97),
        (1, 97, 1),
        (1, height, width),
        (1, height // 2 + 1, width // 3 + 1),
        (1, 7 * height + 1, 2 * width + 3),
        (3, height + 2, 2 * width + 3),
    ]


def _see(path: Path, preprocessing: Preprocessing, sets: _Sets) -> dict[str, _Seen]:
    """Run the model's preprocessing alone beside Pillow."""
    model = onnx.load_model(path, load_external_data=False)
    session = OnnxSession(only_preprocessing(model), folder=path.parent, lean=True)
    made_with = next((p.value for p in model.metadata_props if p.key == PILLOW), "")
    del model
    seen = {}
    for name, stacks in sets.items():
        pixels, levels = [], []
        for stack in stacks():
            pixels += [to_pixels(Image.fromarray(one), preprocessing) for one in stack]
            levels.append(session.run(LEVELS, {PIXELS: stack}))
        ours = np.stack(pixels)
        off = np.abs(np.moveaxis(np.concatenate(levels), 1, -1) - ours)
        difference = PixelDifference(max_levels=float(off.max()), share=float((off > 0).mean()))
        problem = _problem(difference, made_with)
        seen[name] = _Seen(normalise(ours, preprocessing), difference, problem)
    return seen


def _problem(found: PixelDifference, made_with: str) -> str:
    if found.max_levels <= PIXEL_LIMIT.max_levels and found.share <= PIXEL_LIMIT.share:
        return ""
    here = pillow_version()
    other = f"; it has those of Pillow {made_with}, here is {here}" if made_with != here else ""
    return (
        f"{found.share:.2%} of the pixels differ from Pillow's, by up to {found.max_levels:g} of "
        f"255 levels, limit {PIXEL_LIMIT.share:.0%} and {PIXEL_LIMIT.max_levels:g}{other}"
    )


def _answer(
    folder: Path, sets: _Sets, seen: Mapping[str, _Seen]
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Probabilities of the one model and of the other, ``(n, n_classes)``, for each set."""
    logits = in_batches(OnnxSession(folder / MODEL_FILE, lean=True).logits)
    expected = {name: _softmax(logits(of.images)) for name, of in seen.items()}
    del logits
    release_memory()
    whole = OnnxSession(folder / PIXELS_FILE, lean=True)
    found = {
        name: np.concatenate([whole.run(PROBABILITIES, {PIXELS: stack}) for stack in stacks()])
        for name, stacks in sets.items()
    }
    return {name: (found[name], expected[name]) for name in sets}


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))
