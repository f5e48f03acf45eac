"""Which form each support takes: paths, layer shapes, subnets and the space they are drawn from.

Nothing here holds a weight or imports torch. A *support* is one of A..E on one layer, its *path*
the form it takes there, a *subnet* one path per support per layer (arXiv:2306.07967, section 3;
the authors' code calls the scalar path ``constant``). For a layer ``y = w0 x + b0`` with
``w0 (d_out, d_in)`` and ``*`` elementwise::

    w = w0 + w0 * A + B          b = b0 + b0 * D + E + w0 @ C

=======  =========================================  ==============  ===========  =======
support  lora:r                                     vector          scalar       none
=======  =========================================  ==============  ===========  =======
A, B     ``X_d (d_out, r)``, ``X_u (r, d_in)``      ``(d_out, 1)``  ``(1, 1)``   nothing
C        ``C_d (d_in, r)``, ``C_u (r, 1)``          ``(d_in, 1)``   no           nothing
D, E     no                                         ``(d_out,)``    ``(1,)``     nothing
=======  =========================================  ==============  ===========  =======

A convolution is the linear layer of its flattened kernel, ``d_in = d_in_of_a_group * kh * kw``.
A per-channel affine (LayerNorm, GroupNorm, BatchNorm) is the diagonal case: its weight counts as a
``(d_out, 1)`` matrix, its A and B are vectors or scalars, and it has no C. A layer without bias
has no C, D or E, so the merged network keeps the vanilla architecture.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast, get_args

Support = Literal["A", "B", "C", "D", "E"]
FormKind = Literal["lora", "vector", "scalar", "none"]
LayerKind = Literal["linear", "conv", "affine"]

SUPPORTS: tuple[Support, ...] = get_args(Support)


@dataclass(frozen=True, slots=True)
class Form:
    """The form one support takes; ``rank`` is positive for lora and zero otherwise."""

    kind: FormKind
    rank: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(FormKind):
            raise ValueError(f"path kind must be one of {get_args(FormKind)}, got {self.kind!r}")
        if (self.kind == "lora") != (self.rank > 0):
            raise ValueError(f"a lora path has a rank of at least 1, others have 0; got {self!r}")

    @classmethod
    def parse(cls, text: str) -> Form:
        """Read ``lora:4``, ``vector``, ``scalar`` or ``none``.

        >>> Form.parse("lora:4")
        Form(kind='lora', rank=4)

        Raises:
            ValueError: If the text is none of these.
        """
        kind, _, rank = text.partition(":")
        if kind not in get_args(FormKind) or (kind == "lora") != rank.isdecimal():
            raise ValueError(f"a path is lora:RANK, vector, scalar or none, got {text!r}")
        return cls(cast(FormKind, kind), int(rank or 0))

    def __str__(self) -> str:
        return f"lora:{self.rank}" if self.kind == "lora" else self.kind


NONE, SCALAR, VECTOR = Form("none"), Form("scalar"), Form("vector")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What the supports of a frozen layer must fit: ``w0 (d_out, d_in)`` and whether b0 exists."""

    kind: LayerKind
    d_out: int
    d_in: int
    bias: bool

    def choices(self, support: Support, ranks: Sequence[int]) -> tuple[Form, ...]:
        """Every path this support may take here, largest first.

        >>> shape = LayerShape(kind="linear", d_out=3, d_in=2, bias=True)
        >>> [str(path) for path in shape.choices("C", [4])]
        ['lora:4', 'vector', 'none']
        """
        loras = tuple(Form("lora", rank) for rank in sorted(ranks, reverse=True))
        if support in "AB":
            small = (VECTOR, SCALAR, NONE)
            return small if self.kind == "affine" else (*loras, *small)
        if not self.bias:
            return (NONE,)
        if support == "C":
            return (NONE,) if self.kind == "affine" else (*loras, VECTOR, NONE)
        return (VECTOR, SCALAR, NONE)

    def tensor_shapes(self, support: Support, path: Form) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that hold one support on this path.

        >>> shape = LayerShape(kind="linear", d_out=3, d_in=2, bias=True)
        >>> shape.tensor_shapes("A", Form("lora", 4))
        {'A_d': (3, 4), 'A_u': (4, 2)}

        Raises:
            ValueError: If the support cannot take this path on this layer.
        """
        if not self._allows(support, path):
            raise ValueError(f"{support} cannot be {path} on {self}")
        rows, columns = (self.d_in, 1) if support == "C" else (self.d_out, self.d_in)
        match path.kind:
            case "lora":
                return {f"{support}_d": (rows, path.rank), f"{support}_u": (path.rank, columns)}
            case "vector":
                return {support: (rows,) if support in "DE" else (rows, 1)}
            case "scalar":
                return {support: (1,) if support in "DE" else (1, 1)}
            case "none":
                return {}

    def require_fit(self, tensors: Mapping[str, tuple[int, ...]]) -> None:
        """Check that tensors of these names and shapes are supports of such a layer.

        Each support is judged by the path that its tensors look most like: ``form_of``.

        >>> shape = LayerShape(kind="linear", d_out=3, d_in=2, bias=True)
        >>> shape.require_fit({"A": (1, 2)})
        Traceback (most recent call last):
        ...
        ValueError: A must have shape (3, 1) where w0 is (3, 2), got (1, 2)

        Raises:
            ValueError: If one does not fit or is missing; names it.
        """
        wanted: dict[str, tuple[int, ...]] = {}
        for support in SUPPORTS:
            path = form_of(support, tensors)
            if self._allows(support, path):
                wanted |= self.tensor_shapes(support, path)
        for name in sorted(tensors.keys() | wanted.keys()):
            if (found := tensors.get(name)) != (rule := wanted.get(name)):
                duty = "be absent" if rule is None else f"have shape {rule}"
                w0 = (self.d_out,) if self.kind == "affine" else (self.d_out, self.d_in)
                place = f"where w0 is {w0}{'' if self.bias else ' without b0'}"
                raise ValueError(
                    f"{name} must {duty} {place}, got {'none' if found is None else found}"
                )

    def _allows(self, support: Support, path: Form) -> bool:
        return path in self.choices(support, [path.rank] if path.rank else [])


def kind_of(support: Support, shapes: Mapping[str, tuple[int, ...]]) -> FormKind:
    """The kind of path whose tensors a layer holds for one support, told by names and shapes.

    A vector of one row is a scalar: the same number wherever it is added. C has no scalar.

    >>> kind_of("E", {"E": (3,), "A_d": (3, 2), "A_u": (2, 5)})
    'vector'
    """
    if f"{support}_d" in shapes:
        return "lora"
    if support not in shapes:
        return "none"
    return "scalar" if support != "C" and math.prod(shapes[support]) == 1 else "vector"


def form_of(support: Support, shapes: Mapping[str, tuple[int, ...]]) -> Form:
    """The path of one support, as ``kind_of`` tells it, with its rank.

    Whether the tensors fit the path and the layer is for ``LayerShape.require_fit`` to say.
    """
    kind = kind_of(support, shapes)
    if kind != "lora":
        return Form(kind)
    return Form(kind, max([1, *shapes[f"{support}_d"][-1:]]))  # even one without columns is lora


@dataclass(frozen=True, slots=True)
class LayerForms:
    """One path for each support of one layer.

    >>> print(LayerForms.parse("A=lora:4 E=vector"))
    A=lora:4 B=none C=none D=none E=vector
    """

    A: Form = NONE
    B: Form = NONE
    C: Form = NONE
    D: Form = NONE
    E: Form = NONE

    def __getitem__(self, support: Support) -> Form:
        return cast(Form, getattr(self, support))

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> LayerForms:
        """The path of each support of a layer that holds tensors of these names and shapes.

        >>> print(LayerForms.of({"B_d": (7, 4), "B_u": (4, 5), "E": (7,)}))
        A=none B=lora:4 C=none D=none E=vector
        """
        return cls(**{support: form_of(support, shapes) for support in SUPPORTS})

    def items(self) -> Iterator[tuple[Support, Form]]:
        """Each support with its path, A to E."""
        return ((support, self[support]) for support in SUPPORTS)

    def tensor_shapes(self, shape: LayerShape) -> dict[str, tuple[int, ...]]:
        """Names (``A_d``, ``B``, ...) and shapes of every tensor this layer stores.

        Raises:
            ValueError: If a support cannot take its path on a layer of this shape.
        """
        return {
            name: tensor
            for support, path in self.items()
            for name, tensor in shape.tensor_shapes(support, path).items()
        }

    def n_parameters(self, shape: LayerShape) -> int:
        """Numbers stored for one layer of this shape, exactly; supports it cannot have raise."""
        total = 0
        for tensor in self.tensor_shapes(shape).values():
            count = 1
            for size in tensor:
                count *= size
            total += count
        return total

    @classmethod
    def parse(cls, text: str) -> LayerForms:
        """Read ``A=lora:4 B=vector``; a support left out is none.

        Raises:
            ValueError: If a support is unknown, named twice, or its path is malformed.
        """
        found: dict[str, Form] = {}
        for item in text.split():
            support, _, path = item.partition("=")
            if support not in SUPPORTS or support in found:
                raise ValueError(f"supports are A to E, each once, as in A=lora:4; got {item!r}")
            found[support] = Form.parse(path)
        return cls(**found)

    def __str__(self) -> str:
        return " ".join(f"{support}={path}" for support, path in self.items())


class Subnet(Mapping[str, LayerForms]):
    """One path for every support of every layer, by layer name, in the backbone's module order.

    Immutable and hashable, so a search can remember which subnets it has scored.
    """

    def __init__(self, layers: Mapping[str, LayerForms]) -> None:
        self._layers = dict(layers)

    def __getitem__(self, layer: str) -> LayerForms:
        return self._layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(self._layers.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subnet) and self._layers == other._layers

    def __repr__(self) -> str:
        return f"Subnet({len(self)} layers, {hash(self) & 0xFFFFFFFF:08x})"

    def __str__(self) -> str:
        return "\n".join(f"{layer}: {paths}" for layer, paths in self.items())

    @classmethod
    def parse(cls, text: str) -> Subnet:
        """Read what ``str`` prints: ``layer: A=... B=...`` lines; blank lines are skipped.

        Raises:
            ValueError: If a line is malformed or a layer is named twice.
        """
        layers: dict[str, LayerForms] = {}
        for line in filter(str.strip, text.splitlines()):
            layer, separator, paths = line.partition(":")
            layer = layer.strip()
            if not separator or not layer or layer in layers:
                raise ValueError(f"a subnet line is 'layer: A=...', each layer once; got {line!r}")
            layers[layer] = LayerForms.parse(paths)
        return cls(layers)

    def n_parameters(self, shapes: Mapping[str, LayerShape]) -> int:
        """Numbers stored over all layers; the classifier is not counted (methods of Table 1).

        Raises:
            ValueError: If the layers differ from those of ``shapes``.
        """
        if self.keys() != shapes.keys():
            odd = sorted(self.keys() ^ shapes.keys())
            raise ValueError(f"subnet and backbone differ in {len(odd)} layers: {odd[:3]}")
        return sum(paths.n_parameters(shapes[layer]) for layer, paths in self.items())


@dataclass(frozen=True)
class SearchSpace:
    """Every subnet of one supernet: the layers it adapts and the lora ranks on offer."""

    shapes: Mapping[str, LayerShape]
    """Layer name to shape, in module order."""
    ranks: tuple[int, ...]
    """Ranks a lora path may have; each is one more option for A, B and C."""
    lora_a: bool = True
    """Whether A may be lora. Without it a layer scales whole outputs and adds a product of low
    rank, which a server can do for each image of a batch by itself."""

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError("a search space needs at least one layer")
        if len(set(self.ranks)) != len(self.ranks) or any(rank < 1 for rank in self.ranks):
            raise ValueError(f"ranks must be distinct and at least 1, got {self.ranks}")

    @cached_property
    def _choices(self) -> dict[str, dict[Support, tuple[Form, ...]]]:
        return {
            layer: {
                support: tuple(
                    form
                    for form in shape.choices(support, self.ranks)
                    if self.lora_a or (support, form.kind) != ("A", "lora")
                )
                for support in SUPPORTS
            }
            for layer, shape in self.shapes.items()
        }

    def choices(self, layer: str, support: Support) -> tuple[Form, ...]:
        """Every path one support of one layer may take, largest first."""
        return self._choices[layer][support]

    def draw(self, rng: random.Random) -> Subnet:
        """A uniform random subnet: each support of each layer independently (as the authors do)."""
        return Subnet(
            {
                layer: LayerForms(**{s: rng.choice(options) for s, options in by_support.items()})
                for layer, by_support in self._choices.items()
            }
        )

    def largest(self) -> Subnet:
        """The subnet that stores most: every support on its largest path."""
        return self._extreme(0)

    def smallest(self) -> Subnet:
        """The subnet that stores nothing: every path none."""
        return self._extreme(-1)

    def _extreme(self, index: int) -> Subnet:
        return Subnet(
            {
                layer: LayerForms(**{s: options[index] for s, options in by_support.items()})
                for layer, by_support in self._choices.items()
            }
        )
