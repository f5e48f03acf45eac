"""One exported task that answers for images: labels with probabilities, and which delta it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glora_deploy.data.preprocess import Preprocessing, preprocess_batch
from glora_deploy.errors import DataError, NonFiniteError
from glora_deploy.precision import Precision

from .exported_model import ExportedModel, load_from_folder, load_from_store
from .image_input import ImageInput, to_image

MAX_BATCH = 32
"""Images that are computed at once, and whose pixels are held at once."""


@dataclass(frozen=True, slots=True)
class LabelProbability:
    """One class and how probable the network holds it to be."""

    label: str
    probability: float
    """Of 0 to 1; over all classes of the task they sum to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one image shows, and who says so."""

    top: tuple[LabelProbability, ...]
    """The most probable first; of equals, the class with the lower index."""
    task: str
    version: str
    delta_sha256: str
    """Of the adapter.safetensors that answered."""

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top[0].label

    @property
    def probability(self) -> float:
        """Of the most probable class."""
        return self.top[0].probability


class Predictor:
    """An exported task, loaded once, that answers for images until it is dropped.

    It computes with ONNX Runtime on the CPU, and nothing of it changes while it answers: any number
    of threads may call it at once. It goes on answering for the version that it was made with,
    whatever becomes current in the store, so make a new one after a change.

    Made by :meth:`from_store` or :meth:`from_folder`.
    """

    def __init__(self, model: ExportedModel) -> None:
        self._model = model

    @classmethod
    def from_store(
        cls,
        store: Path | str,
        task: str,
        version: str | None = None,
        *,
        precision: Precision = "fp32",
        threads: int | None = None,
    ) -> Predictor:
        """A task of a store; its export must hold an ONNX model, be whole and have been proven.

        Args:
            store: Folder of the store.
            task: Its name.
            version: The current one by default.
            precision: Which of its exports.
            threads: Threads within an operator; ONNX Runtime's own choice by default.

        Raises:
            StoreError: If store, task, version, export or model are not there; the message has
                the command that makes it.
            ArtifactError: If a file was altered, or is of another artifact.
            ParityError: If the export did not pass its parity check.
            ExportError: If ONNX Runtime refuses the model.
            MissingDependencyError: If ONNX Runtime is missing.
        """
        return cls(load_from_store(store, task, version, precision, threads))

    @classmethod
    def from_folder(cls, folder: Path | str, *, threads: int | None = None) -> Predictor:
        """A folder that an export wrote with ``--out``, or a downloaded repository of a push.

        Checksums are those of ``export.json``, which only an export in a store has beside it.

        Args:
            folder: Holds model.onnx and parity.json.
            threads: Threads within an operator; ONNX Runtime's own choice by default.

        Raises:
            GloraDeployError: As :meth:`from_store`.
        """
        return cls(load_from_folder(Path(folder), threads))

    @property
    def task(self) -> str:
        """The task's name."""
        return self._model.task

    @property
    def version(self) -> str:
        """The version that answers."""
        return self._model.version

    @property
    def precision(self) -> Precision:
        """Of the export's weights."""
        return self._model.precision

    @property
    def delta_sha256(self) -> str:
        """Of the adapter.safetensors that the model was made from."""
        return self._model.delta_sha256

    @property
    def labels(self) -> tuple[str, ...]:
        """Every class, in the order of the network's outputs."""
        return self._model.labels

    @property
    def preprocessing(self) -> Preprocessing:
        """What becomes of an image before the network sees it."""
        return self._model.preprocessing

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, n_classes)`` of preprocessed images ``(n, 3, h, w)``, both float32.

        What ``glora_deploy.evaluation`` asks for.
        """
        return self._model.session.logits(images)

    def predict(self, image: ImageInput, *, top_k: int | None = 5) -> Prediction:
        """The most probable labels of one image.

        Args:
            image: A path, the bytes of a JPEG, PNG or WEBP, an image of Pillow's, or RGB pixels
                ``(h, w, 3)`` uint8. Not modified.
            top_k: Most labels to give; None for all.

        Raises:
            DataError: If it cannot be decoded.
            TypeError: If it is none of these.
            ValueError: If an array has another type or shape, or ``top_k`` is below 1.
            NonFiniteError: If the network answers with NaN or infinity.
        """
        k = _checked(top_k)
        return self._answers([to_image(image)], k)[0]

    def predict_batch(
        self, images: Iterable[ImageInput], *, top_k: int | None = 5
    ) -> list[Prediction]:
        """The most probable labels of each image.

        Args:
            images: Any number of what :meth:`predict` takes, or pixels ``(n, h, w, 3)`` uint8; read
                once, ``MAX_BATCH`` at a time.
            top_k: Most labels to give; None for all.

        Returns:
            One for each image, in their order.

        Raises:
            Exception: As :meth:`predict`; says which image by its index.
        """
        if isinstance(images, str | bytes | Path):
            raise TypeError(f"images must be several, got one {type(images).__name__}. Use predict")
        k = _checked(top_k)
        remaining = enumerate(images)
        answers: list[Prediction] = []
        while batch := list(islice(remaining, MAX_BATCH)):
            answers += self._answers([_decoded(image, index) for index, image in batch], k)
        return answers

    def _answers(self, images: Sequence[Image.Image], top_k: int | None) -> list[Prediction]:
        model = self._model
        logits = model.session.logits(preprocess_batch(images, model.preprocessing))
        if not np.isfinite(logits).all():
            raise NonFiniteError(
                f"{model.folder}: logits must be finite, got NaN or infinity. Serve fp32."
            )
        return [
            Prediction(
                top=tuple(_most_probable(row, model.labels, top_k)),
                task=model.task,
                version=model.version,
                delta_sha256=model.delta_sha256,
            )
            for row in logits
        ]


def _checked(top_k: int | None) -> int | None:
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all labels, got {top_k}")
    return top_k


def _decoded(image: ImageInput, index: int) -> Image.Image:
    """One image of several; what is wrong with it is told with its index."""
    try:
        return to_image(image)
    except (DataError, TypeError, ValueError) as error:
        raise type(error)(f"images[{index}]: {error}") from error


def _most_probable(
    logits: NDArray[np.float32], labels: Sequence[str], top_k: int | None
) -> list[LabelProbability]:
    """The labels of the largest logits ``(n_classes,)`` with their share in the softmax."""
    shares = np.exp((logits - logits.max()).astype(np.float64))
    shares /= shares.sum()
    order = np.argsort(-logits, kind="stable")[:top_k]
    return [LabelProbability(labels[i], float(shares[i])) for i in order]
