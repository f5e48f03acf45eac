"""Methods that cannot merge: counts, formulas, what is kept of them, who refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from typer.testing import CliRunner

from glora_deploy.backbones.load import outline
from glora_deploy.commands.main import app as commands
from glora_deploy.errors import NotInStoreError
from glora_deploy.export import export
from glora_deploy.store.comparisons import comparisons
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline, train
from glora_deploy.training.adapted import build_outline
from glora_deploy.training.attached_network import AttachedNetwork, blocks_of, build_attached
from glora_deploy.training.cli import app
from glora_deploy.training.config import TrainConfig
from glora_deploy.training.method import AttachedMethod
from glora_deploy.training.methods import METHODS
from glora_deploy.training.setting_error import SettingError
from stored_tasks import make_backbone
from tasks import make_task, use_small_backbone

CPU = torch.device("cpu")
ATTACHED = sorted(
    name for name, each in METHODS.items() if isinstance(each, AttachedMethod) and not each.searches
)


def attached(name: str) -> AttachedMethod:
    method = METHODS[name]
    assert isinstance(method, AttachedMethod)
    return method


def config_of(name: str, rank: int) -> TrainConfig:
    return TrainConfig.preset("short", ranks=(rank,), scale=METHODS[name].scale, drop_path=0.0)


def pictures() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def adapt(name: str, rank: int = 4) -> AttachedNetwork:
    adapted = build_attached(
        make_backbone(), 3, config_of(name, rank), attached(name), seed=0, device=CPU
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.model.eval()
    return adapted


@pytest.mark.parametrize(
    ("name", "rank", "n_parameters"),
    [
        ("vpt-shallow", 5, 768 * 5),
        ("vpt-shallow", 50, 768 * 50),
        ("vpt-deep", 10, 9216 * 10),
        ("adapter", 8, 156_768),
        ("adaptformer", 8, 156_768),
        ("adaptformer", 64, 1_189_632),
    ],
)
def test_a_vit_b_has_as_many_numbers_to_train_as_its_authors_state(
    name: str, rank: int, n_parameters: int
) -> None:
    config = config_of(name, rank)
    model = build_outline(outline("vit_base_patch16_224"), config)
    method = attached(name)
    assert method.n_trained(blocks_of(model, method), config) == n_parameters


def stated(name: str, model: Any, parts: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """What a method computes, block by block, as its paper states it."""
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    if name == "vpt-shallow":
        prompts = parts["prompts"].expand(len(x), -1, -1)
        tokens = torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], 1)
    for index, block in enumerate(model.blocks):
        own = {k.split(".")[-1]: v for k, v in parts.items() if k.startswith(f"blocks.{index}.")}
        if name == "vpt-deep":
            image = tokens[:, 1:] if index == 0 else tokens[:, 1 + len(own["prompts"]) :]
            prompts = own["prompts"].expand(len(x), -1, -1)
            tokens = torch.cat([tokens[:, :1], prompts, image], 1)
        tokens = tokens + block.attn(block.norm1(tokens))
        z = block.mlp(block.norm2(tokens))
        if name in ("adapter", "adaptformer"):
            seen = z if name == "adapter" else tokens
            hidden = nn.functional.linear(seen, own["w_down"], own["b_down"])
            hidden = (
                hidden * torch.sigmoid(1.702 * hidden) if name == "adapter" else hidden.clamp(min=0)
            )
            up = nn.functional.linear(hidden, own["w_up"], own["b_up"])
            z = z + (up if name == "adapter" else 0.1 * up)
        tokens = tokens + z
    return model.head(model.norm(tokens)[:, 0])


@pytest.mark.parametrize("name", ATTACHED)
def test_a_network_computes_what_the_method_states(name: str) -> None:
    adapted = adapt(name)
    vanilla = make_backbone().build(3).eval()
    vanilla.load_state_dict(adapted.head(), strict=False)
    parts = {k: v.detach() for k, v in adapted.trainable().items() if k not in adapted.head()}
    with torch.no_grad():
        expected = stated(name, vanilla, parts, pictures())
        found = adapted.model(pictures())
        assert not torch.allclose(vanilla(pictures()), expected, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ATTACHED)
def test_its_tensors_learn(name: str) -> None:
    adapted = adapt(name)
    adapted.model(pictures()).square().sum().backward()
    still = [k for k, v in adapted.trainable().items() if v.grad is None or not v.grad.any()]
    assert still == []


@pytest.mark.parametrize("name", ATTACHED)
def test_a_backbone_without_such_blocks_is_wrong_usage(name: str) -> None:
    with pytest.raises(SettingError, match="needs a backbone of attention blocks") as caught:
        blocks_of(timm.create_model("resnet10t"), attached(name))
    assert caught.value.settings == ("method",)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: make_task())
    use_small_backbone(monkeypatch)


@pytest.mark.parametrize("name", ATTACHED)
@pytest.mark.usefixtures("small")
def test_it_is_trained_measured_and_refused_by_all_who_would_merge_it(
    name: str, tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    (outcome,) = train("digits", method=name, epochs=8, batch_size=12, store=root, seed=3)
    assert (outcome.artifact, outcome.name) == (None, f"{name}-3")
    assert outcome.val_accuracy > 0.6  # of three colours
    store = ArtifactStore.open(root)
    assert store.tasks() == []
    assert store.verify() == []
    (kept,) = comparisons(root)
    assert [path.name for path in (root / ".comparisons" / "digits").iterdir()] == [
        f"{name}-3.json"
    ]
    assert (kept.task, kept.name, kept.method) == ("digits", f"{name}-3", name)
    assert (kept.n_parameters, kept.epochs) == (outcome.n_parameters, 8)
    assert (kept.val_accuracy, kept.test_accuracy) == (outcome.val_accuracy, outcome.test_accuracy)
    with pytest.raises(NotInStoreError, match=f"trained by {name} for comparison alone, .* merged"):
        export("digits", version=f"{name}-3", store=root)
    listed = CliRunner().invoke(commands, ["list", "--store", str(root)])
    assert f"digits/{name}-3" in listed.stdout
    assert "cannot merge" in listed.stdout
    (beside,) = train("digits", method="lora", epochs=2, batch_size=12, store=root)
    assert beside.artifact is not None
    with pytest.raises(NotInStoreError, match="for comparison alone"):
        store.set_current("digits", f"{name}-3")
    assert store.verify() == []


@pytest.mark.usefixtures("small")
def test_the_command_says_that_nothing_is_stored(tmp_path: Path) -> None:
    arguments = ["--task", "digits", "--data", "digits", "--store", str(tmp_path / "artifacts")]
    done = CliRunner().invoke(app, [*arguments, "--method", "vpt-deep", "--epochs", "2"])
    assert done.exit_code == 0, done.output
    assert "vpt-deep-0: a comparison alone" in done.stdout


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": "linear"}, "kinds: no effect with method adapter, which adapts no layer"),
        ({"include": ["*"], "exclude": ["*"]}, "include and exclude: no effect"),
        ({"scale": 2.0}, "scale: no effect with method adapter"),
        ({"ranks": [8, 4]}, "ranks must be one for --method adapter"),
        ({"population": 4}, "population: no effect with method adapter, which searches nothing"),
    ],
)
def test_what_it_cannot_take_is_wrong_usage(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        train("digits", method="adapter", **settings)
