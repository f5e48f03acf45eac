from __future__ import annotations

import random
from pathlib import Path

import pytest

from glora_deploy.errors import ArtifactError
from glora_deploy.inject import find_layers
from glora_deploy.paths import SearchSpace, Subnet
from glora_deploy.training.config import SearchConfig
from glora_deploy.training.run_folder import RunFolder, ScoreMemory
from glora_deploy.training.search import evolve
from stored_tasks import make_backbone

SEARCH = SearchConfig(population=8, generations=3, top_k=3, mutations=4, crossovers=4)


def make_space() -> SearchSpace:
    return SearchSpace(find_layers(make_backbone().build(3), exclude=("head",)), (4, 2))


def fitness(subnet: Subnet) -> float:
    return random.Random(str(subnet)).random()


def test_an_interrupted_search_goes_on_where_its_scores_were_last_kept(tmp_path: Path) -> None:
    space = make_space()
    whole = evolve(space, fitness, SEARCH, random.Random(1))
    asked: list[Subnet] = []

    def failing(subnet: Subnet) -> float:
        asked.append(subnet)
        if len(asked) == 20:
            raise KeyboardInterrupt
        return fitness(subnet)

    folder = RunFolder(tmp_path, "digits", {"seed": 1}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        evolve(space, ScoreMemory(failing, folder, write_every=8), SEARCH, random.Random(1))
    folder = RunFolder(tmp_path, "digits", {"seed": 1}, resume=True)
    memory = ScoreMemory(failing, folder, write_every=8)
    resumed = evolve(space, memory, SEARCH, random.Random(1))
    assert resumed == whole
    # 16 of the first 19 scores had been kept; the three after them were asked for again.
    assert len(asked) == 20 + whole.n_evaluated - 16
    assert memory.seconds > 0


def test_a_run_with_other_settings_is_not_resumed(tmp_path: Path) -> None:
    RunFolder(tmp_path, "digits", {"seed": 1, "ranks": (8, 4)}, resume=False)
    RunFolder(tmp_path, "digits", {"seed": 1, "ranks": (8, 4)}, resume=True)
    with pytest.raises(ValueError, match=r"ranks must be \[8, 4\] as in the interrupted run, got"):
        RunFolder(tmp_path, "digits", {"seed": 1, "ranks": (8,)}, resume=True)


def test_without_resume_the_past_is_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "digits", {"seed": 1}, resume=False)
    folder.write("scores", {"scores": {}, "seconds": 1.0})
    folder = RunFolder(tmp_path, "digits", {"seed": 2}, resume=False)
    assert folder.read("scores") is None
    folder.remove()
    assert not (tmp_path / ".runs" / "digits").exists()


def test_a_value_is_made_once_per_run(tmp_path: Path) -> None:
    made = iter([7, 8])
    folder = RunFolder(tmp_path, "digits", {}, resume=False)
    assert folder.remember("epochs", lambda: next(made)) == 7
    folder = RunFolder(tmp_path, "digits", {}, resume=True)
    assert folder.remember("epochs", lambda: next(made)) == 7


def test_a_damaged_value_is_refused_by_name(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "digits", {}, resume=False)
    (folder.path / "scores.json").write_text('{"scores"')
    with pytest.raises(ArtifactError, match=r"scores\.json: must be JSON .* without --resume"):
        folder.read("scores")
