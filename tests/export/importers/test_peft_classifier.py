"""A classifier that a PEFT adapter adapts, brings or lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.glora import GloraConfig
from safetensors.torch import load_file, save_file

from glora_deploy.backbones.load import Backbone
from glora_deploy.errors import BackboneMismatchError
from peft_adapters import (
    FITTING,
    N_CLASSES,
    PEFT_WARNINGS,
    imported_from,
    make_adapter,
    merged_here,
    require_same,
    require_same_logits,
    save_head,
    saved,
    write_adapter,
)

pytestmark = PEFT_WARNINGS


ON_HEAD: dict[str, Any] = {
    "lora": LoraConfig(r=2, target_modules=["qkv", "head"], lora_alpha=3),
    "all linear layers": LoraConfig(r=2, target_modules="all-linear"),
    "a pattern for it": LoraConfig(
        r=2, target_modules=["head"], rank_pattern={"head": 3}, alpha_pattern={"^head": 5}
    ),
    "its bias too": LoraConfig(r=2, target_modules=["head"], bias="lora_only"),
    "every bias": LoraConfig(r=2, target_modules=["fc1", "head"], bias="all"),
    "a bias of its own": LoraConfig(r=2, target_modules=["head"], lora_bias=True),
    "dora": LoraConfig(r=2, target_modules=["head"], use_dora=True),
    "glora": GloraConfig(r=2, target_modules=["qkv", "head"], bias="all"),
    "glora vectors": GloraConfig(
        target_modules=["head"], config_A_B="vector", config_C="vector", config_D_E="constant"
    ),
}


@pytest.mark.filterwarnings(
    r"ignore:Adapter 'default'. 1 LoRA tensor.s. have.*lora_B.bias:peft.utils.warning.PeftWarning"
)
@pytest.mark.parametrize("config", ON_HEAD.values(), ids=ON_HEAD.keys())
@pytest.mark.parametrize("prefix", ["", "timm_model."], ids=["plain", "prefixed"])
def test_what_was_trained_on_the_classifier_is_merged_into_the_one_given(
    backbone: Backbone, tmp_path: Path, config: Any, prefix: str
) -> None:
    model = backbone.build(N_CLASSES, seed=5)
    head = save_head(model, tmp_path / "model.safetensors", prefix)
    adapted = make_adapter(model, config)
    folder = saved(adapted, tmp_path / "adapter")
    found = merged_here(folder, backbone, tmp_path / "store", head=head)
    merged = adapted.merge_and_unload()
    require_same(found, merged.state_dict())
    require_same_logits(found, backbone, merged)
    assert not torch.equal(found["head.weight"], load_file(head)[f"{prefix}head.weight"])


def test_an_adapted_classifier_that_is_nowhere_is_refused_saying_so(
    backbone: Backbone, tmp_path: Path
) -> None:
    config = LoraConfig(r=2, target_modules="all-linear")
    folder = saved(make_adapter(backbone.build(N_CLASSES), config), tmp_path)
    with pytest.raises(BackboneMismatchError) as caught:
        imported_from(folder, backbone)
    assert str(caught.value) == (
        f"{folder}: head: the classifier was adapted (lora_A, lora_B) and not saved: its frozen "
        "weight is in no file here. Give a safetensors file that holds head.weight, as it was when "
        "training began, with --head; where that was random and never saved, nothing restores it."
    )


def test_a_classifier_of_another_size_does_not_take_an_update(
    backbone: Backbone, tmp_path: Path
) -> None:
    config = LoraConfig(r=2, target_modules=["head"])
    folder = saved(make_adapter(backbone.build(N_CLASSES), config), tmp_path / "adapter")
    head = save_head(backbone.build(7), tmp_path / "head.safetensors")
    with pytest.raises(
        BackboneMismatchError,
        match=r"head: must fit the classifier's \(7, 48\), got B_d \(3, 2\), B_u \(2, 48\)\. Give",
    ):
        imported_from(folder, backbone, head=head)


def test_a_file_with_two_classifiers_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    write_adapter(tmp_path, FITTING)
    names = ("student.head.weight", "teacher.head.weight")
    save_file({name: torch.zeros(3, 48) for name in names}, tmp_path / "head.safetensors")
    with pytest.raises(BackboneMismatchError, match=r"once, got it behind student\., teacher\.\."):
        imported_from(tmp_path, backbone, head=tmp_path / "head.safetensors")
