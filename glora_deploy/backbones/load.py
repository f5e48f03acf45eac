"""The frozen timm model that every task shares: found, loaded, named and fingerprinted.

The only module that imports timm.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from safetensors.torch import load
from timm.data.config import resolve_data_config, resolve_model_data_config
from timm.models import clean_state_dict
from torch import Tensor, nn

from ..data.preprocess import Preprocessing
from ..errors import ArtifactError, HubError
from ..store.fingerprint import fingerprint
from ..store.manifest_fields import BackboneRecord, PreprocessingRecord
from .checkpoint_file import CheckpointFile, require_finite, unwrapped
from .checkpoint_name import require_recordable
from .empty_network import built_empty
from .input_size import HeightWidth, require_size
from .packaged import PACKAGED, packaged_config

_LOADING_ARGUMENTS = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "scriptable"}
"""Arguments of timm that name files or places; a manifest from elsewhere must not set them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """Frozen weights and everything needed to rebuild the network around them."""

    architecture: str
    """timm registry name, without a pretrained tag."""
    model_args: Mapping[str, Any]
    """Constructor arguments other than num_classes."""
    source: str
    """Where the weights came from: timm:NAME, packaged:NAME, file:BASENAME or random:SEED."""
    classifier: tuple[str, ...]
    """Dotted names of the modules that map features to classes; trained per task."""
    preprocessing: Preprocessing
    license: str | None
    """Of the weights, as timm records it; None if it does not."""
    tensors: Mapping[str, Tensor]
    """State dict without the classifier, on the CPU."""
    fingerprint: str
    """sha256 of ``tensors``."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return (3, *self.preprocessing.size)

    def build(self, n_classes: int, *, seed: int = 0) -> nn.Module:
        """The vanilla network in eval mode: these weights and a fresh classifier.

        Args:
            n_classes: Rows of the classifier.
            seed: Of the classifier's initial weights; the global generator is left as it was.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _create(self.architecture, {**self.model_args, "num_classes": n_classes})
        _load_backbone_state(model, self.tensors, self.classifier, where=self.source)
        return model.eval()

    def record(self) -> BackboneRecord:
        """What a manifest says of it."""
        return BackboneRecord(
            name=self.architecture,
            model_args=dict(self.model_args),
            source=self.source,
            fingerprint=self.fingerprint,
            classifier=self.classifier,
            input_size=self.input_size,
        )

    def preprocessing_record(self) -> PreprocessingRecord:
        """What a manifest says of its preprocessing."""
        return PreprocessingRecord(**asdict(self.preprocessing))

    def config(self) -> dict[str, Any]:
        """Timm's ``pretrained_cfg`` fields for this backbone, JSON-ready."""
        p = self.preprocessing
        return {
            "architecture": self.architecture,
            "model_args": dict(self.model_args),
            "pretrained_cfg": {
                "input_size": list(self.input_size),
                "interpolation": p.interpolation,
                "crop_pct": p.crop_pct,
                "crop_mode": p.crop_mode,
                "mean": list(p.mean),
                "std": list(p.std),
                "classifier": self.classifier[0] if len(self.classifier) == 1 else self.classifier,
                "custom_load": False,
                "fixed_input_size": has_fixed_input_size(self.architecture),
                "license": self.license,
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What is known of a backbone before its weights are read or fetched."""

    architecture: str
    """timm registry name, with the pretrained tag if one was given."""
    model_args: Mapping[str, Any]
    """Constructor arguments other than num_classes."""
    overlay: Mapping[str, Any]
    """What differs from timm's ``pretrained_cfg``."""
    classifier: tuple[str, ...]
    """Dotted names of the modules that map features to classes."""
    preprocessing: Preprocessing

    def build_empty(self, n_classes: int) -> nn.Module:
        """The vanilla network without numbers, as the function of this name gives it."""
        return build_empty(self.architecture, self.model_args, n_classes)


def outline(
    name: str,
    *,
    input_size: int | HeightWidth | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Outline:
    """What a backbone of this name will be; nothing is fetched.

    Args:
        name: As for ``load_backbone``.
        input_size: As for ``load_backbone``; a network without numbers is run once to see that it
            takes this size.
        model_args: As for ``load_backbone``.

    Raises:
        ValueError: If timm has no such model, its model has no classifier or does not see colour
            images, or it cannot take this input size.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    architecture, arguments, overlay = _resolve(name, size, model_args or {})
    config = {**_pretrained_config(architecture), **overlay}
    if not config["classifier"]:
        raise ValueError(
            f"backbone {name!r} must have a classifier, timm's is an encoder without one."
            f"{_with_classifier(architecture)}"
        )
    try:
        preprocessing = Preprocessing.from_timm(
            resolve_data_config(pretrained_cfg=config)  # type: ignore[no-untyped-call]  # timm's own gap
        )
    except ValueError as error:
        raise ValueError(f"backbone {name!r}: {error}") from error
    found = Outline(
        architecture=architecture,
        model_args=arguments,
        overlay=overlay,
        classifier=_heads(config["classifier"]),
        preprocessing=preprocessing,
    )
    if size is not None:
        _require_runs(found, name)
    return found


def load_backbone(
    name: str = "demo-vit",
    *,
    checkpoint: Path | str | None = None,
    input_size: int | HeightWidth | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Backbone:
    """Load a backbone by name.

    Args:
        name: ``demo-vit`` (ships with this package) or any timm model name, tag allowed.
        checkpoint: Local ``.safetensors``, ``.npz`` or ``.pth`` weights (read without pickle code),
            a part of them as ``FILE#teacher``, or ``random:SEED`` for untrained weights, which only
            timings and tests should want. Without it timm fetches its pretrained weights from the
            Hub.
        input_size: Height and width of the input in pixels, or the side of a square one; the
            model's own by default.
        model_args: Further arguments of timm's constructor, such as another depth.

    Raises:
        ValueError: If timm has no such model, its model has no classifier, it cannot take this
            input size, or the checkpoint's name cannot be recorded.
        StoreError: If the checkpoint file is missing.
        ArtifactError: If it cannot be read, does not fit the model, or holds it several times.
        NonFiniteError: If a weight is NaN or infinite.
        HubError: If pretrained weights cannot be fetched.
    """
    where = None
    if checkpoint is not None:
        require_recordable(checkpoint)
    plan = outline(name, input_size=input_size, model_args=model_args)
    architecture, arguments, overlay = plan.architecture, dict(plan.model_args), plan.overlay
    if checkpoint is not None and str(checkpoint).startswith("random:"):
        source = str(checkpoint)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(source.partition(":")[2]))
            model = _create(architecture, arguments, overlay)
    elif checkpoint is not None:
        file = CheckpointFile.parse(checkpoint)
        source, where = file.source, str(file.path)
        model = _create(architecture, arguments, overlay)
        _load_file(model, file)
    elif name in PACKAGED:
        source = f"packaged:{name}"
        model = _create(architecture, arguments, overlay)
        _load_checked(model, _packaged_state(name), source)
    else:
        model = _fetch(architecture, arguments, overlay)
        # With the tag that timm chose: its default may be another one some day.
        tag = cast(Any, model).pretrained_cfg.get("tag")
        source = f"timm:{architecture.partition('.')[0]}{f'.{tag}' if tag else ''}"
    classifier = _classifier(model)
    tensors = {
        key: tensor.detach().clone()
        for key, tensor in model.state_dict().items()
        if not key.startswith(tuple(f"{head}." for head in classifier))
    }
    require_finite(tensors, where or source)
    return Backbone(
        architecture=architecture.partition(".")[0],
        model_args=arguments,
        source=source,
        classifier=classifier,
        preprocessing=Preprocessing.from_timm(
            resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # timm's own gap
        ),
        license=cast(Any, model).pretrained_cfg.get("license") if checkpoint is None else None,
        tensors=tensors,
        fingerprint=fingerprint({key: tensor.numpy() for key, tensor in tensors.items()}),
    )


def _resolve(
    name: str, size: HeightWidth | None, model_args: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Timm's name for a backbone, constructor arguments, and what to change in its pretrained_cfg.

    Raises:
        ValueError: If timm has no such model, with close names, or no size is like this.
    """
    arguments, overlay = dict(model_args), {}
    architecture = name
    if name in PACKAGED:
        packaged = packaged_config(name)
        architecture, overlay = packaged["architecture"], packaged["pretrained_cfg"]
        arguments = {**packaged["model_args"], **arguments}
    elif not timm.is_model(name):
        model = name.partition(".")[0]
        close = timm.list_models(f"*{model}*")[:3] or get_close_matches(model, timm.list_models())
        hint = f"Close: {', '.join(close)}." if close else "timm.list_models() lists them."
        raise ValueError(f"backbone {name!r} must be demo-vit or a timm model. {hint}")
    if size is not None:
        require_size(size)
        overlay = {**overlay, "input_size": (3, *size)}
        if has_fixed_input_size(architecture):
            height, width = size
            arguments["img_size"] = height if height == width else [height, width]
    return architecture, arguments, overlay


def _pretrained_config(architecture: str) -> dict[str, Any]:
    try:
        return dict(cast(Any, timm.get_pretrained_cfg(architecture)).to_dict())
    except RuntimeError as error:
        model, _, tag = architecture.partition(".")
        known = [name.partition(".")[2] for name in timm.list_pretrained(f"{model}.*")]
        raise ValueError(
            f"backbone {architecture!r}: timm has no weights {tag!r} of {model}. "
            f"It has: {', '.join(known) or 'none'}."
        ) from error


def _with_classifier(encoder: str) -> str:
    """A hint at the model that wraps an encoder of timm's and adds a classifier."""
    name, dot, tag = encoder.partition(".")
    wrapper = name.removesuffix("_enc")
    if wrapper == name or not timm.is_model(wrapper):
        return ""
    tagged = f"{wrapper}{dot}{tag}"
    return f" Use {tagged if tag and timm.is_model_pretrained(tagged) else wrapper}."


def _require_runs(plan: Outline, name: str) -> None:
    """Refuse an input size that the network cannot take, by running it without numbers."""
    height, width = plan.preprocessing.size
    try:
        model = plan.build_empty(2).to("meta")
        with torch.inference_mode():
            model(torch.zeros(1, 3, height, width, device="meta"))
        _require_whole_patches(model, height, width)
    # Layers refuse sizes by many types: RuntimeError, AssertionError, ZeroDivisionError, ...
    except Exception as error:
        reason = _first_line(error)
        if isinstance(error, NotImplementedError) or "meta" in reason:
            return  # nothing is known: this network needs numbers to run
        own_height, own_width = outline(name).preprocessing.size
        raise ValueError(
            f"backbone {name!r} must take the input size, it cannot take {height}x{width} "
            f"({reason}). Its own is {own_height}x{own_width}."
        ) from error


def _require_whole_patches(model: nn.Module, height: int, width: int) -> None:
    """Refuse a size of which the patches would leave out the last rows or columns.

    Raises:
        ValueError: If a side is no multiple of that of a patch.
    """
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if not isinstance(patch, tuple | list) or getattr(embed, "dynamic_img_pad", False):
        return
    if height % patch[0] or width % patch[1]:
        raise ValueError(
            f"its patches of {patch[0]}x{patch[1]} pixels would leave out the rest of each side"
        )


def _packaged_state(name: str) -> dict[str, Tensor]:
    folder = resources.files(__package__)
    raw = folder.joinpath(f"weights/{name}.safetensors").read_bytes()
    # Stored in half precision to keep the package small; widening is exact.
    return {key: tensor.float() for key, tensor in load(raw).items()}


def has_fixed_input_size(name: str) -> bool:
    """Whether timm builds this architecture for one input size, that of its configuration."""
    return bool(_pretrained_config(name)["fixed_input_size"])


def build_empty(name: str, model_args: Mapping[str, Any], n_classes: int) -> nn.Module:
    """The vanilla network in eval mode without numbers, to be filled by ``load_state_dict``.

    Its parameters are on the meta device and take no memory, so load with ``assign=True``; buffers
    hold what timm puts into them. The few networks whose constructor already computes with its
    parameters (Swin, hybrids of ViT and ResNet) get random ones.

    Args:
        name: timm's, as a manifest records it.
        model_args: Constructor arguments other than num_classes.
        n_classes: Rows of the classifier.

    Raises:
        ValueError: If timm cannot build it.
    """
    arguments = {**model_args, "num_classes": n_classes}
    return built_empty(lambda: _create(name, arguments))


class TimmFolder(NamedTuple):
    """What timm makes of a model directory."""

    model: nn.Module
    """In eval mode; its parameters are pages of the file where they need not differ from it."""
    preprocessing: Preprocessing
    """As timm resolves it for this network."""
    labels: tuple[str, ...]


def load_timm_folder(folder: Path) -> TimmFolder:
    """Load a model directory as ``timm.create_model("local-dir:...", pretrained=True)`` does.

    It is that very call, with config.json as it lies there; only the copy of each weight into the
    network is left out: a parameter becomes the tensor that timm would have copied, which is a
    part of the mapped file, in the file's dtype, and takes no memory until it is used. The few
    networks that ``build_empty`` cannot build without numbers take one float32 copy.

    Args:
        folder: Holds config.json and model.safetensors. The files may be deleted while the network
            lives.

    Raises:
        ArtifactError: If timm cannot load it, leaves a part of it without weights, or takes no
            image of 3 channels.
    """

    def create() -> nn.Module:
        return timm.create_model(f"local-dir:{folder}", pretrained=True)

    try:
        model = built_empty(create)
        images = Preprocessing.from_timm(
            resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # timm's own gap
        )
        labels = tuple(cast(Any, model).pretrained_cfg.get("label_names") or ())
    except Exception as error:  # timm raises whatever the damaged text provokes
        raise ArtifactError(f"{folder}: timm cannot load it ({_first_line(error)})") from error
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ArtifactError(f"{folder}: timm must load {name} from it, it does not")
    return TimmFolder(model, images, labels)


def _load_backbone_state(
    model: nn.Module, tensors: Mapping[str, Tensor], classifier: tuple[str, ...], *, where: str
) -> None:
    """Copy backbone tensors into a model whose classifier may have any number of classes.

    Raises:
        ArtifactError: If the names or shapes differ outside the classifier.
    """
    own = model.state_dict()
    heads = tuple(f"{head}." for head in classifier)
    given = {key: tensor for key, tensor in tensors.items() if not key.startswith(heads)}
    needed = {key for key in own if not key.startswith(heads)}
    if needed and not needed & given.keys():
        some = f"its names are such as {min(given, key=len)}" if given else "it holds no tensor"
        raise ArtifactError(
            f"{where}: weights do not fit: none of the model's {len(needed)} tensors is there, "
            f"{some}. Give weights of {type(model).__name__} under timm's names."
        )
    problems = [f"lacks {key}" for key in sorted(needed - given.keys())]
    problems += [f"has {key}, which the model does not" for key in sorted(given.keys() - needed)]
    problems += [
        f"{key} is {tuple(given[key].shape)}, the model's is {tuple(own[key].shape)}"
        for key in sorted(needed & given.keys())
        if given[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ArtifactError(f"{where}: weights do not fit: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(given, strict=False)


def _create(
    name: str, model_args: Mapping[str, Any], overlay: Mapping[str, Any] | None = None
) -> nn.Module:
    if unsafe := sorted(_LOADING_ARGUMENTS & model_args.keys()):
        raise ValueError(f"backbone {name}: model_args must not hold {unsafe[0]!r}")
    try:
        model = timm.create_model(
            name, pretrained=False, pretrained_cfg_overlay=dict(overlay or {}), **model_args
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(
            f"backbone {name}: timm cannot build it with {dict(model_args)}: {_first_line(error)}"
        ) from error
    return model


def _fetch(name: str, model_args: Mapping[str, Any], overlay: Mapping[str, Any]) -> nn.Module:
    try:
        model = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=dict(overlay), **model_args
        )
    except RuntimeError as error:
        raise HubError(f"backbone {name}: {error} Give local weights with --checkpoint.") from error
    except OSError as error:  # every network failure of huggingface_hub and urllib is one
        raise HubError(
            f"backbone {name}: pretrained weights cannot be fetched ({_first_line(error)}). "
            "Give local weights with --checkpoint."
        ) from error
    return model


def _load_file(model: nn.Module, file: CheckpointFile) -> None:
    if file.kind() == "npz":
        if file.part is not None:
            raise ArtifactError(f"{file.path}: a .npz has no parts, got #{file.part}")
        _load_npz(model, file.path)
        return
    content = file.read()
    state = unwrapped(content)
    try:
        # timm's own way first: it knows checkpoints whose names are nothing like the model's.
        _load_checked(model, clean_state_dict(state), str(file.path))
    except ArtifactError:
        found = file.find(content, _names(model))
        if not found or found.keys() == state.keys():
            raise
        _load_checked(model, dict(found), str(file.path))


def _load_npz(model: nn.Module, path: Path) -> None:
    if not hasattr(model, "load_pretrained"):
        raise ArtifactError(f"{path}: {type(model).__name__} reads no .npz. Give .safetensors.")
    try:
        cast(Any, model).load_pretrained(str(path))
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        raise ArtifactError(f"{path}: not a checkpoint of this model ({error})") from error


def _names(model: nn.Module) -> set[str]:
    """Of the tensors that are not the classifier's."""
    heads = tuple(f"{head}." for head in _classifier(model))
    return {name for name in model.state_dict() if not name.startswith(heads)}


def _load_checked(model: nn.Module, state: dict[str, Any], where: str) -> None:
    """Load a timm state dict, after timm's own renaming and resampling for this model."""
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None:
        try:
            state = adapt(state, model)
        except Exception as error:  # timm's code on tensors that may be anything
            raise ArtifactError(
                f"{where}: weights do not fit: timm cannot adapt them ({_first_line(error)})"
            ) from error
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    _load_backbone_state(model, tensors, _classifier(model), where=where)


def _classifier(model: nn.Module) -> tuple[str, ...]:
    return _heads(cast(Any, model).pretrained_cfg["classifier"])


def _heads(heads: str | tuple[str, ...]) -> tuple[str, ...]:
    return (heads,) if isinstance(heads, str) else tuple(heads)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
