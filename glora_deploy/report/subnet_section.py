"""What the subnet is: the form of each support in each layer, and where its parameters are.

The counterparts of figures 4 and 3 of arXiv:2306.07967 for one's own task.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from ..glora.forms import SCALAR, SUPPORTS, VECTOR, Form, LayerForms, Support
from ..store.manifest import Manifest
from ..wording import count_of
from .blocks import Figure, Section, Table, listed, percent
from .canvas import draw, fill_cell
from .layer_types import by_type
from .palette import ACCENT, INK, MUTED, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLE = "What was kept"
_SHARED = "They are those of the supports that the stored factors, fewer numbers, expand to. "
_SUPPORT_ALPHA: dict[Support, float] = {"A": 1.0, "B": 0.75, "C": 0.55, "D": 0.38, "E": 0.22}


def subnet_section(manifest: Manifest) -> Section:
    """The forms by layer and support, and the parameters by type of layer."""
    if not manifest.layers:
        return Section(
            name="subnet", title=_TITLE, missing="No layer is adapted: only the classifier is new."
        )
    subnet = {name: layer.layer_paths() for name, layer in manifest.layers.items()}
    types = by_type(subnet)
    depth = max(map(len, types.values()))
    strip = 0.26 * len(types) + 0.42
    counts = _parameters(manifest, types)
    figure = Figure(
        drawings=(
            draw(
                "forms",
                lambda axes: _paint_forms(axes, manifest, subnet, types),
                width=max(4.2, min(8, 1.4 + 0.32 * depth)),
                height=strip * len(SUPPORTS) + 0.3,
                rows=len(SUPPORTS),
            ),
            draw(
                "parameters",
                lambda axes: _paint_parameters(axes[0], counts),
                width=4,
                height=0.32 * len(types) + 1.1,
            ),
        ),
        alt=f"{_forms_in_words(subnet)} {_parameters_in_words(counts, manifest.n_parameters)}",
        caption=(
            "One panel for each support of w = w0 + w0*A + B and b = b0 + b0*D + E + w0@C; a row "
            "is a type of layer, a column its place in the network, from the input on. A number "
            "is the rank of a low-rank form, v a vector, s a scalar; an empty cell stores nothing, "
            "and a dot marks a support that this layer cannot have. Then the "
            f"{manifest.n_parameters:,} parameters of the supports by type of layer, split by "
            f"support. {_SHARED if manifest.shared else ''}The classifier, "
            f"{manifest.n_head_parameters:,} more, is not counted."
        ),
    )
    table = Table(
        caption="The form of each support, layer by layer",
        head=("layer", *SUPPORTS, "parameters"),
        rows=tuple(
            (
                name,
                *(str(forms[support]) for support in SUPPORTS),
                f"{forms.n_parameters(manifest.layers[name].layer_shape()):,}",
            )
            for name, forms in subnet.items()
        ),
        numbers=frozenset({len(SUPPORTS) + 1}),
        folded=f"All {count_of(len(subnet), 'layer')} as a table",
    )
    return Section(name="subnet", title=_TITLE, blocks=(figure, table))


def _paint_forms(
    axes: list[Axes], manifest: Manifest, subnet: dict[str, LayerForms], types: dict[str, list[str]]
) -> None:
    largest = max(form.rank for forms in subnet.values() for _, form in forms.items())
    depth = max(map(len, types.values()))
    for axis, support in zip(axes, SUPPORTS, strict=True):
        for row, layers in enumerate(types.values()):
            for column, layer in enumerate(layers):
                form = subnet[layer][support]
                can_have_none_else = len(manifest.layers[layer].layer_shape().choices(support, [1]))
                if can_have_none_else == 1:
                    axis.text(column, row, "·", ha="center", va="center", color=MUTED)
                    continue
                strength = _strength(form, largest)
                fill_cell(axis, column, row, colour=ACCENT, strength=strength)
                axis.text(
                    column,
                    row,
                    _letter(form),
                    ha="center",
                    va="center_baseline",
                    fontsize=7.5,
                    color=PAPER if strength > 0.6 else INK,
                )
        axis.set_xlim(-0.5, depth - 0.5)
        axis.set_ylim(len(types) - 0.5, -0.5)
        axis.set_title(support, pad=3)
        axis.set_yticks(range(len(types)), list(types))
        axis.set_xticks(range(0, depth, 1 if depth <= 24 else 4))
        axis.grid(visible=False)
        axis.tick_params(length=0, labelbottom=axis is axes[-1])
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[-1].set_xlabel("place among the layers of its type")


def _strength(form: Form, largest: int) -> float:
    """Opacity of a form's cell: a low-rank form by its rank, the smaller forms below all ranks."""
    if form.rank:
        return 0.5 + 0.5 * form.rank / largest
    return {VECTOR: 0.32, SCALAR: 0.14}.get(form, 0.0)


def _letter(form: Form) -> str:
    return str(form.rank) if form.rank else {VECTOR: "v", SCALAR: "s"}.get(form, "")


def _forms_in_words(subnet: dict[str, LayerForms]) -> str:
    told = []
    for support in SUPPORTS:
        counts = Counter(str(forms[support]) for forms in subnet.values())
        parts = [f"{form} in {n}" for form, n in sorted(counts.items(), key=lambda each: -each[1])]
        told.append(f"{support} is {listed(parts)}")
    return f"Forms in {count_of(len(subnet), 'layer')}: {'; '.join(told)}."


def _parameters(manifest: Manifest, types: dict[str, list[str]]) -> dict[str, dict[Support, int]]:
    """Numbers stored, by type of layer and support."""
    found: dict[str, dict[Support, int]] = {}
    for kind, layers in types.items():
        counts = found.setdefault(kind, dict.fromkeys(SUPPORTS, 0))
        for layer in layers:
            record = manifest.layers[layer]
            shape = record.layer_shape()
            for support, form in record.layer_paths().items():
                tensors = shape.tensor_shapes(support, form)
                counts[support] += sum(math.prod(sizes) for sizes in tensors.values())
    return found


def _paint_parameters(axis: Axes, counts: dict[str, dict[Support, int]]) -> None:
    rows = list(range(len(counts)))
    left = [0] * len(counts)
    for support in SUPPORTS:
        widths = [each[support] for each in counts.values()]
        axis.barh(
            rows,
            widths,
            left=left,
            height=0.66,
            color=ACCENT,
            alpha=_SUPPORT_ALPHA[support],
            label=support,
            linewidth=0,
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, total in zip(rows, left, strict=True):
        axis.annotate(
            f"{total:,}",
            (total, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=MUTED,
        )
    axis.set_yticks(rows, list(counts))
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.locator_params(axis="x", nbins=3)
    axis.set_xlabel("parameters by type of layer")
    axis.legend(
        ncols=len(SUPPORTS), loc="lower left", bbox_to_anchor=(0, 1), handlelength=1, borderpad=0
    )


def _parameters_in_words(counts: dict[str, dict[Support, int]], total: int) -> str:
    if not total:
        return "No layer stores a parameter."
    parts = [
        f"{kind} {sum(each.values()):,} ({percent(sum(each.values()) / total, 0)})"
        for kind, each in counts.items()
    ]
    return f"Bars of the parameters by type of layer: {listed(parts)}."
