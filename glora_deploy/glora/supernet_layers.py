"""Turn a backbone into a supernet, and read the trained supports back out of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from .forms import LayerForms, LayerKind, LayerShape, SearchSpace, Subnet, Support
from .layer import GloraLayer, layer_shape


def find_layers(
    model: nn.Module,
    *,
    kinds: Iterable[LayerKind] = ("linear",),
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> dict[str, LayerShape]:
    """The layers that can carry supports, by dotted name, in module order.

    Args:
        model: Vanilla network.
        kinds: Which kinds of layer to adapt.
        include: Shell patterns on the dotted name; a layer must match one.
        exclude: Patterns of layers to leave alone; a pattern also covers what lies below it.
            Pass the classifier here: it is trained whole and never adapted.

    Raises:
        ValueError: If nothing matches.
    """
    wanted = set(kinds)
    skip = [*exclude, *(f"{pattern}.*" for pattern in exclude)]
    found = {
        name: shape
        for name, module in model.named_modules()
        if (shape := layer_shape(module)) is not None
        and shape.kind in wanted
        and any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in skip)
    }
    if not found:
        raise ValueError(
            f"no {'/'.join(sorted(wanted))} layer matches {list(include)} outside {list(exclude)}"
        )
    return found


def inject(
    model: nn.Module,
    layers: Mapping[str, LayerShape],
    *,
    ranks: Sequence[int],
    generator: torch.Generator,
    scales: Mapping[str, Mapping[Support, float]] | None = None,
) -> SearchSpace:
    """Replace the named layers by ``GloraLayer`` and freeze everything else, in place.

    Args:
        model: Vanilla network; becomes the supernet. Every path starts as none.
        layers: From ``find_layers``.
        ranks: Ranks on offer to lora paths.
        generator: Draws the initial factors, in layer order.
        scales: By layer, see ``GloraLayer``.

    Returns:
        The space of subnets that this supernet holds.
    """
    space = SearchSpace(dict(layers), tuple(ranks))
    model.requires_grad_(False)
    for name in layers:
        parent, _, child = name.rpartition(".")
        base = model.get_submodule(name)
        wrapped = GloraLayer(base, ranks, generator, (scales or {}).get(name))
        setattr(model.get_submodule(parent), child, wrapped)
    return space


def glora_layers(model: nn.Module) -> dict[str, GloraLayer]:
    """The supernet's adapted layers by the name they have in the vanilla network."""
    return {name: m for name, m in model.named_modules() if isinstance(m, GloraLayer)}


def set_subnet(model: nn.Module, subnet: Mapping[str, LayerForms]) -> None:
    """Make the supernet compute this subnet.

    Raises:
        ValueError: If the subnet's layers are not the supernet's.
    """
    layers = glora_layers(model)
    if layers.keys() != subnet.keys():
        odd = sorted(layers.keys() ^ subnet.keys())
        raise ValueError(f"subnet and supernet differ in {len(odd)} layers: {odd[:3]}")
    for name, paths in subnet.items():
        layers[name].paths = paths


def extract_supports(model: nn.Module, subnet: Subnet) -> dict[str, Tensor]:
    """The tensors of one subnet, ``layer.A_d``-style names, as a delta stores them.

    Raises:
        ValueError: If a path is not possible on its layer.
    """
    layers = glora_layers(model)
    return {
        f"{name}.{key}": tensor
        for name, paths in subnet.items()
        for key, tensor in layers[name].supports(paths).items()
    }


@torch.no_grad()
def restore_supports(
    model: nn.Module, subnet: Mapping[str, LayerForms], supports: Mapping[str, Tensor]
) -> None:
    """Put a delta's support tensors back into a supernet and make it compute their subnet.

    Args:
        model: A supernet, injected with at least the subnet's ranks and without scales.
        subnet: The delta's paths.
        supports: ``layer.A_d``-style names.

    Raises:
        ValueError: If the layers differ.
    """
    set_subnet(model, subnet)
    for name, layer in glora_layers(model).items():
        for key, slot in layer.supports(subnet[name]).items():
            slot.copy_(supports[f"{name}.{key}"])  # supports() gives views of the stored tensors
