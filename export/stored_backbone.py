"""The backbone that a delta needs: found in the store, or put there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from glora_deploy.errors import BackboneMismatchError, StoreError
from glora_deploy.store.audit import backbone_option
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.mapped_safetensors import map_tensors
from glora_deploy.store.reader import BACKBONE_WEIGHTS
from glora_deploy.store.store import ArtifactStore

if TYPE_CHECKING:  # it brings torch, which most exports do without until they are compared
    from glora_deploy.backbones.load import Backbone


def backbone_of(store: ArtifactStore, manifest: Manifest) -> Path:
    """The store's folder of the backbone that a delta was trained on, its tensors checked.

    Raises:
        StoreError: If the store does not keep it.
        BackboneMismatchError: If the stored tensors are not the ones it was trained on.
        ArtifactError: If they cannot be read.
    """
    recorded = manifest.backbone
    try:
        folder = store.backbone_path(recorded.fingerprint)
    except StoreError as error:
        raise StoreError(
            f"{manifest.task}/{manifest.version}: its backbone {recorded.source} "
            f"({recorded.fingerprint[:12]}..) is not in {store.root}. "
            f"Give it with {backbone_option(recorded.source)}."
        ) from error
    found = fingerprint(map_tensors(folder / BACKBONE_WEIGHTS))
    if found != recorded.fingerprint:
        raise BackboneMismatchError(
            f"{folder / BACKBONE_WEIGHTS}: the backbone's tensors have fingerprint {found[:12]}.., "
            f"the delta was trained on {recorded.fingerprint[:12]}... Restore the file."
        )
    return folder


def require_same_backbone(manifest: Manifest, backbone: Backbone) -> None:
    """Refuse a backbone that a delta was not trained on.

    Raises:
        BackboneMismatchError: If the fingerprints differ; names both.
    """
    recorded = manifest.backbone
    if backbone.fingerprint != recorded.fingerprint:
        raise BackboneMismatchError(
            f"{manifest.task}: the delta was trained on {recorded.source} (fingerprint "
            f"{recorded.fingerprint[:12]}..), this is {backbone.source} "
            f"({backbone.fingerprint[:12]}..). Give the one it was trained on."
        )


def provide_backbone(store: ArtifactStore, manifest: Manifest, backbone: Backbone) -> None:
    """Put a backbone into the store, once it is the one this delta was trained on.

    Raises:
        BackboneMismatchError: If it is another; names both.
        StoreError: If no space is left.
    """
    require_same_backbone(manifest, backbone)
    tensors = {name: tensor.numpy() for name, tensor in backbone.tensors.items()}
    store.put_backbone(backbone.fingerprint, tensors, backbone.config())


def provide_named_backbone(
    store: ArtifactStore, manifest: Manifest, name: str | None, checkpoint: Path | str | None
) -> None:
    """Load the backbone that a user names for this delta, and put it into the store.

    Args:
        store: Gets it.
        manifest: Of the delta.
        name: timm's, or a packaged one; the delta's own by default.
        checkpoint: Weights in a file, or ``random:SEED``.

    Raises:
        GloraDeployError: If it cannot be loaded, or is another than the delta was trained on.
        ValueError: If there is no such network.
    """
    from glora_deploy.backbones.load import load_backbone

    recorded = manifest.backbone
    loaded = load_backbone(
        name or recorded.name,
        checkpoint=checkpoint,
        input_size=recorded.input_size[1:],
        model_args=recorded.model_args,
    )
    provide_backbone(store, manifest, loaded)
