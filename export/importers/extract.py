"""A full fine-tuning as a delta: what changed in each layer, to the rank that it is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from glora_deploy.backbones.load import Backbone

from .assemble import Array, Imported, Part, Place, Target, assemble
from .extract_choice import Choice
from .full_checkpoint import Tuned
from .low_rank import SHARES, Spectrum, ranks_for_energy, ranks_for_numbers, truncated

_HEADER_BYTES = 2048
_HEADER_BYTES_OF_TENSOR = 160
"""At most, in an adapter file: a name, a shape and two offsets."""
_ITEM_BYTES = 4


@dataclass(frozen=True, slots=True)
class ExtractedLayer:
    """One layer whose weight changed."""

    name: str
    rank: int
    """That it has in the delta."""
    needed: tuple[int, ...]
    """Ranks that would keep each of ``SHARES`` of its own change."""
    full: int
    """The rank of its change, rounding aside."""
    energy: float
    """Share of its squared change that is kept."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """A full fine-tuning as a delta, and what it lost."""

    imported: Imported
    layers: tuple[ExtractedLayer, ...]
    """Those whose weight changed by more than a vector can hold, in module order."""
    energy: float
    """Share of the squared change of all of them that is kept."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "energy": self.energy,
            "layers": [
                {
                    "name": each.name,
                    "rank": each.rank,
                    "full_rank": each.full,
                    "rank_for": dict(zip(map(str, SHARES), each.needed, strict=True)),
                    "energy": each.energy,
                }
                for each in self.layers
            ],
        }


def extract_full(
    tuned: Tuned,
    backbone: Backbone,
    choice: Choice,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Extraction:
    """Take the difference to the backbone apart: exact biases and norms, low ranks for the rest.

    Each layer's change is cut off by its singular values, which is the best approximation of its
    rank (Eckart and Young, 1936). Ranks are chosen over all layers at once: a singular value is
    kept where its square buys most for each number that is stored for it. That is the same as an
    equal loss per number everywhere; a share of each layer for itself would spend as much on a
    layer that hardly changed as on one that did.

    Args:
        tuned: As from ``read_full``.
        backbone: What it was tuned from.
        choice: How large it may become.
        report: Told how many decompositions of how many are done.

    Raises:
        ValueError: If the budget does not hold what is stored whole.
    """
    target = Target(backbone, tuned.n_classes)
    changes = {layer: tuned.layers[layer][0] - target.weight(layer) for layer in target.shapes}
    parts = {layer: _whole(target, tuned, layer, change) for layer, change in changes.items()}
    matrices = [
        layer
        for layer, change in changes.items()
        if target.shapes[layer].kind != "affine" and change.any()
    ]
    spectra: dict[str, Spectrum] = {}
    for layer in matrices:
        spectra[layer] = Spectrum.of(changes[layer])
        report(len(spectra), 2 * len(matrices))
    stored_whole = sum(
        value.size
        for part in parts.values()
        for value in (*part.supports.values(), part.bias)
        if value is not None
    ) + sum(value.size for value in tuned.head.values())
    ranks = _ranks(spectra, choice, stored_whole, n_whole=len(parts) + len(tuned.head))
    for done, layer in enumerate(matrices, 1):
        if ranks[layer]:
            down, up = truncated(changes[layer], ranks[layer])
            parts[layer] = Part({"B_d": down, "B_u": up}, parts[layer].bias)
        report(len(matrices) + done, 2 * len(matrices))
    changed = {
        Place(layer): part
        for layer, part in parts.items()
        if part.supports or part.bias is not None
    }
    origin = _origin(tuned, choice)
    imported = assemble(target, changed, tuned.head, where=tuned.where, origin=origin)
    told = tuple(_told(layer, each, ranks[layer]) for layer, each in spectra.items())
    total = sum(each.energy for each in spectra.values())
    kept = sum(each.energy * spectra[each.name].energy for each in told)
    return Extraction(imported, told, kept / total if total else 1.0)


def _origin(tuned: Tuned, choice: Choice) -> dict[str, Any]:
    """What the manifest says of where it came from, and what decided on its size."""
    origin: dict[str, Any] = {"extracted_from": tuned.where}
    origin |= {name: value for name, value in asdict(choice).items() if value is not None}
    if tuned.left_out:
        origin["left_out"] = list(tuned.left_out)
    return origin


def _told(layer: str, spectrum: Spectrum, rank: int) -> ExtractedLayer:
    return ExtractedLayer(
        name=layer,
        rank=rank,
        needed=tuple(spectrum.rank_for(share) for share in SHARES),
        full=len(spectrum.values),
        energy=float((spectrum.values[:rank] ** 2).sum()) / spectrum.energy,
    )


def _whole(target: Target, tuned: Tuned, layer: str, change: Array) -> Part:
    """What is stored exactly: the bias, and the weight of a norm."""
    bias = tuned.layers[layer][1]
    if bias is not None and not (bias - target.bias(layer)).any():
        bias = None
    supports = {}
    if target.shapes[layer].kind == "affine" and change.any():
        supports["B"] = change
    return Part(supports, bias)


def _ranks(
    spectra: dict[str, Spectrum], choice: Choice, stored_whole: int, *, n_whole: int
) -> dict[str, int]:
    if choice.energy is not None:
        return ranks_for_energy(spectra, choice.energy)
    if choice.rank is not None:
        return {layer: min(choice.rank, len(each.values)) for layer, each in spectra.items()}
    assert choice.budget_bytes is not None
    header = _HEADER_BYTES + _HEADER_BYTES_OF_TENSOR * (n_whole + 2 * len(spectra))
    least = header + _ITEM_BYTES * stored_whole
    if choice.budget_bytes < least:
        raise ValueError(
            f"budget must be at least {least:,} bytes, which biases, norms and classifier take, "
            f"got {choice.budget_bytes:,}"
        )
    return ranks_for_numbers(spectra, (choice.budget_bytes - least) // _ITEM_BYTES)
