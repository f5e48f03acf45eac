"""Supports whose factors layers share: how few numbers stand for the B of every layer.

FacT (Jie and Deng, arXiv:2212.03145) sees the changes of all layers as one tensor of square slices
``(d, d)``, d being the network's width: a fused qkv is three slices, the MLP's layers four each.
Every slice is ``V S U``, with ``U (rank, d)`` and ``V (d, rank)`` the same for all layers::

    tensor-train   S of a slice is its own        <layer>.S (n, rank, rank)
    tucker         S = sum_k core[:, :, k] P[k]   core (rank, rank, rank), <layer>.P (rank, n)

with n the slices of a layer. Slices below each other (``d_out >= d_in``) share U, slices beside
each other share V, so the whole layer is ``B_d @ B_u`` of the same rank. For arrays of any library
that multiplies matrices by ``@``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

from .forms import Form, LayerForms, LayerShape

SharedKind = Literal["tensor-train", "tucker"]

Array = TypeVar("Array")


def shared_forms(rank: int) -> LayerForms:
    """What every layer with shared factors has: B of one rank."""
    return LayerForms(B=Form("lora", rank))


def shared_shapes(
    kind: SharedKind, rank: int, layers: Mapping[str, LayerShape]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that stand for the B of these layers.

    >>> layer = LayerShape(kind="linear", d_out=6, d_in=2, bias=True)
    >>> shared_shapes("tensor-train", 1, {"qkv": layer})
    {'U': (1, 2), 'V': (2, 1), 'qkv.S': (3, 1, 1)}

    Raises:
        ValueError: If the layers are not made of square slices of one width; names one.
    """
    if kind not in get_args(SharedKind):
        raise ValueError(f"kind must be one of {get_args(SharedKind)}, got {kind!r}")
    if not layers:
        raise ValueError("shared factors need at least one layer")
    width = min(min(shape.d_out, shape.d_in) for shape in layers.values())
    found: dict[str, tuple[int, ...]] = {"U": (rank, width), "V": (width, rank)}
    if kind == "tucker":
        found["core"] = (rank, rank, rank)
    for name, shape in layers.items():
        short, long = sorted((shape.d_out, shape.d_in))
        if shape.kind != "linear" or short != width or long % width:
            raise ValueError(
                f"layers that share factors must be linear and of slices ({width}, {width}), got "
                f"{name}, {shape.kind} of ({shape.d_out}, {shape.d_in})"
            )
        n_slices = long // width
        if kind == "tucker":
            found[f"{name}.P"] = (rank, n_slices)
        else:
            found[f"{name}.S"] = (n_slices, rank, rank)
    return found


def shared_supports(
    kind: SharedKind, tensors: Mapping[str, Array], layer: str, shape: LayerShape
) -> dict[str, Array]:
    """``B_d (d_out, rank)`` and ``B_u (rank, d_in)`` of one layer.

    Args:
        kind: How they are shared.
        tensors: As ``shared_shapes`` names them; others are passed over.
        layer: Name of the layer.
        shape: Of it.
    """
    u: Any = tensors["U"]
    v: Any = tensors["V"]
    rank = u.shape[0]
    inner: Any
    if kind == "tucker":
        core: Any = tensors["core"]
        own: Any = tensors[f"{layer}.P"]
        mixed = core.reshape(rank * rank, rank) @ own
        inner = mixed.swapaxes(0, 1).reshape(-1, rank, rank)
    else:
        inner = tensors[f"{layer}.S"]
    if shape.d_out >= shape.d_in:
        return {"B_d": (v @ inner).reshape(shape.d_out, rank), "B_u": u}
    return {"B_d": v, "B_u": (inner @ u).swapaxes(0, 1).reshape(rank, shape.d_in)}
