from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glora_deploy.errors import ArtifactError, NonFiniteError
from glora_deploy.glora.forms import LayerForms, Subnet
from glora_deploy.store.history import EpochRecord
from glora_deploy.training import trainer as trainer_module
from glora_deploy.training.checkpoint import Checkpoint
from glora_deploy.training.config import Schedule, TrainConfig
from glora_deploy.training.methods import METHODS
from glora_deploy.training.pixels import Pixels
from glora_deploy.training.schedule import (
    Draw,
    draw_always,
    draw_largest_first,
    draw_uniform,
    learning_rate,
)
from glora_deploy.training.supernet import Supernet, build_supernet
from glora_deploy.training.trainer import Trainer
from stored_tasks import make_backbone
from tasks import make_images

CPU = torch.device("cpu")
GLORA = METHODS["glora"]


def make_config(schedule: Schedule = "short", **changes: Any) -> TrainConfig:
    values = {"epochs": 4, "batch_size": 12, "ranks": (3, 2), "warmup_epochs": 0, "lr": 1e-2}
    return TrainConfig.preset(schedule, **{**values, **changes})


def make_pixels(n: int = 40) -> Pixels:
    return Pixels(make_images(n, seed=0), make_backbone().preprocessing, CPU)


def make_supernet(config: TrainConfig | None = None, seed: int = 0) -> Supernet:
    return build_supernet(make_backbone(), 3, config or make_config(), GLORA, seed=seed, device=CPU)


def state(supernet: Supernet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in supernet.model.state_dict().items()}


def trained_state(
    config: TrainConfig,
    seed: int = 5,
    draw: Callable[[Any], Draw] = draw_largest_first,
    **options: Any,
) -> dict[str, Tensor]:
    supernet = make_supernet(config)
    trainer = Trainer(supernet, make_pixels(), config, random.Random(seed), **options)
    trainer.train(draw(supernet.space))
    return state(supernet)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_training_learns_the_task() -> None:
    seen: list[EpochRecord] = []
    trained_state(make_config(epochs=8), report=seen.append)
    assert [each.epoch for each in seen] == list(range(1, 9))
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert seen[-1].accuracy > 0.9


def test_an_epoch_tells_the_mean_rate_of_its_steps() -> None:
    config = make_config(epochs=2, warmup_epochs=1, batch_size=20)  # two steps an epoch
    seen: list[EpochRecord] = []
    trained_state(config, report=seen.append)
    rates = [learning_rate(config, step / 2) for step in range(4)]
    assert [each.learning_rate for each in seen] == pytest.approx(
        [(rates[0] + rates[1]) / 2, (rates[2] + rates[3]) / 2]
    )
    assert all(each.seconds > 0 for each in seen)


@pytest.mark.parametrize("schedule", ["short", "paper"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(schedule: Schedule) -> None:
    config = make_config(schedule)
    draw = draw_uniform if schedule == "paper" else draw_largest_first
    first = trained_state(config, draw=draw)
    torch.manual_seed(77)
    before = torch.random.get_rng_state()
    assert_same(trained_state(config, draw=draw), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = trained_state(config, seed=6, draw=draw)
    assert not torch.equal(other["head.weight"], first["head.weight"])


def test_only_supports_and_classifier_are_trained() -> None:
    config = make_config()
    before, after = state(make_supernet(config)), trained_state(config)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trainable = set(make_supernet(config).trainable())
    # The biases of an untrained ViT are zero, so that D has no effect and no gradient.
    assert changed == {name for name in trainable if not name.endswith(".D")}
    assert {"head.weight", "head.bias"} < changed
    assert not any(".base." in name for name in changed)


def test_tensors_off_the_path_get_no_step_at_all() -> None:
    config = make_config(weight_decay=0.5)
    supernet = make_supernet(config)
    with torch.no_grad():
        for parameter in supernet.trainable().values():
            parameter += 0.01
    before = state(supernet)
    paths = LayerForms.parse("A=vector B=none C=lora:3 D=none E=scalar")
    subnet = Subnet(dict.fromkeys(supernet.space.shapes, paths))
    Trainer(supernet, make_pixels(), config, random.Random(0)).train(draw_always(subnet))
    after = state(supernet)
    changed = {name.rpartition(".")[2] for name in before if not before[name].equal(after[name])}
    assert changed == {"A_d", "C_d", "C_u", "E", "weight", "bias"}


def test_every_step_trains_one_subnet_at_its_own_progress() -> None:
    config = make_config(epochs=3)
    supernet = make_supernet(config)
    seen: list[float] = []

    def draw(progress: float, rng: random.Random) -> Subnet:
        seen.append(progress)
        return supernet.space.largest()

    Trainer(supernet, make_pixels(40), config, random.Random(0)).train(draw)
    # 40 images are three steps of 12; the part batch of 4 is dropped.
    assert seen == pytest.approx([step / 9 for step in range(9)])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("paper", [0.01, 0.01, 0.0025, 0.0025]), ("short", [0.01, 0.00625, 0.0025, 0.00116987])],
)
def test_rates_change_per_epoch_in_the_paper_and_per_step_in_short(
    schedule: Schedule, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    config = make_config(schedule, epochs=3, final_lr=0.0, drop_path=0.0)
    trained_state(config)
    per_epoch = [0.01, 0.0075, 0.0025]
    if schedule == "paper":
        assert rates == pytest.approx([rate for rate in per_epoch for _ in range(3)])
    else:
        assert rates[::3] == pytest.approx(per_epoch)
        assert rates == sorted(rates, reverse=True)
        assert len(set(rates)) == 9


def test_a_batch_larger_than_the_split_is_the_whole_split() -> None:
    seen: list[int] = []
    trained_state(make_config(batch_size=1000), report=lambda each: seen.append(each.epoch))
    assert seen == [1, 2, 3, 4]


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = make_config("paper", epochs=5, checkpoint_every=2)
    checkpoint = Checkpoint(tmp_path / "run" / "supernet.safetensors", tmp_path / "scratch")
    checkpoint.path.parent.mkdir()
    uninterrupted = trained_state(config, draw=draw_uniform)

    def interrupt(each: EpochRecord) -> None:
        if each.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained_state(config, draw=draw_uniform, checkpoint=checkpoint, report=interrupt)
    epochs: list[int] = []
    resumed = trained_state(
        config,
        draw=draw_uniform,
        checkpoint=checkpoint,
        report=lambda each: epochs.append(each.epoch),
    )
    assert epochs == [4, 5]
    assert_same(resumed, uninterrupted)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "run",
        "scratch",
        "supernet.safetensors",
    ]


def test_an_interrupt_within_an_epoch_keeps_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("paper", epochs=5, checkpoint_every=100)
    checkpoint = Checkpoint(tmp_path / "supernet.safetensors", tmp_path / "scratch")
    uninterrupted = trained_state(config, draw=draw_uniform)
    train_epoch, n_begun = Trainer._train_epoch, itertools.count(1)

    def interrupted(self: Trainer, draw: Draw, rng: random.Random) -> EpochRecord:
        record = train_epoch(self, draw, rng)  # its steps have changed the weights
        if next(n_begun) == 3:
            raise KeyboardInterrupt
        return record

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained_state(config, draw=draw_uniform, checkpoint=checkpoint)
    assert checkpoint.epoch == 2
    assert_same(trained_state(config, draw=draw_uniform, checkpoint=checkpoint), uninterrupted)


def test_a_long_epoch_is_kept_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(epochs=4, checkpoint_every=100)
    checkpoint = Checkpoint(tmp_path / "supernet.safetensors", tmp_path / "scratch")
    kept: list[int] = []
    monkeypatch.setattr(trainer_module, "CHECKPOINT_S", 0.0)
    trained_state(config, checkpoint=checkpoint, report=lambda _: kept.append(checkpoint.epoch))
    assert kept == [1, 2, 3, 4]


def test_a_finished_training_resumes_to_its_end_without_a_step(tmp_path: Path) -> None:
    config = make_config(epochs=4, checkpoint_every=2)
    checkpoint = Checkpoint(tmp_path / "supernet.safetensors", tmp_path / "scratch")
    first = trained_state(config, checkpoint=checkpoint)
    epochs: list[int] = []
    again = trained_state(
        config, checkpoint=checkpoint, report=lambda each: epochs.append(each.epoch)
    )
    assert epochs == []
    assert_same(again, first)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    config = make_config(epochs=2, checkpoint_every=1)
    checkpoint = Checkpoint(tmp_path / "supernet.safetensors", tmp_path / "scratch")
    trained_state(config, checkpoint=checkpoint)
    whole = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"supernet\.safetensors: the checkpoint cannot be"):
        trained_state(config, checkpoint=checkpoint)


def test_a_training_that_diverges_is_stopped() -> None:
    config = make_config(lr=1e30)
    with pytest.raises(NonFiniteError, match=r"the loss must be finite, got (nan|inf) in epoch"):
        trained_state(config)


def test_batch_norm_keeps_the_statistics_of_the_backbone() -> None:
    config = make_config(epochs=1, kinds=("conv", "affine"))
    backbone = make_backbone("test_resnet")
    supernet = build_supernet(backbone, 3, config, GLORA, seed=0, device=CPU)
    before = state(supernet)
    pixels = Pixels(make_images(24, seed=0), backbone.preprocessing, CPU)
    Trainer(supernet, pixels, config, random.Random(0)).train(draw_largest_first(supernet.space))
    after = state(supernet)
    running = [name for name in before if "running" in name or "num_batches" in name]
    assert running
    assert_same({n: after[n] for n in running}, {n: before[n] for n in running})
    assert not any(module.training for module in supernet.model.modules())


def test_a_training_in_parts_is_one_training() -> None:
    config = make_config("short", epochs=5)
    whole = trained_state(config)
    supernet = make_supernet(config)
    trainer = Trainer(supernet, make_pixels(), config, random.Random(5))
    draw = draw_largest_first(supernet.space)
    for until in (2, 3, None):
        trainer.train(draw, until=until)
    assert_same(state(supernet), whole)


def test_a_training_in_parts_resumes_in_its_second_part(tmp_path: Path) -> None:
    config = make_config("short", epochs=5, checkpoint_every=1)

    def in_parts(*, stop_after: int) -> dict[str, Tensor]:
        supernet = make_supernet(config)

        def interrupt(each: EpochRecord) -> None:
            if each.epoch == stop_after:
                raise KeyboardInterrupt

        checkpoint = Checkpoint(tmp_path / "supernet.safetensors", tmp_path / "scratch")
        trainer = Trainer(
            supernet,
            make_pixels(),
            config,
            random.Random(5),
            checkpoint=checkpoint,
            report=interrupt,
        )
        trainer.train(draw_largest_first(supernet.space), until=2)
        trainer.train(draw_always(supernet.space.smallest()))
        return state(supernet)

    whole = in_parts(stop_after=99)
    (tmp_path / "supernet.safetensors").unlink()
    with pytest.raises(KeyboardInterrupt):
        in_parts(stop_after=4)
    assert_same(in_parts(stop_after=99), whole)
