"""NOAH's candidates against networks of each of its kinds alone, their counts, and its search."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from glora_deploy.errors import NotInStoreError
from glora_deploy.store.comparisons import comparisons
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline, train
from glora_deploy.training.attached_network import AttachedNetwork, blocks_of, build_attached
from glora_deploy.training.config import RunConfig, SearchConfig, TrainConfig
from glora_deploy.training.method import AttachedMethod, SizedMethod, Sizes
from glora_deploy.training.methods import METHODS
from glora_deploy.training.pipeline import run
from glora_deploy.training.setting_error import SettingError
from glora_deploy.training.sized_network import SizedNetwork, build_sized
from stored_tasks import make_backbone
from tasks import make_task, use_small_backbone

SIZES = (6, 3, 1)
CPU = torch.device("cpu")
NOAH = METHODS["noah"]
assert isinstance(NOAH, SizedMethod)


@pytest.fixture
def adapted() -> SizedNetwork:
    """With no tensor left at zero, so that whatever is taken shows."""
    config = TrainConfig.preset("short", ranks=SIZES, drop_path=0.0)
    made = build_sized(make_backbone(), 5, config, NOAH, seed=0, device=CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.trainable().items():
            if name in made._parts:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    made.model.eval()
    return made


def pictures() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def only(adapted: SizedNetwork, kind: str, size: int) -> Sizes:
    return {n: size if n.endswith(f".{kind}") else 0 for n in adapted.space.largest()}


@torch.no_grad()
def answers(adapted: SizedNetwork, sizes: Sizes) -> Tensor:
    adapted.take(sizes)
    found: Tensor = adapted.model(pictures())
    return found


def alone(name: str, adapted: SizedNetwork, size: int, parts: dict[str, str]) -> Tensor:
    """What the method of one kind answers with the leading slices of the same tensors."""
    method = METHODS[name]
    assert isinstance(method, AttachedMethod)
    config = TrainConfig.preset("short", ranks=(size,), drop_path=0.0, scale=method.scale)
    made: AttachedNetwork = build_attached(make_backbone(), 5, config, method, seed=0, device=CPU)
    with torch.no_grad():
        for target, parameter in made.trainable().items():
            block, _, tensor = target.rpartition(".")
            if tensor in parts and target not in made.head():
                source = adapted._parts[f"{block}.{parts[tensor]}"]
                parameter.copy_(source[tuple(slice(n) for n in parameter.shape)])
        made.model.eval()
        found: Tensor = made.model(pictures())
    return found


def test_a_candidate_of_nothing_is_the_backbone(adapted: SizedNetwork) -> None:
    backbone = make_backbone().build(5, seed=0)
    sizes = dict.fromkeys(adapted.space.largest(), 0)
    with torch.no_grad():
        torch.testing.assert_close(answers(adapted, sizes), backbone(pictures()), rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_prompts_alone_are_those_of_deep_prompt_tuning(adapted: SizedNetwork, size: int) -> None:
    found = answers(adapted, only(adapted, "prompts", size))
    expected = alone("vpt-deep", adapted, size, {"prompts": "prompts"})
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
def test_adapters_alone_are_those_of_the_adapter(adapted: SizedNetwork, size: int) -> None:
    found = answers(adapted, only(adapted, "adapter", size))
    names = ("w_down", "b_down", "w_up", "b_up")
    expected = alone("adapter", adapted, size, dict(zip(names, names, strict=True)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
def test_lora_alone_is_a_merged_qkv(adapted: SizedNetwork, size: int) -> None:
    found = answers(adapted, only(adapted, "lora", size))
    vanilla = make_backbone().build(5, seed=0)
    with torch.no_grad():
        for index, block in enumerate(vanilla.blocks):
            down = adapted._parts[f"blocks.{index}.lora_down"][:size]
            up = adapted._parts[f"blocks.{index}.lora_up"][:, :size]
            block.attn.qkv.weight += up @ down
        torch.testing.assert_close(found, vanilla(pictures()), rtol=1e-4, atol=1e-4)


def test_the_three_work_together_and_blocks_differ(adapted: SizedNetwork) -> None:
    largest = adapted.space.largest()
    seen = [answers(adapted, largest)]
    for name in largest:
        seen.append(answers(adapted, {**largest, name: 1}))
    for i, one in enumerate(seen):
        assert all(not torch.allclose(one, other, atol=1e-5) for other in seen[:i])


def test_a_step_moves_only_what_was_taken(adapted: SizedNetwork) -> None:
    sizes = {**dict.fromkeys(adapted.space.largest(), 0), "blocks.0.lora": 3}
    adapted.take(sizes)
    adapted.model(pictures()).square().sum().backward()
    moved = {
        name: int(tensor.grad.abs().sum(1).gt(0).sum() if name.endswith("down") else 0)
        for name, tensor in adapted._parts.items()
        if tensor.grad is not None and tensor.grad.any()
    }
    assert moved == {"blocks.0.lora_down": 3, "blocks.0.lora_up": 0}
    up = adapted._parts["blocks.0.lora_up"].grad
    assert up is not None
    assert up[:, :3].any()
    assert not up[:, 3:].any()


def test_the_cost_of_a_candidate_is_what_it_takes_of_the_tensors(adapted: SizedNetwork) -> None:
    width, rng = 48, random.Random(0)
    for sizes in (adapted.space.largest(), *(adapted.space.draw(rng) for _ in range(20))):
        genome = adapted.space.encode(sizes)
        stated = sum(costs[i] for costs, i in zip(adapted.space.costs, genome, strict=True))
        counted = 0
        for name, size in sizes.items():
            match name.rpartition(".")[2]:
                case "prompts":
                    counted += size * width
                case "lora":
                    counted += size * width + 3 * width * size
                case "adapter":
                    counted += 2 * size * width + size + width * (size > 0)
        assert stated == counted
        assert adapted.space.decode(genome) == sizes
    everything = sum(tensor.numel() for tensor in adapted._parts.values())
    largest = sum(costs[0] for costs in adapted.space.costs)
    assert largest == everything
    assert all([*costs] == sorted(costs, reverse=True) for costs in adapted.space.costs)


def test_a_size_that_is_not_on_offer_is_refused(adapted: SizedNetwork) -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        adapted.take({**adapted.space.largest(), "blocks.1.lora": 4})


def test_a_backbone_without_such_blocks_is_wrong_usage() -> None:
    with pytest.raises(SettingError, match="method noah needs a backbone of attention blocks"):
        blocks_of(timm.create_model("resnet10t"), NOAH)


def test_it_is_searched_within_the_limit_and_kept_for_comparison(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: make_task())
    use_small_backbone(monkeypatch)
    root = tmp_path / "artifacts"
    config = RunConfig(
        task="digits",
        data="digits",
        method="noah",
        train=TrainConfig.preset(
            "short", epochs=8, batch_size=12, ranks=SIZES, kinds=NOAH.kinds, lr=0.01
        ),
        search=SearchConfig(
            population=6,
            generations=2,
            top_k=3,
            mutations=3,
            crossovers=3,
            min_parameters=300,
            max_parameters=1500,
        ),
    )
    (outcome,) = run(config, root, lambda *progress: None)
    assert outcome.artifact is None
    assert 300 <= outcome.n_parameters <= 1500
    assert outcome.val_accuracy > 0.6  # of three colours
    (kept,) = comparisons(root)
    assert (kept.method, kept.n_parameters) == ("noah", outcome.n_parameters)
    assert kept.seconds == outcome.train_s + outcome.search_s
    with pytest.raises(NotInStoreError, match="trained by noah for comparison alone"):
        ArtifactStore.open(root).get("digits", "noah-0")
    (again,) = run(replace(config, version="again"), root, lambda *progress: None)
    assert (again.val_accuracy, again.n_parameters) == (outcome.val_accuracy, outcome.n_parameters)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("noah", r"ranks 99999 would train [\d,]+ numbers, at most 1,073,741,824"),
        ("lora", "ranks must be at most 48 here"),
        ("glora", "ranks must be at most 48 here"),
        ("repadapter", "ranks must be at most 48 here"),
    ],
)
def test_a_rank_that_nothing_can_have_is_refused_before_it_takes_memory(
    method: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_small_backbone(monkeypatch)
    # Two blocks of 48 would still be trainable; a wide one is not.
    if method == "noah":
        monkeypatch.setattr(pipeline, "MAX_TRAINED", 2**20)
        said = said.replace("1,073,741,824", "1,048,576")
    with pytest.raises(SettingError, match=said):
        train("digits", method=method, ranks=[99_999], store=tmp_path / "artifacts")
    assert not (tmp_path / "artifacts").exists()
