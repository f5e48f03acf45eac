from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glora_deploy.errors import ArtifactError, StoreError
from glora_deploy.glora.forms import SearchSpace, Subnet
from glora_deploy.glora.supernet_layers import find_layers
from glora_deploy.training import run_folder
from glora_deploy.training.checkpoint import state_of
from glora_deploy.training.config import SearchConfig
from glora_deploy.training.run_folder import RunFolder, ScoreMemory, open_run, require_startable
from glora_deploy.training.run_lock import LOCK
from glora_deploy.training.search import Score, SubnetGenes, Worthwhile, evolve
from scores import whole
from stored_tasks import make_backbone

SEARCH = SearchConfig(population=8, generations=3, top_k=3, mutations=4, crossovers=4)
ASKED = {"seed": 1, "train.ranks": (8, 4)}


def make_space() -> SearchSpace:
    return SearchSpace(find_layers(make_backbone().build(3), exclude=("head",)), (4, 2))


def fitness(subnet: Subnet) -> float:
    return random.Random(str(subnet)).random()


def keep_epochs(folder: RunFolder, epochs: int, stage: str = "training") -> None:
    """A checkpoint as a training of so many epochs writes it."""
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    folder.checkpoint(stage).write(state_of({"w": parameter}, optimizer), epochs, 1.5)


def interrupt(store: Path, epochs: int, asked: dict[str, Any] = ASKED) -> None:
    """An unfinished run with so many epochs kept."""
    with suppress(KeyboardInterrupt), open_run(store, "digits", asked) as folder:
        if epochs:
            keep_epochs(folder, epochs)
        raise KeyboardInterrupt


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_an_interrupted_search_goes_on_where_its_scores_were_last_kept(tmp_path: Path) -> None:
    space = make_space()
    uninterrupted = evolve(SubnetGenes(space), whole(fitness), SEARCH, random.Random(1))
    asked: list[Subnet] = []

    def failing(subnet: Subnet) -> float:
        asked.append(subnet)
        if len(asked) == 20:
            raise KeyboardInterrupt
        return fitness(subnet)

    with suppress(KeyboardInterrupt), open_run(tmp_path, "digits", ASKED) as folder:
        keep_epochs(folder, 4)
        evolve(
            SubnetGenes(space),
            ScoreMemory(whole(failing), folder, write_every=8),
            SEARCH,
            random.Random(1),
        )
    assert len(asked) == 20
    with open_run(tmp_path, "digits", ASKED) as folder:
        memory = ScoreMemory(whole(failing), folder, write_every=8)
        resumed = evolve(SubnetGenes(space), memory, SEARCH, random.Random(1))
    assert resumed == uninterrupted
    # 16 of the first 19 scores had been kept; the three after them were asked for again.
    assert len(asked) == 20 + uninterrupted.n_evaluated - 16


def test_what_was_given_up_is_remembered_as_such(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "digits")
    folder.path.mkdir(parents=True)
    space = make_space()

    def impatient(subnet: Subnet, worthwhile: Worthwhile) -> Score:
        return Score(0.75, whole=worthwhile(0.75))

    def forgetful(subnet: Subnet, worthwhile: Worthwhile) -> Score:
        raise AssertionError("it is known")

    for fitness_of in (impatient, forgetful):
        memory = ScoreMemory(fitness_of, folder, write_every=1)
        assert memory(space.largest(), lambda value: True) == Score(0.75, whole=True)
        assert memory(space.smallest(), lambda value: False) == Score(0.75, whole=False)


def test_the_seconds_of_a_search_add_up_over_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(run_folder.time, "perf_counter", lambda: now)
    folder = RunFolder(tmp_path, "digits")
    folder.path.mkdir(parents=True)
    first = ScoreMemory(whole(fitness), folder, write_every=1)
    assert first.seconds == 0
    now = 1040.0
    first(make_space().largest(), lambda value: True)  # kept
    now = 1041.0  # lost
    assert first.seconds == 41
    now = 5.0  # another process, whose clock starts anywhere
    folder = RunFolder(tmp_path, "digits")
    second = ScoreMemory(whole(fitness), folder, write_every=1)
    assert second.seconds == 40
    now = 7.5
    assert second.seconds == 42.5
    second.write()
    assert folder.read("scores")["seconds"] == 42.5


@pytest.mark.parametrize("resume", [False, True])
def test_the_same_request_goes_on_with_what_an_interrupted_run_kept(
    tmp_path: Path, resume: bool
) -> None:
    interrupt(tmp_path, epochs=40)
    told: list[str] = []
    require_startable(tmp_path, "digits", ASKED, resume=resume, restart=False)
    with open_run(tmp_path, "digits", ASKED, resume=resume, tell=told.append) as folder:
        assert folder.epochs == 40
        assert folder.checkpoint("training").epoch == 40
    assert told == ["going on with an unfinished run: 40 epochs done"]


@pytest.mark.parametrize("resume", [False, True])
def test_another_request_is_refused_with_the_first_difference_and_both_ways_out(
    tmp_path: Path, resume: bool
) -> None:
    interrupt(tmp_path, epochs=40)
    other = {**ASKED, "train.ranks": (8,), "train.lr": 0.1}
    refusals: list[Callable[[], Any]] = [
        lambda: require_startable(tmp_path, "digits", other, resume=resume, restart=False),
        open_run(tmp_path, "digits", other, resume=resume).__enter__,
    ]
    for refused in refusals:
        with pytest.raises(StoreError) as caught:
            refused()
        assert str(caught.value) == (
            f"{tmp_path}/.runs/digits: an unfinished run of this task, with 40 epochs done, has "
            "train.lr None, this one asks for 0.1. Give the same options to go on with it, or "
            "--restart to discard it."
        )
    assert RunFolder(tmp_path, "digits").epochs == 40


@pytest.mark.parametrize("asked", [ASKED, {**ASKED, "seed": 2}])
def test_only_a_restart_discards_and_says_how_much(tmp_path: Path, asked: dict[str, Any]) -> None:
    interrupt(tmp_path, epochs=1)
    told: list[str] = []
    require_startable(tmp_path, "digits", asked, resume=False, restart=True)
    with open_run(tmp_path, "digits", asked, restart=True, tell=told.append) as folder:
        assert folder.epochs == 0
        assert names(folder.path) == {LOCK, "run.json"}
    assert told == ["discarded an unfinished run: 1 epoch"]


def test_a_restart_without_an_unfinished_run_is_a_start(tmp_path: Path) -> None:
    told: list[str] = []
    require_startable(tmp_path, "digits", ASKED, resume=False, restart=True)
    with open_run(tmp_path, "digits", ASKED, restart=True, tell=told.append):
        pass
    assert told == []


def test_resuming_needs_an_unfinished_run(tmp_path: Path) -> None:
    for refused in (
        lambda: require_startable(tmp_path, "digits", ASKED, resume=True, restart=False),
        open_run(tmp_path, "digits", ASKED, resume=True).__enter__,
    ):
        with pytest.raises(StoreError, match="no unfinished run to go on with"):
            refused()
    assert not (tmp_path / ".runs/digits").exists()


def test_a_run_that_kept_nothing_is_in_nobodys_way(tmp_path: Path) -> None:
    interrupt(tmp_path, epochs=0)
    assert not (tmp_path / ".runs/digits").exists()
    # A killed process leaves its folder.
    folder = RunFolder(tmp_path, "digits")
    folder.path.mkdir(parents=True)
    folder.write("run", {"seed": 7})
    folder.write("scores", {"scores": {}, "seconds": 1.0})
    require_startable(tmp_path, "digits", ASKED, resume=False, restart=False)
    with open_run(tmp_path, "digits", ASKED) as folder:
        assert folder.read("scores") is None
        assert folder.read("run") == {"seed": 1, "train.ranks": [8, 4]}


def test_what_a_clearing_cut_short_left_is_not_taken_for_this_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "digits")
    folder.path.mkdir(parents=True)
    keep_epochs(folder, 30)
    with open_run(tmp_path, "digits", ASKED) as folder:
        assert folder.epochs == 0


def test_a_clearing_takes_away_last_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(tmp_path, epochs=3)
    removed: list[str] = []
    unlink = Path.unlink

    def spy(path: Path, missing_ok: bool = False) -> None:
        removed.append(path.name)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", spy)
    RunFolder(tmp_path, "digits").clear()
    assert removed == ["training.safetensors", "run.json"]


def test_a_stored_run_leaves_nothing(tmp_path: Path) -> None:
    with open_run(tmp_path, "digits", ASKED) as folder:
        keep_epochs(folder, 5)
        folder.remove()
    assert names(tmp_path / ".runs") == set()
    assert names(tmp_path / ".tmp") == set()


def test_epochs_are_counted_over_all_stages_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    interrupt(tmp_path, epochs=5)
    folder = RunFolder(tmp_path, "digits")
    keep_epochs(folder, 2, "retraining")
    assert folder.epochs == 7
    folder.checkpoint("retraining").path.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"retraining\.safetensors: .* anew with --restart"):
        _ = folder.epochs
    assert folder.keeps_epochs


@pytest.mark.parametrize("asked", [ASKED, {**ASKED, "seed": 7}])
def test_a_run_whose_checkpoint_cannot_be_read_stays_until_it_is_discarded(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    interrupt(tmp_path, epochs=5)
    path = RunFolder(tmp_path, "digits").checkpoint("training").path
    path.write_bytes(path.read_bytes()[:-3])
    for refused in (
        lambda: require_startable(tmp_path, "digits", asked, resume=False, restart=False),
        open_run(tmp_path, "digits", asked).__enter__,
    ):
        with pytest.raises(ArtifactError, match=r"checkpoint cannot be read .* with --restart"):
            refused()
        assert names(path.parent) == {LOCK, "run.json", "training.safetensors"}
    told: list[str] = []
    with open_run(tmp_path, "digits", asked, restart=True, tell=told.append) as folder:
        assert folder.epochs == 0
    assert told == ["discarded an unfinished run: its checkpoint cannot be read"]


def test_a_run_that_fails_over_its_checkpoint_keeps_it(tmp_path: Path) -> None:
    interrupt(tmp_path, epochs=5)
    path = RunFolder(tmp_path, "digits").checkpoint("training").path
    with suppress(KeyboardInterrupt), open_run(tmp_path, "digits", ASKED):
        path.write_bytes(b"damaged")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"damaged"


def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path: Path) -> None:
    interrupt(tmp_path, epochs=5)
    checkpoint = RunFolder(tmp_path, "digits").checkpoint("training")
    parameter = nn.Parameter(torch.zeros(3))  # two numbers were kept
    optimizer = torch.optim.AdamW([parameter])
    for name in ("w", "v"):
        with pytest.raises(ArtifactError, match=rf"cannot be read \(it does not fit {name}\)"):
            checkpoint.restore({name: parameter}, optimizer)


def test_a_value_is_made_once_per_run(tmp_path: Path) -> None:
    made = iter([7, 8])
    for _ in range(2):
        with open_run(tmp_path, "digits", {}) as folder:
            assert folder.remember("epochs", lambda: next(made)) == 7


def test_a_damaged_value_is_refused_by_name_until_the_run_is_discarded(tmp_path: Path) -> None:
    interrupt(tmp_path, epochs=5)
    (tmp_path / ".runs/digits/run.json").write_text('{"seed"')
    for refused in (
        lambda: require_startable(tmp_path, "digits", ASKED, resume=False, restart=False),
        open_run(tmp_path, "digits", ASKED).__enter__,
    ):
        with pytest.raises(ArtifactError, match=r"run\.json: must be JSON .* with --restart"):
            refused()
    with open_run(tmp_path, "digits", ASKED, restart=True) as folder:
        assert folder.epochs == 0
