"""What a network's classifier sees of images: the one module of this wing that needs torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.image_set import ImageSet
from ..data.preprocess import Preprocessing, preprocess_batch
from ..evaluation.choices import Device
from ..evaluation.delta_network import device_of, frozen_network, merged_network
from ..store.artifact import Artifact
from ..store.reader import StoreReader

_BATCH = 32


def frozen_and_merged_features(
    store: StoreReader,
    artifact: Artifact,
    images: ImageSet,
    *,
    device: Device = "auto",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features of the frozen backbone, and of the network that a delta merges into.

    They are what reaches the (first) classifier: a vector for each image, ``(n, n_features)``.

    Args:
        store: Keeps the backbone.
        artifact: The delta.
        images: At least one.
        device: Where to compute.
        report: Told how many images of how many are done, both networks counted.

    Raises:
        GloraDeployError: As ``DeltaNetwork``.
        DataError: If an image cannot be read.
    """
    manifest = artifact.manifest
    preprocessing = Preprocessing(**manifest.preprocessing.model_dump())
    place = device_of(device)
    found, n, done = [], 2 * len(images), 0
    for build in (frozen_network, merged_network):
        network = build(store, artifact).to(place)
        seen = _Seen(network.get_submodule(manifest.backbone.classifier[0]))
        for start in range(0, len(images), _BATCH):
            some = range(start, min(start + _BATCH, len(images)))
            batch = preprocess_batch((images.image(i) for i in some), preprocessing)
            with torch.inference_mode():
                network(torch.from_numpy(batch).to(place))
            done += len(some)
            report(done, n)
        found.append(seen.features())
    frozen, merged = found
    return frozen, merged


class _Seen:
    """Keeps the first input of a module at each call; of maps, the mean over the pixels."""

    def __init__(self, module: nn.Module) -> None:
        self._batches: list[NDArray[np.float32]] = []
        module.register_forward_pre_hook(self._keep)

    def features(self) -> NDArray[np.float32]:
        return np.concatenate(self._batches)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0]
        if features.ndim > 2:  # (n, n_features, h, w): this classifier pools by itself
            features = features.flatten(2).mean(2)
        self._batches.append(features.float().cpu().numpy())
