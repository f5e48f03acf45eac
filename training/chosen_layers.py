"""Which layers a training adapts; a pattern or kind that would choose nothing is refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import get_args

from torch import nn

from glora_deploy.glora.forms import LayerKind, LayerShape
from glora_deploy.glora.supernet_layers import find_layers

from .config import TrainConfig
from .method import Method
from .setting_error import SettingError


def choose_layers(
    model: nn.Module,
    config: TrainConfig,
    classifier: Collection[str],
    *,
    method: Method,
    strict: bool = True,
) -> dict[str, LayerShape]:
    """The layers to adapt, by dotted name, in module order.

    Args:
        model: Vanilla network.
        config: Kinds and patterns.
        classifier: Dotted names of what is trained whole and never adapted.
        method: Whose choice it is where the configuration leaves it open.
        strict: Whether every kind and pattern must matter. Patterns written for one method need
            not for another that is only compared with it.

    Raises:
        SettingError: If a kind or pattern chooses nothing, or no layer is left.
    """
    every = find_layers(model, kinds=get_args(LayerKind), exclude=tuple(classifier))
    layers = {
        name: shape
        for name, shape in every.items()
        if shape.kind in config.kinds and method.can_adapt(shape)
    }
    if config.include is None:
        layers = dict(method.choose(layers, config))
    include = ("*",) if config.include is None else config.include
    included = {n: s for n, s in layers.items() if any(fnmatchcase(n, p) for p in include)}
    chosen = {n: s for n, s in included.items() if not any(_covers(p, n) for p in config.exclude)}
    if strict:
        _require_matches(config, every, layers, included, chosen, classifier)
    if not chosen:
        raise SettingError(
            f"no {_text(config.kinds)} layer is left for {method.name} to adapt outside the "
            f"classifier {_listed(classifier)} and exclude {_listed(config.exclude)}",
            *(("exclude",) if config.exclude else ("kinds",)),
        )
    if strict and config.kinds != method.kinds:  # those that somebody named
        _require_kinds(config.kinds, chosen)
    return chosen


def _require_matches(
    config: TrainConfig,
    every: Mapping[str, LayerShape],
    layers: Mapping[str, LayerShape],
    included: Collection[str],
    chosen: Collection[str],
    classifier: Collection[str],
) -> None:
    """Refuse a pattern without effect.

    Args:
        config: Has the patterns.
        every: All layers that could be adapted.
        layers: Those of the kinds asked for.
        included: Those of them that an include pattern matches.
        chosen: Those of them that no exclude pattern matches.
        classifier: Names of what is never adapted.
    """
    for pattern in config.include or ():
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise SettingError(
                f"include pattern {pattern!r} must match a {_text(config.kinds)} layer, it "
                f"matches none.{_hint(pattern, layers, every, classifier)}",
                "include",
            )
        if not any(fnmatchcase(name, pattern) for name in chosen):
            raise SettingError(
                f"include pattern {pattern!r} must match a layer that is not excluded, "
                f"exclude {_listed(config.exclude)} leaves none of its layers",
                "include",
                "exclude",
            )
    for pattern in config.exclude:
        if not any(_covers(pattern, name) for name in included):
            raise SettingError(
                f"exclude pattern {pattern!r} must match a layer that would be adapted, it "
                f"matches none.{_hint(pattern, included, every, classifier)}",
                "exclude",
            )


def _require_kinds(kinds: Collection[LayerKind], chosen: Mapping[str, LayerShape]) -> None:
    """Refuse a kind of which no layer is adapted."""
    for kind in kinds:
        if not any(shape.kind == kind for shape in chosen.values()):
            raise SettingError(
                f"kinds must be those of layers that are adapted, got {kind}, of which there "
                "is none among them. Leave it out.",
                "kinds",
            )


def _covers(pattern: str, name: str) -> bool:
    """Whether an exclude pattern matches a layer or something that it lies in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _hint(
    pattern: str,
    layers: Collection[str],
    every: Mapping[str, LayerShape],
    classifier: Collection[str],
) -> str:
    """What the pattern may have been meant to be."""
    if any(fnmatchcase(head, pattern) or head.startswith(f"{pattern}.") for head in classifier):
        return f" The classifier {_listed(classifier)} is trained whole and never adapted."
    if any(fnmatchcase(name, f"{pattern}.*") for name in layers):
        return f" Layers lie below it: {pattern}.*"
    others = [shape.kind for name, shape in every.items() if _covers(pattern, name)]
    if others and not any(_covers(pattern, name) for name in layers):
        kinds = ", ".join(dict.fromkeys(others))
        return f" What it matches ({kinds}) is not to be adapted: see --layers and --include."
    known = list(dict.fromkeys(map(_numberless, layers)))
    close = get_close_matches(_numberless(pattern), known, n=3, cutoff=0.6)
    return f" Close: {', '.join(close)}." if close else f" There are: {_some(known)}."


def _numberless(name: str) -> str:
    """A name with ``*`` for the number of its block, as a pattern has it."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _text(kinds: Collection[str]) -> str:
    return " or ".join(kinds)


def _listed(names: Collection[str]) -> str:
    return ", ".join(names)


def _some(names: Collection[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{_listed(list(names)[:limit])}{more}"
