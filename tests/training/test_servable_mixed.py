"""``--servable-mixed``: what is searched is what a server can answer in mixed batches."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from glora_deploy.glora.forms import LayerShape, SearchSpace
from glora_deploy.serving.engines.mixed import can_be_mixed
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline
from glora_deploy.training.cli import app
from glora_deploy.training.config import TrainConfig
from glora_deploy.training.setting_error import SettingError
from tasks import make_task, use_small_backbone


def test_a_space_without_low_rank_a_has_it_nowhere() -> None:
    shape = LayerShape(kind="linear", d_out=6, d_in=5, bias=True)
    space = SearchSpace({"one": shape}, (4, 2), lora_a=False)
    assert [str(form) for form in space.choices("one", "A")] == ["vector", "scalar", "none"]
    assert [str(form) for form in space.choices("one", "B")][:2] == ["lora:4", "lora:2"]
    assert space.largest()["one"].A.kind == "vector"


def test_what_is_trained_with_it_can_share_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: make_task())
    use_small_backbone(monkeypatch)
    base = ["--task", "colours", "--data", "digits", "--epochs", "2", "--store", str(tmp_path)]
    searching = ["--population", "6", "--generations", "1"]
    for options in ([], ["--servable-mixed"]):
        done = CliRunner().invoke(app, [*base, *searching, *options])
        assert done.exit_code == 0, done.output
    store = ArtifactStore.open(tmp_path)
    free, held = (store.get("colours", version) for version in ("v1", "v2"))
    assert not can_be_mixed(free.manifest)  # dozens of supports, a third of whose forms are lora
    assert can_be_mixed(held.manifest)
    assert any(forms.B.kind == "lora" for forms in held.manifest.subnet().values())


def test_with_other_layers_it_is_refused() -> None:
    with pytest.raises(SettingError, match="servable_mixed must adapt linear layers alone"):
        TrainConfig.preset("short", kinds=("linear", "conv"), servable_mixed=True)
