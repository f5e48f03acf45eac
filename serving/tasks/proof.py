"""Whether the store's own parity record lets a version be served."""

from __future__ import annotations

from glora_deploy.errors import ArtifactError, ParityError
from glora_deploy.precision import Precision
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.reader import StoreReader


def require_proof(
    store: StoreReader,
    artifact: Artifact,
    precision: Precision,
    *,
    allow_unproven: bool,
    require_proven: bool,
) -> None:
    """Refuse a version that its own export speaks against.

    A version that was never exported is served: its delta is checked against its manifest, its
    backbone against its fingerprint, and the graph is one that another export has proven.

    Args:
        store: Holds the export.
        artifact: The version.
        precision: Of the export.
        allow_unproven: Pass whatever the record says.
        require_proven: Refuse a version without a record that passed.

    Raises:
        ParityError: If the export failed its parity check, or is missing and required.
        ArtifactError: If the record is damaged, or of another version.
    """
    if allow_unproven:
        return
    folder = store.export_dir(artifact, precision)
    name = f"{artifact.task}/{artifact.version}"
    record = ExportRecord.read(folder)
    if record is None:
        if require_proven:
            raise ParityError(
                f"{name}: must have an export in {precision} that passed its parity check, "
                f"got none. Run: glora export --task {artifact.task} --version {artifact.version}"
            )
        return
    try:
        record.require_of(folder, artifact.manifest, precision)
    except ArtifactError:
        if require_proven:
            raise
        return  # it says nothing of this version
    if not record.usable:
        raise ParityError(
            f"{name}: its export in {precision} must have passed its parity check, it failed"
        )
