"""Layers of one type, such as every ``mlp.fc1``, told by their dotted names."""

from __future__ import annotations

from collections.abc import Iterable

_DIGITS = "0123456789"


def by_type(names: Iterable[str]) -> dict[str, list[str]]:
    """Layers by type, each in the given order: the name without the numbers that count blocks.

    These are parts of it that are numbers, but for the last, and a number at the end of the first.
    What all types begin with is left out too.

    >>> by_type(["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.attn.qkv"])
    {'attn.qkv': ['blocks.0.attn.qkv', 'blocks.1.attn.qkv'], 'mlp.fc1': ['blocks.0.mlp.fc1']}
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        found.setdefault(_words(name), []).append(name)
    shared = 0
    while len({words[: shared + 1] for words in found}) == 1 and all(
        len(words) > shared + 1 for words in found
    ):
        shared += 1
    if len(found) == 1:  # one type alone keeps what tells most of it
        shared = max(0, min(shared, len(next(iter(found))) - 2))
    return {".".join(words[shared:]): layers for words, layers in found.items()}


def _words(name: str) -> tuple[str, ...]:
    *parts, last = name.split(".")
    if parts:
        parts[0] = parts[0].rstrip(_DIGITS) or parts[0]  # the stages of a ResNet: layer1, layer2
    return (*(part for part in parts if not part.isdigit()), last)
