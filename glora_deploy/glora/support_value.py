"""What the tensors of one support stand for: the number, vector or matrix that enters the formula.

For arrays of any library that multiplies matrices by ``@``: NumPy in the merge without torch, torch
elsewhere. ``forms`` says which names and shapes there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from .forms import Support

Array = TypeVar("Array")


def split_delta(
    tensors: Mapping[str, Array], layers: Iterable[str]
) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
    """A delta's supports by layer, and the rest of it, which is the classifier.

    Args:
        tensors: ``<layer>.A_d``, ..., and the classifier's under its own names.
        layers: The adapted layers; those without supports get an empty mapping.
    """
    supports: dict[str, dict[str, Array]] = {layer: {} for layer in layers}
    rest: dict[str, Array] = {}
    for name, tensor in tensors.items():
        layer, _, support = name.rpartition(".")
        if layer in supports:
            supports[layer][support] = tensor
        else:
            rest[name] = tensor
    return supports, rest


def value_of(tensors: Mapping[str, Array], support: Support) -> Array | None:
    """The value of one support: the product of its lora factors, its vector or scalar, or None.

    A and B broadcast to ``(d_out, d_in)``, C is ``(d_in, 1)``, D and E broadcast to ``(d_out,)``.

    Args:
        tensors: Of one layer, by name; they fit it.
        support: Which one.
    """
    if f"{support}_d" in tensors:
        down: Any = tensors[f"{support}_d"]
        product: Array = down @ tensors[f"{support}_u"]
        return product
    return tensors.get(support)


def factors_of(tensors: Mapping[str, Array], support: Support) -> tuple[Array, Array | None] | None:
    """A or B as ``down @ up``, never multiplied out; None if the layer has none.

    Args:
        tensors: As for ``value_of``.
        support: A or B.

    Returns:
        ``down (d_out, rank)`` and ``up (rank, d_in)``. A vector ``(d_out, 1)`` or scalar ``(1, 1)``
        is of rank one, the same for every input: None stands for its up, a row of ones.
    """
    if f"{support}_d" in tensors:
        return tensors[f"{support}_d"], tensors[f"{support}_u"]
    return (tensors[support], None) if support in tensors else None
