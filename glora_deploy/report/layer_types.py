"""Layers of one type, such as every ``mlp.fc1``, told by their dotted names."""

from __future__ import annotations

from collections.abc import Iterable


def by_type(names: Iterable[str]) -> dict[str, list[str]]:
    """Layers by type, each in the given order: the name without its numbers.

    What all types have before their last part is left out too.

    >>> by_type(["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.attn.qkv"])
    {'attn.qkv': ['blocks.0.attn.qkv', 'blocks.1.attn.qkv'], 'mlp.fc1': ['blocks.0.mlp.fc1']}
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        words = tuple(part for part in name.split(".") if not part.isdigit())
        found.setdefault(words, []).append(name)
    shared = 0
    while len({words[: shared + 1] for words in found}) == 1 and all(
        len(words) > shared + 1 for words in found
    ):
        shared += 1
    if len(found) == 1:  # one type alone keeps what tells most of it
        shared = max(0, min(shared, len(next(iter(found))) - 2))
    return {".".join(words[shared:]): layers for words, layers in found.items()}
