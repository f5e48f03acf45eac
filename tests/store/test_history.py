from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from glora_deploy.errors import ArtifactError
from glora_deploy.machine import Machine
from glora_deploy.store.history import History


def epoch(number: int) -> dict[str, Any]:
    return {
        "epoch": number,
        "loss": 1.5 / number,
        "accuracy": 0.25,
        "learning_rate": 0.01,
        "seconds": 2,
    }


def candidate(n_parameters: int, val_accuracy: float, *, whole: bool = True) -> dict[str, Any]:
    return {"n_parameters": n_parameters, "val_accuracy": val_accuracy, "whole": whole}


def make_history() -> dict[str, Any]:
    return {
        "history_version": 1,
        "stages": [
            {
                "stage": "training",
                "supernet_epochs": 2,
                "epochs": [epoch(1), epoch(2), epoch(3)],
                "validations": [
                    {"after_epoch": 2, "accuracy": 0.5},
                    {"after_epoch": 3, "accuracy": 0.75},
                ],
            }
        ],
        "search": {
            "seconds": 0.5,
            "generations": [
                [candidate(70, 0.25), candidate(30, 0.5)],
                [candidate(40, 0.25)],
                [candidate(50, 0.25), candidate(20, 0.75)],
            ],
            "chosen": candidate(20, 0.75),
        },
    }


def read(value: Any) -> History:
    return History.from_json(json.dumps(value).encode())


def test_what_is_written_reads_back_as_the_same() -> None:
    found = read(make_history())
    assert History.from_json(found.to_json()) == found
    assert found.cost is None  # as of a release that measured none
    assert found.model_dump(mode="json") == {**make_history(), "cost": None}
    cost = {
        "machine": Machine.here().model_dump(mode="json"),
        "device": "cpu",
        "peak_memory_bytes": None,
        "batch_size": 8,
        "merged_ms": 2.0,
        "unmerged_ms": 3.0,
    }
    told = read({**make_history(), "cost": cost})
    assert told.cost is not None
    assert told.cost.slowdown == 1.5
    assert History.from_json(told.to_json()) == told


def test_a_search_tells_its_best_so_far() -> None:
    search = read(make_history()).search
    assert search is not None
    assert search.best_so_far() == [0.5, 0.5, 0.75]


def test_what_a_subnet_could_have_reached_is_no_accuracy_of_it() -> None:
    given = make_history()
    given["search"]["generations"][1] = [candidate(40, 0.9, whole=False)]
    search = read(given).search
    assert search is not None
    assert search.best_so_far() == [0.5, 0.5, 0.75]


def test_a_candidate_of_an_earlier_release_was_measured_to_its_end() -> None:
    given = make_history()
    del given["search"]["generations"][1][0]["whole"]
    assert read(given) == read(make_history())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(history_version=2), "history_version: must be 1, got 2"),
        (lambda h: h.update(more=1), "more: is not a field"),
        (lambda h: h.pop("search"), "search: must be present"),
        (lambda h: h.update(stages=[]), "stages: "),
        (lambda h: h["stages"].append(h["stages"][0]), "stages must differ, got training, trainin"),
        (lambda h: h["stages"][0]["epochs"].pop(1), "epochs must be consecutive, got 3 after 1"),
        (lambda h: h["stages"][0]["epochs"][0].update(loss=-1.0), "loss: must be greater than or"),
        (lambda h: h["stages"][0]["epochs"][0].update(accuracy=1.5), "accuracy: must be less than"),
        (lambda h: h["stages"][0]["epochs"][0].update(epoch="1"), "epoch: must be a valid integer"),
        (
            lambda h: h["stages"][0]["validations"].append({"after_epoch": 4, "accuracy": 0.5}),
            r"validations must be in order, up to epoch 3, got \[2, 3, 4\]",
        ),
        (
            lambda h: (
                h["search"].update(chosen=candidate(20, 0.75, whole=False)),
                h["search"]["generations"][2].append(candidate(20, 0.75, whole=False)),
            ),
            "search: chosen must have been measured to its end",
        ),
        (
            lambda h: [each.update(whole=False) for each in h["search"]["generations"][0]],
            "search: one of the first generation must have been measured to its end",
        ),
        (lambda h: h["stages"][0]["validations"].reverse(), r"in order, up to epoch 3, got \[3, 2"),
        (lambda h: h["search"].update(generations=[]), "search.generations: "),
        (lambda h: h["search"]["generations"].append([]), "search.generations.3: "),
        (lambda h: h["search"]["chosen"].update(n_parameters=21), "chosen must be one of the cand"),
    ],
)
def test_whatever_breaks_a_rule_is_refused_by_name(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    value = make_history()
    change(value)
    with pytest.raises(ArtifactError, match=message) as caught:
        read(value)
    assert str(caught.value).startswith("history.json: ")
    assert str(caught.value).endswith("Restore the file.")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"history_version": NaN}'])
def test_what_is_no_history_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"history\.json: "):
        History.from_json(data)
