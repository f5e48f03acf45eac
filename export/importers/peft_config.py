"""adapter_config.json of PEFT: the part of it that the merged weights depend on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from glora_deploy.errors import ArtifactError
from glora_deploy.record_file import parse_record, read_bytes

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


class Config(BaseModel):
    """What the method is and how it scales; every other field is kept as well."""

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


def read_config(path: Path) -> Config:
    """Read adapter_config.json.

    Raises:
        ArtifactError: If it is missing or damaged, of a method that is no sum of supports, or sets
            what changes the merged weights in another way.
    """
    data = read_bytes(path, remedy="Give the folder of an adapter.")
    config = parse_record(Config, data, str(path))
    raw: dict[str, Any] = json.loads(data)
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
