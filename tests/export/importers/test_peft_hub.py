"""PEFT adapters on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from peft import LoraConfig

from glora_deploy.backbones.load import Backbone
from glora_deploy.errors import ArtifactError, HubError
from hub_server import HubServer, local_hub
from peft_adapters import (
    FITTING,
    HEAD,
    N_CLASSES,
    PEFT_WARNINGS,
    imported_from,
    make_adapter,
    saved,
    write_adapter,
)

pytestmark = PEFT_WARNINGS


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with local_hub(monkeypatch, tmp_path) as server:
        yield server


def test_an_adapter_on_the_hub_is_the_one_in_a_folder(
    backbone: Backbone, tmp_path: Path, hub: HubServer
) -> None:
    config = LoraConfig(r=2, target_modules=["qkv"], modules_to_save=HEAD)
    folder = saved(make_adapter(backbone.build(N_CLASSES), config), tmp_path / "adapter")
    hub.add("ann/lora", {path.name: path.read_bytes() for path in folder.iterdir()})
    found = imported_from("ann/lora", backbone, endpoint=hub.endpoint)
    for name, tensor in imported_from(folder, backbone).tensors.items():
        assert np.array_equal(found.tensors[name], tensor)


def test_offline_an_adapter_comes_from_the_cache(
    backbone: Backbone, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_adapter(tmp_path, FITTING)
    names = ("adapter_config.json", "adapter_model.safetensors")
    hub.add("ann/lora", {name: (folder / name).read_bytes() for name in names})
    imported_from("ann/lora", backbone, endpoint=hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    before = list(hub.requests)
    assert imported_from("ann/lora", backbone, endpoint=hub.endpoint).tensors
    assert hub.requests == before


def test_a_pickle_on_the_hub_is_not_even_fetched(backbone: Backbone, hub: HubServer) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.bin": b"cos\nsystem\n"}
    hub.add("ann/lora", files)
    with pytest.raises(ArtifactError, match="a pickle can run code when it is read"):
        imported_from("ann/lora", backbone, endpoint=hub.endpoint)
    assert not [request for request in hub.requests if "adapter_model.bin" in request]


def test_a_repository_without_an_adapter_is_refused(backbone: Backbone, hub: HubServer) -> None:
    hub.add("ann/lora", {"config.json": b"{}"})
    with pytest.raises(HubError, match=r"^ann/lora: a file must be there, it is not .*adapter_con"):
        imported_from("ann/lora", backbone, endpoint=hub.endpoint)
