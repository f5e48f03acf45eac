"""Where an interrupted training goes on: one file, replaced by one rename."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from glora_deploy.errors import ArtifactError
from glora_deploy.store.atomic_files import replace_file
from glora_deploy.store.history import EpochRecord

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of one parameter."""


def state_of(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Copies of all that a training changes.

    Args:
        parameters: By name, in the order the optimizer has them.
        optimizer: The AdamW that trains them.
    """
    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"value/{name}"] = parameter.detach().clone(memory_format=torch.contiguous_format)
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.clone(memory_format=torch.contiguous_format)
    return tensors


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training at the end of an epoch, and how it got there."""

    path: Path
    scratch: Path
    """Folder for what is being written, on the same file system."""

    @property
    def epoch(self) -> int:
        """Epochs done; 0 without a file.

        Raises:
            ArtifactError: If the file is damaged.
        """
        if not self.path.exists():
            return 0
        with self._open() as file:
            return int(json.loads(file.metadata()["state"])["epoch"])

    def restore(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> tuple[int, float, list[EpochRecord]]:
        """Load the state into parameters and optimizer, if there is a file.

        Args:
            parameters: By name, in the order the optimizer has them.
            optimizer: A fresh AdamW.

        Returns:
            Epochs done, seconds spent and what each epoch came to; nothing without a file.

        Raises:
            ArtifactError: If the file is damaged.
        """
        if not self.path.exists():
            return 0, 0.0, []
        state, tensors = self._read()
        for name, parameter in parameters.items():
            value = tensors.get(f"value/{name}")
            if value is None or value.shape != parameter.shape:
                raise self._unreadable(f"it does not fit {name}")
        moments: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for index, (name, parameter) in enumerate(parameters.items()):
                parameter.copy_(tensors[f"value/{name}"])
                if f"step/{name}" in tensors:
                    moments[index] = {key: tensors[f"{key}/{name}"] for key in MOMENTS}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        return state["epoch"], state["seconds"], state["history"]

    def write(
        self,
        tensors: Mapping[str, Tensor],
        epoch: int,
        seconds: float,
        history: Sequence[EpochRecord] = (),
    ) -> None:
        """Replace the file by a state.

        Args:
            tensors: As ``state_of`` gives them.
            epoch: Epochs done.
            seconds: Spent on them.
            history: What each of them came to.
        """
        epochs = [each.model_dump() for each in history]
        state = {"epoch": epoch, "seconds": seconds, "history": epochs}
        replace_file(self.path, save(dict(tensors), {"state": json.dumps(state)}), self.scratch)

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        with self._open() as file:
            state = json.loads(file.metadata()["state"])
            # A release before histories wrote none.
            state["history"] = [EpochRecord(**each) for each in state.get("history", ())]
            return state, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, reason: object) -> ArtifactError:
        return ArtifactError(
            f"{self.path}: the checkpoint cannot be read ({reason}). Start anew with --restart."
        )
