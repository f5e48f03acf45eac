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
a trained norm                 ``B`` and ``E``, what was added to its weight and bias
=============================  ================================================================

Each is exact in value; PEFT's formulas as in its release 0.21 (``tuners/lora/layer.py``,
``tuners/lora/dora.py``, ``tuners/glora/layer.py``). Pickled adapters are not read.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from glora_deploy.backbone import Backbone
from glora_deploy.errors import ArtifactError, BackboneMismatchError, StoreError
from glora_deploy.records import first_problem
from glora_deploy.tensor_file import map_tensors, read_layout

from .foreign import refuse_lycoris
from .hub_client import HubClient, fetch_file
from .imported import Array, Imported, Part, Place, Target, assemble, read_head
from .transformers_names import timm_place

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

_SUPPORT = re.compile(
    r"(?P<module>.+)\.(?P<tensor>lora_[AB]\.(?:weight|bias)|lora_magnitude_vector(?:\.weight)?"
    r"|glora_[A-E]\.(?:Xd|Xu|X|zeros))"
)
# What may be set without changing the merged weights, or is read below.
_UNDERSTOOD = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "config_A_B",
        "config_C",
        "config_D_E",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "init_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    }
)
# These take something out of the frozen weights when training begins.
_MOVES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


class _Config(BaseModel):
    """The part of adapter_config.json that the merged weights depend on."""

    model_config = ConfigDict(frozen=True, extra="allow")

    peft_type: str
    lora_alpha: float = 8
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    init_lora_weights: bool | str | None = True
    base_model_name_or_path: str | None = None
    peft_version: str | None = None

    def scaling(self, module: str, rank: int) -> float:
        """What multiplies the low-rank product of one module."""
        alpha = self.lora_alpha
        for pattern, own in (self.alpha_pattern or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = own
                break
        return alpha / (rank**0.5 if self.use_rslora else rank)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as it lies in its files, of a method that can be imported, fitted to nothing."""

    where: str
    """Named in errors."""
    config: _Config
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
    config = _read_config(folder / CONFIG)
    if (folder / PICKLE).is_file() and not (folder / WEIGHTS).is_file():
        raise ArtifactError(
            f"{folder / PICKLE}: must be {WEIGHTS}: a pickle can run code when it is read. Save "
            "the adapter again with safe_serialization=True."
        )
    tensors = _plain_names(map_tensors(folder / WEIGHTS))
    if head is not None:
        read_layout(head)
    return Adapter(str(source), config, tensors, head)


def import_peft(adapter: Adapter, backbone: Backbone) -> Imported:
    """Fit an adapter to a timm network; it may be for a transformers ViT, DeiT or DINOv2.

    Args:
        adapter: As from :func:`read_adapter`.
        backbone: The network it was trained on, under timm's names.

    Raises:
        ArtifactError: If a tensor is of no support.
        BackboneMismatchError: If a module maps to no layer, or a tensor does not fit it.
    """
    where, config = adapter.where, adapter.config
    classifier, rest = _split_classifier(adapter.tensors, backbone)
    if adapter.head is not None:
        classifier = {**read_head(adapter.head, backbone), **classifier}
    weight = f"{backbone.classifier[0]}.weight"
    if weight not in classifier:
        raise BackboneMismatchError(
            f"{where}: must bring the classifier (modules_to_save), it does not. "
            f"Give a safetensors file that holds {weight} with --head."
        )
    target = Target(backbone, len(classifier[weight]))
    reader = _Reader(target, config, where)
    parts = reader.parts(rest)
    origin: dict[str, JsonValue] = {
        "imported_from": f"peft {config.peft_type} {config.peft_version or ''}".strip(),
        "trained_on": config.base_model_name_or_path,
    }
    notes = []
    if any(place.count > 1 for place in parts):
        notes.append("query, key and value became one layer: ranks add up, and C and D went into E")
    if reader.renamed:
        notes.append(
            "the weights are equal, logits only nearly so where layer_norm_eps differs: "
            "transformers' ViT has 1e-12, timm's 1e-6"
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


def _read_config(path: Path) -> _Config:
    if not path.is_file():
        raise ArtifactError(f"{path}: must be a file, none is here. Give the folder of an adapter.")
    try:
        config = _Config.model_validate_json(path.read_bytes())
        raw: dict[str, Any] = json.loads(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_problem(error)}") from error
    if config.peft_type not in ("LORA", "GLORA"):
        raise ArtifactError(
            f"{path}: peft_type must be LORA or GLORA, got {config.peft_type}: its update is not "
            "kept as a sum of supports A to E."
        )
    init = str(config.init_lora_weights or "")
    if init.lower().startswith(_MOVES_WEIGHTS):
        raise ArtifactError(
            f"{path}: init_lora_weights is {init!r}, which changes the backbone itself. Save the "
            "adapter with path_initial_model_for_weight_conversion, which turns it into plain LoRA."
        )
    odd = sorted(name for name, value in raw.items() if value and name not in _UNDERSTOOD)
    if odd:
        raise ArtifactError(
            f"{path}: {odd[0]} must not be set, got {raw[odd[0]]!r}: what it does to the weights "
            "cannot be imported."
        )
    return config


def _plain_names(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Names as the network has them, without PEFT's wrappers; each module saved once."""
    plain: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if ".original_module." in name:
            continue  # the frozen twin of a module that was trained whole
        # With bias="all", a trained module's bias is there under both names.
        plain[name.replace(".modules_to_save.", ".")] = tensor
    return plain


def _split_classifier(
    tensors: Mapping[str, NDArray[Any]], backbone: Backbone
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """The classifier under timm's names, and everything else as it is called."""
    own = tuple(f"{name}." for name in backbone.classifier)
    classifier, rest = {}, {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        place = timm_place(module)
        if name.startswith(own):
            classifier[name] = tensor
        elif place is not None and place.layer == "head" and len(own) == 1:
            classifier[f"{own[0]}{leaf}"] = tensor
        else:
            rest[name] = tensor
    return classifier, rest


class _Reader:
    """Turns an adapter's tensors into parts of a backbone's layers."""

    def __init__(self, target: Target, config: _Config, where: str) -> None:
        self.target = target
        self.config = config
        self.where = where
        self.renamed = False
        """Whether a layer was known by its transformers name."""

    def parts(self, tensors: Mapping[str, NDArray[Any]]) -> dict[Place, Part]:
        """Every part by place."""
        modules: dict[str, dict[str, Array]] = defaultdict(dict)
        whole: dict[str, dict[str, Array]] = defaultdict(dict)
        for name, tensor in tensors.items():
            value = np.asarray(tensor, np.float64)
            if found := _SUPPORT.fullmatch(name):
                modules[found["module"]][found["tensor"].removesuffix(".weight")] = value
            else:
                module, _, leaf = name.rpartition(".")
                whole[module][leaf] = value
        parts: dict[Place, Part] = {}
        for module in sorted(modules.keys() | whole.keys()):
            place = self._place(module, [*modules[module], *whole[module]])
            if place in parts:
                raise BackboneMismatchError(f"{self.where}: {module}: {place.layer} occurs twice")
            supports = self._supports(module, place, modules[module])
            parts[place] = self._with_trained(module, place, supports, whole[module])
        return parts

    def _place(self, module: str, tensors: Iterable[str]) -> Place:
        own = module in self.target.shapes
        place = Place(module) if own else timm_place(module)
        self.renamed |= not own
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
        if not tensors:
            return {}
        if any(name.startswith("glora_") for name in tensors):
            return self._glora(module, tensors)
        return self._lora(module, place, tensors)

    def _lora(self, module: str, place: Place, tensors: Mapping[str, Array]) -> dict[str, Array]:
        try:
            up, down = (_flat(tensors[f"lora_{letter}"]) for letter in "AB")
        except KeyError as error:
            raise ArtifactError(f"{self.where}: {module}: lacks {error.args[0]}") from error
        scaling = self.config.scaling(module, len(up))
        supports = {"B_d": scaling * down, "B_u": up}
        if "lora_B.bias" in tensors:
            supports["E"] = scaling * tensors["lora_B.bias"]
        if "lora_magnitude_vector" in tensors:
            gain = self._dora_gain(module, place, supports, tensors["lora_magnitude_vector"])
            supports |= {"A": gain - 1, "B_d": gain * supports["B_d"]}
        return supports

    def _dora_gain(
        self, module: str, place: Place, supports: Mapping[str, Array], magnitude: Array
    ) -> Array:
        """What DoRA multiplies each row of ``w0 + dw`` by, ``(rows, 1)``."""
        w0 = self.target.weight(place.layer)
        rows = self.target.rows(place)
        w0 = w0[place.index * rows : (place.index + 1) * rows]
        fits = supports["B_d"].shape[0] == rows == magnitude.size
        if not fits or supports["B_u"].shape[1] != w0.shape[1]:
            raise BackboneMismatchError(
                f"{self.where}: {module}: must fit the backbone's {w0.shape}, got "
                f"({supports['B_d'].shape[0]}, {supports['B_u'].shape[1]}) and {magnitude.size} "
                "magnitudes. Give the backbone it was trained on."
            )
        norm = np.linalg.norm(w0 + supports["B_d"] @ supports["B_u"], axis=1)
        gain: Array = magnitude.reshape(-1, 1) / norm[:, None]
        return gain

    def _glora(self, module: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
        supports: dict[str, Array] = {}
        for name, value in tensors.items():
            support, kind = name.removeprefix("glora_").split(".")
            if kind == "zeros":  # PEFT writes down what a support on no path adds
                if value.any():
                    raise ArtifactError(f"{self.where}: {module}: {name} must be zero, it is not")
            elif kind == "X":
                one = support in "AB" and value.shape == (1,)
                supports[support] = value.reshape(1, 1) if one else value
            else:
                supports[f"{support}_{kind[1]}"] = value
        return supports

    def _with_trained(
        self, module: str, place: Place, supports: dict[str, Array], trained: Mapping[str, Array]
    ) -> Part:
        """Add what was trained in place: a bias, or all of a norm."""
        unknown = sorted(trained.keys() - {"weight", "bias"})
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
            if trained["weight"].shape != (len(frozen),):
                raise BackboneMismatchError(
                    f"{self.where}: {module}: weight must have shape ({len(frozen)},) to fit the "
                    f"backbone's, got {trained['weight'].shape}. "
                    "Give the backbone it was trained on."
                )
            supports["B"] = trained["weight"][:, None] - frozen
        return Part(supports, trained.get("bias"))


def _flat(kernel: Array) -> Array:
    """A matrix, or the kernel of a convolution as one: ``(rows, the rest)``."""
    return kernel.reshape(len(kernel), -1)
