"""The merged network as a timm model directory: model.safetensors and config.json.

``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads it with strict keys, and so does
``hf-hub:`` once it is pushed; this project need not be installed. All that its configuration says
of the network and its images comes from the manifest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glora_deploy.errors import ArtifactError
from glora_deploy.merge.to_file import write_merged
from glora_deploy.precision import Precision
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.backbone_config import read_backbone_config
from glora_deploy.store.export_record import CONFIG_FILE, WEIGHTS_FILE
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.reader import BACKBONE_WEIGHTS


def write_merged_folder(
    folder: Path, artifact: Artifact, backbone: Path, precision: Precision
) -> None:
    """Merge a delta into its backbone, straight into the folder.

    Args:
        folder: Gets model.safetensors and config.json; holds neither.
        artifact: The delta.
        backbone: The backbone's folder in the store.
        precision: Of every float tensor.

    Raises:
        ArtifactError: If the delta is not what its manifest says.
        NonFiniteError: If a merged tensor is not finite in this precision; names it.
        OSError: If there is no space.
    """
    manifest = artifact.manifest
    write_merged(
        folder / WEIGHTS_FILE,
        backbone / BACKBONE_WEIGHTS,
        artifact.tensors(),
        manifest.shapes(),
        precision=precision,
        # timm and transformers read "format"; it says whose conventions the names follow.
        metadata={"format": "pt", "task": manifest.task, "version": manifest.version},
    )
    (folder / CONFIG_FILE).write_bytes(config_bytes(manifest, backbone))


def config_bytes(manifest: Manifest, backbone: Path) -> bytes:
    """The bytes of timm's config.json for one task.

    Args:
        manifest: Of the delta.
        backbone: The backbone's folder in the store.

    Raises:
        ArtifactError: If the backbone's own config.json is damaged.
    """
    stored = read_backbone_config(backbone).pretrained_cfg
    fixed = "img_size" not in manifest.backbone.model_args and stored.fixed_input_size
    if fixed is None:  # of an older release; the question brings torch
        from glora_deploy.backbones.load import has_fixed_input_size

        fixed = has_fixed_input_size(manifest.backbone.name)
    config = timm_config(manifest, license=stored.license, fixed_input_size=fixed)
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def require_config(folder: Path, manifest: Manifest, backbone: Path) -> None:
    """Check that an export's config.json is the one that follows from the manifest.

    Raises:
        ArtifactError: If it is not, or is missing.
    """
    path = folder / CONFIG_FILE
    if not path.is_file() or path.read_bytes() != config_bytes(manifest, backbone):
        raise ArtifactError(
            f"{path}: must be what follows from the manifest of {manifest.task}/"
            f"{manifest.version} and its backbone's license, it is not. Export it again."
        )


def timm_config(
    manifest: Manifest, *, license: str | None, fixed_input_size: bool
) -> dict[str, Any]:
    """Timm's config.json for one task.

    Args:
        manifest: Of the delta.
        license: Of the backbone's weights, as timm records it; None if it does not.
        fixed_input_size: Whether the input's size is an argument of the network that the
            manifest does not state; timm then takes it from ``input_size``, and would build the
            network for another size, its position embedding resampled, if nothing said so.
    """
    n_classes = len(manifest.labels)
    backbone, images = manifest.backbone, manifest.preprocessing
    classifier = backbone.classifier
    return {
        "architecture": backbone.name,
        "num_classes": n_classes,
        "label_names": list(manifest.labels),
        "model_args": {**backbone.model_args, "num_classes": n_classes},
        "pretrained_cfg": {
            "input_size": list(backbone.input_size),
            "interpolation": images.interpolation,
            "crop_pct": images.crop_pct,
            "crop_mode": images.crop_mode,
            "mean": list(images.mean),
            "std": list(images.std),
            "classifier": classifier[0] if len(classifier) == 1 else list(classifier),
            "custom_load": False,
            **({"fixed_input_size": True} if fixed_input_size else {}),
            "license": license,
            "num_classes": n_classes,
        },
        # timm keeps what it does not know.
        "glora": {
            "task": manifest.task,
            "version": manifest.version,
            "adapter_sha256": manifest.adapter.sha256,
            "backbone": backbone.source,
            "backbone_fingerprint": backbone.fingerprint,
        },
    }
