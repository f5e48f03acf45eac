"""GLoRA: a supernet of every form of every support, searched for its best subnet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..method import Method


class Glora(Method):
    """Paths of A to E on every linear layer, drawn anew each step (arXiv:2306.07967)."""

    name = "glora"
    summary = "a supernet of all supports, and a search for its best subnet"
    source = "arXiv:2306.07967"
    possible_kinds = ("linear", "conv", "affine")
    paper: ClassVar[Mapping[str, Any]] = {}
    searches = True
