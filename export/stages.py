"""The networks that parity compares: each stage from the training graph to the written file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glora_deploy.artifact import Artifact
from glora_deploy.backbone import Backbone
from glora_deploy.inject import inject, restore_supports
from glora_deploy.merge import merge_model

Logits = Callable[[NDArray[Any]], NDArray[Any]]
"""Images ``(n, 3, h, w)`` float32 in, logits ``(n, n_classes)`` out."""

BATCH = 16
"""Images a stage sees at once: parity runs beside the export, in bounded memory."""

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TaskNetwork:
    """A backbone and one task's delta, ready to be built in any of its forms."""

    backbone: Backbone
    artifact: Artifact
    tensors: dict[str, Tensor]
    """The delta, widened to float32."""

    @classmethod
    def load(cls, backbone: Backbone, artifact: Artifact) -> TaskNetwork:
        """Read the delta.

        Raises:
            ArtifactError: If it is not what its manifest says.
        """
        tensors = {
            name: torch.from_numpy(np.asarray(value, np.float32).copy())
            for name, value in artifact.tensors().items()
        }
        return cls(backbone, artifact, tensors)

    @property
    def supports(self) -> dict[str, Tensor]:
        """The delta without the classifier."""
        head = self.artifact.manifest.is_head
        return {name: tensor for name, tensor in self.tensors.items() if not head(name)}

    def unmerged(self) -> nn.Module:
        """The vanilla network with this task's classifier and the frozen backbone."""
        model = self.backbone.build(len(self.artifact.manifest.labels))
        head = self.artifact.manifest.is_head
        model.load_state_dict({k: v for k, v in self.tensors.items() if head(k)}, strict=False)
        return model

    def supernet(self) -> nn.Module:
        """The training graph with the delta's subnet fixed, float32."""
        manifest = self.artifact.manifest
        subnet = manifest.subnet()
        ranks = {path.rank for paths in subnet.values() for _, path in paths.items()} - {0}
        model = self.unmerged()
        if not subnet:  # a linear probe: the classifier is all there is
            return model
        inject(model, manifest.shapes(), ranks=sorted(ranks or {1}), generator=torch.Generator())
        restore_supports(model, subnet, self.supports)
        return model.eval()

    def merged(self, dtype: torch.dtype) -> nn.Module:
        """The vanilla merged network; every layer merged in float64 and rounded once."""
        # Merging in a float64 model keeps the reference free of any float32 rounding.
        model = self.unmerged()
        if dtype == torch.float64:
            model = model.double()
        return merge_model(model, self.supports, dtype=dtype).eval()


def torch_logits(model: nn.Module) -> Logits:
    """Run a torch network in its own dtype on the CPU, a few images at a time."""
    dtype = next(model.parameters()).dtype

    @torch.inference_mode()
    def logits(images: NDArray[Any]) -> NDArray[Any]:
        found = [
            model(torch.from_numpy(images[start : start + BATCH]).to(dtype)).double().numpy()
            for start in range(0, len(images), BATCH)
        ]
        return np.concatenate(found)

    return logits


def in_batches(run: Logits) -> Logits:
    """Feed a stage the batch sizes that matter: one, two, an odd one, then full ones."""

    def logits(images: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([run(images[start:stop]) for start, stop in _batches(len(images))])

    return logits


def within(run: Logits, least: int, most: int) -> Logits:
    """Feed a stage that takes ``least`` to ``most`` images at once: split, and pad with repeats."""

    def logits(images: NDArray[Any]) -> NDArray[Any]:
        found = []
        for start in range(0, len(images), most):
            part = images[start : start + most]
            padded = np.resize(part, (max(least, len(part)), *part.shape[1:]))
            found.append(run(padded)[: len(part)])
        return np.concatenate(found)

    return logits


def _batches(n: int) -> Iterator[tuple[int, int]]:
    start = 0
    for size in (1, 2, 3):
        if start < n:
            yield start, min(start + size, n)
        start += size
    for begin in range(start, n, BATCH):
        yield begin, min(begin + BATCH, n)
