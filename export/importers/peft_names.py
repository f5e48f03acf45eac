"""What PEFT calls a module, and what the network calls it.

PEFT wraps each layer that it adapts and the network as a whole; transformers puts timm's network
under ``timm_model``, and people put it under attributes of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from numpy.typing import NDArray

from glora_deploy.backbones.load import Backbone

from .assemble import Place
from .transformers_names import timm_place


def plain_names(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Names as the network has them, without PEFT's wrappers; each module saved once."""
    plain: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if ".original_module." in name:
            continue  # the frozen twin of a module that was trained whole
        # With bias="all", a trained module's bias is there under both names.
        plain[name.replace(".modules_to_save.", ".")] = tensor
    return plain


def wrapper_of(modules: Collection[str], is_known: Callable[[str], bool]) -> str:
    """The prefix behind which most modules are known, the shortest of several; "" for none.

    >>> wrapper_of(["net.vit.fc1", "net.vit.fc2", "head"], {"fc1", "fc2", "head"}.__contains__)
    'net.vit.'
    """
    starts = {
        module[:start]
        for module in modules
        for start in (0, *(match.end() for match in re.finditer(r"\.", module)))
        if is_known(module[start:])
    }

    # A classifier beside the wrapped network has no prefix, and counts for every one.
    def n_known(prefix: str) -> int:
        return sum(is_known(module.removeprefix(prefix)) for module in modules)

    return min(starts, key=lambda prefix: (-n_known(prefix), len(prefix), prefix), default="")


class Names:
    """Where an adapter's modules lie in a timm network."""

    def __init__(self, backbone: Backbone, modules: Collection[str]) -> None:
        self._own = {name.rpartition(".")[0] for name in backbone.tensors}
        self._heads = backbone.classifier
        self.wrapper = wrapper_of(modules, self._is_known)

    def known(self, module: str) -> bool:
        """Whether the network has this module."""
        return self._is_known(self._inner(module))

    def place(self, module: str) -> Place | None:
        """Where a module lies that is not the classifier; None if there is none like it."""
        inner = self._inner(module)
        return Place(inner) if inner in self._own else timm_place(inner)

    def classifier(self, module: str) -> str | None:
        """The classifier's name for a module of it; None for any other."""
        return self._classifier(self._inner(module))

    def is_renamed(self, module: str) -> bool:
        """Whether a module is known by transformers' name alone."""
        return self._inner(module) not in self._own

    def _inner(self, module: str) -> str:
        # A classifier of somebody's own may lie beside the network that they wrapped.
        return module.removeprefix(self.wrapper)

    def _is_known(self, inner: str) -> bool:
        place = timm_place(inner)
        return (
            inner in self._own
            or self._classifier(inner) is not None
            or (place is not None and place.layer in self._own)
        )

    def _classifier(self, inner: str) -> str | None:
        if any(f"{inner}.".startswith(f"{head}.") for head in self._heads):
            return inner
        place = timm_place(inner)
        if place is not None and place.layer == "head" and len(self._heads) == 1:
            return self._heads[0]
        return None
