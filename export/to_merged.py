"""The merged network as a timm model directory: model.safetensors and config.json.

``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads it with strict keys, and so does
``hf-hub:`` once it is pushed; this project need not be installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glora_deploy.artifact import Artifact
from glora_deploy.manifest import Manifest
from glora_deploy.merged_file import write_merged
from glora_deploy.parity import Precision
from glora_deploy.store_read import BACKBONE_CONFIG, BACKBONE_WEIGHTS

from .files import CONFIG_FILE, WEIGHTS_FILE


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
    stored = json.loads((backbone / BACKBONE_CONFIG).read_bytes())
    text = json.dumps(timm_config(manifest, stored), indent=2, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(text + "\n", "utf-8")


def timm_config(manifest: Manifest, backbone: dict[str, Any]) -> dict[str, Any]:
    """Timm's config.json for one task.

    Args:
        manifest: Of the delta.
        backbone: ``Backbone.config`` as the store keeps it.
    """
    n_classes = len(manifest.labels)
    return {
        "architecture": backbone["architecture"],
        "num_classes": n_classes,
        "label_names": list(manifest.labels),
        "model_args": {**backbone["model_args"], "num_classes": n_classes},
        "pretrained_cfg": {**backbone["pretrained_cfg"], "num_classes": n_classes},
        # timm keeps what it does not know.
        "glora": {
            "task": manifest.task,
            "version": manifest.version,
            "adapter_sha256": manifest.adapter.sha256,
            "backbone": manifest.backbone.source,
            "backbone_fingerprint": manifest.backbone.fingerprint,
        },
    }
