"""LoRA and GLoRA adapters of the PEFT library as a delta: the same merged weights, other tensors.

=============================  ================================================================
PEFT                           here
=============================  ================================================================
LoRA ``s * lora_B @ lora_A``   ``B_d = s * lora_B``, ``B_u = lora_A``; s is ``alpha / r``, with
                               ``use_rslora`` ``alpha / sqrt(r)``
LoRA's ``lora_B.bias``         ``E = s * bias``
DoRA                           with ``g = magnitude / |row of w0 + s * lora_B @ lora_A|``:
                               ``A = g - 1`` and ``B_d = g * s * lora_B``
GLoRA ``Xd, Xu`` or ``X``      the same support on the path of its shape
a trained bias ``b'``          ``E += (b' - b0) * (1 + D)``
a trained norm                 ``B`` and ``E``, what was added to its weight and bias; a
                               BatchNorm's running statistics are folded into both first
any of them on the classifier  merged into the classifier that is saved or given
=============================  ================================================================

Each is exact in value; PEFT's formulas as in its release 0.21 (``tuners/lora/layer.py``,
``tuners/lora/dora.py``, ``tuners/glora/layer.py``). Pickled adapters are not read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from numpy.typing import NDArray
from pydantic import JsonValue

from glora_deploy.backbones.load import Backbone
from glora_deploy.errors import ArtifactError, BackboneMismatchError, StoreError
from glora_deploy.store.mapped_safetensors import map_tensors, read_layout
from glora_deploy.store.redact import name_alone

from ..hub.client import HubClient, fetch_file
from .assemble import Array, Imported, Part, Place, Target, assemble, read_head
from .detect_lycoris import refuse_lycoris
from .peft_config import Config, read_config
from .peft_names import Names, plain_names
from .peft_supports import matrix, merge_whole, supports_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

_SUPPORT = re.compile(
    r"(?P<module>.+)\.(?P<tensor>lora_[AB]\.(?:weight|bias)|lora_magnitude_vector(?:\.weight)?"
    r"|glora_[A-E]\.(?:Xd|Xu|X|zeros))"
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as it lies in its files, of a method that can be imported, fitted to nothing."""

    where: str
    """Named in errors."""
    config: Config
    tensors: Mapping[str, NDArray[Any]]
    """Under the names that the network has for its modules."""
    head: Path | None
    """safetensors file with what they lack of the classifier."""


def read_adapter(
    source: Path | str,
    *,
    head: Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    delays_s: Sequence[float] = (1.0,),
    on_step: Callable[[str], None] = lambda _: None,
) -> Adapter:
    """Find a PEFT adapter, and all that is wrong with it before its backbone is known.

    Args:
        source: Folder with adapter_config.json and adapter_model.safetensors, or ``user/name`` on
            the Hub.
        head: safetensors file with what the adapter lacks of the classifier.
        revision: Branch, tag or commit on the Hub.
        token: Access token for the Hub.
        endpoint: Address of the Hub.
        delays_s: Seconds to wait before each further attempt; downloads have patience of their own.
        on_step: Told what happens next.

    Raises:
        StoreError: If there is no such folder and it is no name on the Hub either.
        HubError: If the Hub does not have it or cannot be reached.
        ArtifactError: If a file is missing, damaged or pickled, or the method is not one of these.
    """
    folder = _folder(source, revision, token, endpoint, delays_s, on_step)
    config = read_config(folder / CONFIG)
    if (folder / PICKLE).is_file() and not (folder / WEIGHTS).is_file():
        raise ArtifactError(
            f"{folder / PICKLE}: must be {WEIGHTS}: a pickle can run code when it is read. Save "
            "the adapter again with safe_serialization=True."
        )
    tensors = plain_names(map_tensors(folder / WEIGHTS))
    if head is not None:
        read_layout(head)
    return Adapter(str(source), config, tensors, head)


def import_peft(adapter: Adapter, backbone: Backbone) -> Imported:
    """Fit an adapter to a timm network; it may be for a transformers ViT, DeiT or DINOv2.

    The network may have been trained inside another, as in transformers' TimmWrapper.

    Args:
        adapter: As from :func:`read_adapter`.
        backbone: The network it was trained on, under timm's names.

    Raises:
        ArtifactError: If a tensor is of no support.
        BackboneMismatchError: If a module maps to no layer, or a tensor does not fit it.
    """
    where, config = adapter.where, adapter.config
    modules = _by_module(adapter.tensors)
    names = Names(backbone, modules)
    heads = {name: m for name, m in modules.items() if names.classifier(name) is not None}
    given = read_head(adapter.head, backbone) if adapter.head is not None else {}
    classifier = _classifier(heads, given, names, adapter)
    weight = f"{backbone.classifier[0]}.weight"
    if weight not in classifier:
        odd = sorted(n for n, m in modules.items() if "weight" in m.whole and not names.known(n))
        instead = f"; {odd[0]} is no module of {backbone.architecture}" if odd else ""
        raise BackboneMismatchError(
            f"{where}: must bring the classifier (modules_to_save), it does not{instead}. "
            f"Give a safetensors file that holds {weight} with --head."
        )
    target = Target(backbone, len(classifier[weight]))
    reader = _Reader(target, config, where, names)
    parts = reader.parts({name: m for name, m in modules.items() if name not in heads})
    origin: dict[str, JsonValue] = {
        "imported_from": f"peft {config.peft_type} {config.peft_version or ''}".strip(),
        "trained_on": None,
    }
    if (origin_name := config.base_model_name_or_path) is not None:
        # A folder below this one may look like a repository on the Hub.
        here = Path(origin_name)
        name = name_alone(str(here.absolute()) if here.exists() else origin_name)
        origin["trained_on"] = name
    notes = []
    if any(place.count > 1 for place in parts):
        notes.append("query, key and value became one layer: ranks add up, and C and D went into E")
    if reader.renamed:
        notes.append(
            "the weights are equal, logits only nearly so where layer_norm_eps differs: "
            "transformers' ViT has 1e-12, timm's 1e-6"
        )
    if reader.folded:
        notes.append(
            "the running statistics of each BatchNorm that was trained went into its weight and "
            "bias: the same function, not the same tensors"
        )
    return assemble(target, parts, classifier, where=where, origin=origin, notes=notes)


def _folder(
    source: Path | str,
    revision: str | None,
    token: str | None,
    endpoint: str | None,
    delays_s: Sequence[float],
    on_step: Callable[[str], None],
) -> Path:
    path = Path(source)
    if not (path / CONFIG).is_file():
        refuse_lycoris(path)
    if path.is_dir():
        return path
    if path.exists() or isinstance(source, Path) or source.count("/") != 1:
        raise StoreError(f"{source}: must be a folder, or USER/NAME on the Hub, it is neither")
    client = HubClient(source, token=token, endpoint=endpoint, delays_s=delays_s, on_step=on_step)
    on_step(f"fetching {source}")

    def fetch(api: HfApi) -> Path:
        commit = fetch_file(api, source, CONFIG, revision).name
        try:
            return fetch_file(api, source, WEIGHTS, commit)
        except EntryNotFoundError as error:
            # A pickle is not fetched: that it is there is all the caller needs to know.
            if PICKLE not in api.list_repo_files(source, revision=commit):
                raise
            raise ArtifactError(
                f"{source}: must hold {WEIGHTS}, got {PICKLE}: a pickle can run code when it is "
                "read. Save the adapter again with safe_serialization=True."
            ) from error

    return client.call(fetch)


@dataclass(frozen=True, slots=True)
class _Module:
    """What an adapter holds of one module."""

    supports: dict[str, Array] = field(default_factory=dict)
    """``lora_A``, ``glora_B.Xd``, ...: of a small update."""
    whole: dict[str, Array] = field(default_factory=dict)
    """``weight``, ``bias``, ...: trained in place."""


def _by_module(tensors: Mapping[str, NDArray[Any]]) -> dict[str, _Module]:
    modules: dict[str, _Module] = defaultdict(_Module)
    for name, tensor in tensors.items():
        value = np.asarray(tensor, np.float64)
        if found := _SUPPORT.fullmatch(name):
            modules[found["module"]].supports[found["tensor"].removesuffix(".weight")] = value
        else:
            module, _, leaf = name.rpartition(".")
            modules[module].whole[leaf] = value
    return dict(modules)


def _classifier(
    heads: Mapping[str, _Module], given: Mapping[str, NDArray[Any]], names: Names, adapter: Adapter
) -> dict[str, NDArray[Any]]:
    """The classifier under timm's names, its own updates merged into it.

    Args:
        heads: The adapter's modules of it.
        given: What a file has of it, for what the adapter lacks.
        names: Of these modules in the network.
        adapter: They come from.
    """
    found = dict(given)
    for module, held in heads.items():
        found |= {f"{names.classifier(module)}.{leaf}": t for leaf, t in held.whole.items()}
    for module, held in heads.items():
        if not held.supports:
            continue
        weight, bias = (f"{names.classifier(module)}.{leaf}" for leaf in ("weight", "bias"))
        if weight not in found:
            raise BackboneMismatchError(
                f"{adapter.where}: {module}: the classifier was adapted "
                f"({', '.join(sorted(held.supports))}) and not saved: its frozen weight is in no "
                f"file here. Give a safetensors file that holds {weight}, as it was when training "
                "began, with --head; where that was random and never saved, nothing restores it."
            )
        w0 = np.asarray(found[weight], np.float64)
        b0 = np.asarray(found[bias], np.float64) if bias in found else None
        supports = supports_of(module, held.supports, matrix(w0), adapter.config, adapter.where)
        w, b = merge_whole(matrix(w0), b0, supports, f"{adapter.where}: {module}")
        found[weight] = w.reshape(w0.shape)
        if b is not None:
            found[bias] = b
    return found


class _Reader:
    """Turns an adapter's modules into parts of a backbone's layers."""

    def __init__(self, target: Target, config: Config, where: str, names: Names) -> None:
        self.target = target
        self.config = config
        self.where = where
        self.names = names
        self.renamed = False
        """Whether a layer was known by its transformers name."""
        self.folded = False
        """Whether running statistics of a norm were."""

    def parts(self, modules: Mapping[str, _Module]) -> dict[Place, Part]:
        """Every part by place."""
        parts: dict[Place, Part] = {}
        for module in sorted(modules):
            held = modules[module]
            place = self._place(module, [*held.supports, *held.whole])
            if place in parts:
                raise BackboneMismatchError(f"{self.where}: {module}: {place.layer} occurs twice")
            parts[place] = self._with_trained(
                module, place, self._supports(module, place, held.supports), held.whole
            )
        return parts

    def _place(self, module: str, tensors: Iterable[str]) -> Place:
        place = self.names.place(module)
        self.renamed |= self.names.is_renamed(module)
        if place is None or place.layer not in self.target.shapes:
            backbone = self.target.backbone
            raise BackboneMismatchError(
                f"{self.where}: {module or 'the network'} ({', '.join(sorted(tensors))}) must be a "
                f"layer of the backbone, {backbone.architecture} has none like it. "
                "Give the backbone it was trained on."
            )
        return place

    def _supports(
        self, module: str, place: Place, tensors: Mapping[str, Array]
    ) -> dict[str, Array]:
        rows = self.target.rows(place)
        w0 = self.target.weight(place.layer)[place.index * rows : (place.index + 1) * rows]
        return supports_of(module, tensors, w0, self.config, self.where)

    def _with_trained(
        self, module: str, place: Place, supports: dict[str, Array], trained: Mapping[str, Array]
    ) -> Part:
        """Add what was trained in place: a bias, or all of a norm."""
        if trained.keys() & {"running_mean", "running_var"}:
            trained = self._with_statistics(module, place.layer, trained)
            self.folded = True
        # How many batches the statistics came from is of no use after training.
        unknown = sorted(trained.keys() - {"weight", "bias", "num_batches_tracked"})
        if unknown:
            raise ArtifactError(f"{self.where}: {module}: {unknown[0]} cannot be imported")
        if "weight" in trained:
            shape = self.target.shapes[place.layer]
            if shape.kind != "affine":
                raise ArtifactError(
                    f"{self.where}: {module}: was trained whole (modules_to_save). Only the "
                    "classifier and norms may be: a full weight is no small support."
                )
            frozen = self.target.weight(place.layer)
            self._require_vector(module, "weight", trained["weight"], len(frozen))
            supports["B"] = trained["weight"][:, None] - frozen
        return Part(supports, trained.get("bias"))

    def _with_statistics(
        self, module: str, layer: str, trained: Mapping[str, Array]
    ) -> dict[str, Array]:
        """A trained BatchNorm as weight and bias beside the frozen running mean m and variance v.

        With ``s = sqrt(v + eps)``, trained marked by 1 and frozen by 0::

            (x - m1) / s1 * w1 + b1 = (x - m0) / s0 * (w1 * s0 / s1) + b1 + (m0 - m1) / s1 * w1
        """
        eps = self.target.batch_norms.get(layer)
        if eps is None:
            raise ArtifactError(
                f"{self.where}: {module}: has running statistics, the backbone's layer has none. "
                "Give the backbone it was trained on."
            )
        tensors = self.target.backbone.tensors
        names = ("weight", "bias", "running_mean", "running_var")
        frozen = {name: tensors[f"{layer}.{name}"].numpy().astype(np.float64) for name in names}
        for name in names:
            self._require_vector(module, name, trained.get(name, frozen[name]), len(frozen[name]))
        w1, b1, m1, v1 = (trained.get(name, frozen[name]) for name in names)
        s0, s1 = np.sqrt(frozen["running_var"] + eps), np.sqrt(v1 + eps)
        rest = {name: value for name, value in trained.items() if name not in names}
        moved = b1 + (frozen["running_mean"] - m1) / s1 * w1
        return {**rest, "weight": w1 * (s0 / s1), "bias": moved}

    def _require_vector(self, module: str, name: str, value: Array, size: int) -> None:
        if value.shape != (size,):
            raise BackboneMismatchError(
                f"{self.where}: {module}: {name} must have shape ({size},) to fit the "
                f"backbone's, got {value.shape}. Give the backbone it was trained on."
            )
