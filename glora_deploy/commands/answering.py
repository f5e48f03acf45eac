"""What answers for a version when it is measured: its export, or its delta merged with torch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from ..errors import ArtifactError
from ..evaluation.choices import Device, Split
from ..precision import Precision

if TYPE_CHECKING:
    from ..evaluation.predictions import Classifier
    from ..store.artifact import Artifact
    from ..store.reader import StoreReader

Of: TypeAlias = Literal["delta", "onnx"]

OfOption = Annotated[
    Of | None,
    typer.Option(
        "--of",
        help="Let the delta answer, merged with torch, or the exported ONNX model. By default the "
        "latter where there is a proven one.",
    ),
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option("--precision", help="Of the exported ONNX model; fp32 by default."),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="Built-in name, folder:PATH, lists:PATH or vtab:PATH; classes are matched by name. "
        "By default the data that the version was trained on.",
    ),
]
SkipOption = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave images out that cannot be read.")
]
SplitOption = Annotated[
    Split, typer.Option("--split", help="Of the data; all is train, val and test together.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Images computed at once.")]
IN_WORDS = {"delta": "the delta, merged with torch", "onnx": "the exported ONNX model"}


def require_choice(of: Of | None, precision: Precision | None) -> None:
    """Refuse a precision for a delta, whose weights are merged in fp32.

    Raises:
        typer.BadParameter: If there is one.
    """
    if of == "delta" and precision is not None:
        raise typer.BadParameter(
            "no effect on a delta, which is merged in fp32", param_hint="--precision"
        )


def require_data(data: str | None) -> None:
    """Refuse a text that can name no data.

    Raises:
        typer.BadParameter: If it is one.
    """
    from ..data.built_in_tasks import BUILT_IN_TASKS

    if data is not None and ":" not in data and data not in BUILT_IN_TASKS:
        raise typer.BadParameter(
            f"must be one of {', '.join(BUILT_IN_TASKS)}, or be given as folder:PATH, lists:PATH "
            f"or vtab:PATH, got {data!r}",
            param_hint="--data",
        )


def open_network(
    store: StoreReader,
    artifact: Artifact,
    *,
    of: Of | None,
    precision: Precision | None,
    device: Device = "auto",
) -> tuple[Classifier, Of]:
    """The network that answers for a version, and what it is.

    Args:
        store: Holds it.
        artifact: The version.
        of: What is to answer; with None the delta where a device is named, else the ONNX model
            where there is a proven one, or one of some precision is asked for.
        precision: Of the ONNX model.
        device: Where a delta computes.

    Raises:
        GloraDeployError: If it cannot be opened.
        ValueError: If the device is not there.
    """
    if of is None and device != "auto":
        of = "delta"  # the ONNX model has no choice
    if of is None:
        of = "onnx" if precision or _has_proven_onnx(store, artifact) else "delta"
    if of == "delta":
        from ..evaluation.delta_network import DeltaNetwork

        return DeltaNetwork(store, artifact, device=device), of
    from ..serving import Predictor

    return (
        Predictor.from_store(
            store.root, artifact.task, artifact.version, precision=precision or "fp32"
        ),
        of,
    )


def _has_proven_onnx(store: StoreReader, artifact: Artifact) -> bool:
    """Whether there is an ONNX model in fp32 that passed its parity check, and what runs it."""
    from ..store.export_record import ExportRecord

    if find_spec("onnxruntime") is None:
        return False
    try:
        record = ExportRecord.read(store.export_dir(artifact, "fp32"))
    except (ArtifactError, OSError):
        return False
    return (
        record is not None
        and record.usable
        and "onnx" in record.formats
        and record.adapter_sha256 == artifact.manifest.adapter.sha256
    )
