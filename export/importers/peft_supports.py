"""What PEFT keeps of one module, as supports A to E on its frozen weight; see ``peft``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from glora_deploy.errors import ArtifactError, BackboneMismatchError
from glora_deploy.merge.formula import merge

from .assemble import Array
from .peft_config import Config


def supports_of(
    module: str, tensors: Mapping[str, Array], w0: Array, config: Config, where: str
) -> dict[str, Array]:
    """One module's update as supports, named and shaped as in :class:`.assemble.Part`.

    Args:
        module: Its name in the adapter.
        tensors: ``lora_A``, ``glora_B.Xd``, ... of it.
        w0: Its frozen weight, flattened to ``(rows, the rest)``.
        config: Of the adapter.
        where: Named in errors.

    Raises:
        ArtifactError: If a tensor is missing, or one that must be zero is not.
        BackboneMismatchError: If DoRA's do not fit the frozen weight.
    """
    if not tensors:
        return {}
    if any(name.startswith("glora_") for name in tensors):
        return _glora(module, tensors, where)
    return _lora(module, tensors, w0, config, where)


def _lora(
    module: str, tensors: Mapping[str, Array], w0: Array, config: Config, where: str
) -> dict[str, Array]:
    try:
        up, down = (matrix(tensors[f"lora_{letter}"]) for letter in "AB")
    except KeyError as error:
        raise ArtifactError(f"{where}: {module}: lacks {error.args[0]}") from error
    scaling = config.scaling(module, len(up))
    supports = {"B_d": scaling * down, "B_u": up}
    if "lora_B.bias" in tensors:
        supports["E"] = scaling * tensors["lora_B.bias"]
    if "lora_magnitude_vector" in tensors:
        gain = _dora_gain(f"{where}: {module}", w0, supports, tensors["lora_magnitude_vector"])
        supports |= {"A": gain - 1, "B_d": gain * supports["B_d"]}
    return supports


def _dora_gain(where: str, w0: Array, supports: Mapping[str, Array], magnitude: Array) -> Array:
    """What DoRA multiplies each row of ``w0 + dw`` by, ``(rows, 1)``."""
    fits = supports["B_d"].shape[0] == len(w0) == magnitude.size
    if not fits or supports["B_u"].shape[1] != w0.shape[1]:
        raise BackboneMismatchError(
            f"{where}: must fit the backbone's {w0.shape}, got "
            f"({supports['B_d'].shape[0]}, {supports['B_u'].shape[1]}) and {magnitude.size} "
            "magnitudes. Give the backbone it was trained on."
        )
    norm = np.linalg.norm(w0 + supports["B_d"] @ supports["B_u"], axis=1)
    gain: Array = magnitude.reshape(-1, 1) / norm[:, None]
    return gain


def _glora(module: str, tensors: Mapping[str, Array], where: str) -> dict[str, Array]:
    supports: dict[str, Array] = {}
    for name, value in tensors.items():
        support, kind = name.removeprefix("glora_").split(".")
        if kind == "zeros":  # PEFT writes down what a support on no path adds
            if value.any():
                raise ArtifactError(f"{where}: {module}: {name} must be zero, it is not")
        elif kind == "X":
            one = support in "AB" and value.shape == (1,)
            supports[support] = value.reshape(1, 1) if one else value
        else:
            supports[f"{support}_{kind[1]}"] = value
    return supports


def matrix(kernel: Array) -> Array:
    """A matrix, or the kernel of a convolution as one: ``(rows, the rest)``."""
    return kernel.reshape(len(kernel), -1)


def merge_whole(
    w0: Array, b0: Array | None, supports: Mapping[str, Array], where: str
) -> tuple[Array, Array | None]:
    """A classifier with its update folded in.

    Args:
        w0: Frozen weight, ``(n_classes, d_in)``.
        b0: Frozen bias, ``(n_classes,)``; None if it has none.
        supports: As from :func:`supports_of`.
        where: Named in errors.

    Raises:
        ArtifactError: If the update would give a bias to a classifier without one.
        BackboneMismatchError: If it does not fit.
    """
    if b0 is None and supports.keys() & {"C", "C_d", "D", "E"}:
        raise ArtifactError(f"{where}: must not change the bias of a classifier that has none")
    frozen_bias = None if b0 is None else torch.tensor(b0)
    try:
        w, b = merge(
            torch.tensor(w0), frozen_bias, {name: torch.tensor(s) for name, s in supports.items()}
        )
    except ValueError as error:
        raise BackboneMismatchError(f"{where}: {_no_fit(w0, supports)}") from error
    return w.numpy(), None if b is None else b.numpy()


def _no_fit(w0: Array, supports: Mapping[str, Array]) -> str:
    shapes = ", ".join(f"{name} {value.shape}" for name, value in sorted(supports.items()))
    return f"must fit the classifier's {w0.shape}, got {shapes}. Give the one it was trained on."
