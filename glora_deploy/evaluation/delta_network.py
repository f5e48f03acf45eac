"""A delta merged into its backbone with torch: the one module of this wing that needs torch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..backbones.load import build_empty
from ..data.preprocess import Preprocessing
from ..errors import ArtifactError, BackboneMismatchError, StoreError
from ..merge.formula import merge_into
from ..precision import Precision
from ..store.artifact import Artifact
from ..store.audit import backbone_option
from ..store.fingerprint import fingerprint
from ..store.mapped_safetensors import map_tensors
from ..store.reader import BACKBONE_WEIGHTS, StoreReader
from .choices import Device


class DeltaNetwork:
    """The vanilla network that a stored delta merges into, float32, in eval mode.

    Args:
        store: Keeps the backbone.
        artifact: The delta.
        device: Where it computes; ``auto`` takes CUDA where there is one.

    Raises:
        StoreError: If the store does not keep the backbone.
        BackboneMismatchError: If its tensors are not those that the delta was trained on.
        ArtifactError: If a file is not what the manifest says.
        NonFiniteError: If a merged weight is not finite.
        ValueError: If ``cuda`` is asked for and torch finds none.
    """

    precision: Precision = "fp32"

    def __init__(self, store: StoreReader, artifact: Artifact, *, device: Device = "auto") -> None:
        manifest = artifact.manifest
        self._device = _device(device)
        self._model = _merged(store, artifact).to(self._device)
        self.task, self.version = manifest.task, manifest.version
        self.delta_sha256 = manifest.adapter.sha256
        self.labels = manifest.labels
        self.preprocessing = Preprocessing(**manifest.preprocessing.model_dump())

    @torch.inference_mode()
    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, n_classes)`` of preprocessed images ``(n, 3, h, w)``."""
        found: Tensor = self._model(torch.from_numpy(images).to(self._device))
        return found.float().cpu().numpy()


def _merged(store: StoreReader, artifact: Artifact) -> nn.Module:
    manifest = artifact.manifest
    frozen = _backbone_tensors(store, artifact)
    supports: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, array in artifact.tensors().items():
        tensor = torch.from_numpy(np.array(array, np.float32))
        (head if manifest.is_head(name) else supports)[name] = tensor
    adapted = {
        name: tensor.clone()  # what is merged reads it, while the network's own is overwritten
        for name, tensor in frozen.items()
        if name.rpartition(".")[0] in manifest.layers
    }
    backbone = manifest.backbone
    model = build_empty(backbone.name, backbone.model_args, len(manifest.labels))
    try:
        model.load_state_dict({**frozen, **head}, strict=True, assign=True)
    except RuntimeError as error:
        raise ArtifactError(
            f"{manifest.task}/{manifest.version}: backbone and classifier must fill "
            f"{backbone.name}, they do not: {str(error).splitlines()[-1].strip()}"
        ) from error
    merge_into(model, adapted, supports, manifest.layers)
    return model


def _backbone_tensors(store: StoreReader, artifact: Artifact) -> dict[str, Tensor]:
    """The backbone's tensors, once they are the ones that the delta was trained on."""
    recorded = artifact.manifest.backbone
    try:
        path = store.backbone_path(recorded.fingerprint) / BACKBONE_WEIGHTS
    except StoreError as error:
        raise StoreError(
            f"{artifact.task}/{artifact.version}: its backbone {recorded.source} is not in "
            f"{store.root}, so it cannot be evaluated. An export with "
            f"{backbone_option(recorded.source)} puts it there."
        ) from error
    tensors = {name: np.array(array) for name, array in map_tensors(path).items()}
    if (found := fingerprint(tensors)) != recorded.fingerprint:
        raise BackboneMismatchError(
            f"{path}: the backbone's tensors have fingerprint {found[:12]}.., the delta was "
            f"trained on {recorded.fingerprint[:12]}... Restore the file."
        )
    return {name: torch.from_numpy(array) for name, array in tensors.items()}


def _device(name: Device) -> torch.device:
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ValueError("device cuda must be available, torch finds none. Use --device cpu.")
    return torch.device("cuda" if found and name != "cpu" else "cpu")
