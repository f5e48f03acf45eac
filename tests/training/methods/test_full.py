"""Full fine-tuning, and how what left no version stands beside versions."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command_stores import run
from glora_deploy.backbones.load import outline
from glora_deploy.errors import NotInStoreError, StoreError
from glora_deploy.evaluation import compare
from glora_deploy.report.blocks import Table
from glora_deploy.report.versions_section import versions_section
from glora_deploy.store.comparisons import comparisons
from glora_deploy.store.cost_record import CostRecord
from glora_deploy.store.history import read_history
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline, train
from glora_deploy.training.config import TrainConfig
from glora_deploy.training.whole_network import WholeNetwork, build_whole
from stored_tasks import make_backbone
from tasks import make_task, use_small_backbone

ALL = ("full", "vpt-deep", "lora", "glora")


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """One task by four methods."""
    root = tmp_path_factory.mktemp("methods") / "artifacts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load_task", lambda spec, seed: make_task())
        use_small_backbone(patch)
        for method in ALL:
            train("digits", method=method, epochs=2, batch_size=12, store=root)
    return ArtifactStore.open(root)


def test_every_number_of_the_backbone_is_trained() -> None:
    plan = outline("vit_base_patch16_224")
    network = WholeNetwork(plan.build_empty(2), plan.classifier)
    n_head = sum(tensor.numel() for tensor in network.head().values())
    n_all = sum(tensor.numel() for tensor in network.trainable().values())
    assert n_all - n_head == 85_798_656
    assert all(tensor.requires_grad for tensor in network.trainable().values())


def test_the_backbone_itself_stays_what_it_was() -> None:
    backbone = make_backbone()
    before = {name: tensor.clone() for name, tensor in backbone.tensors.items()}
    config = TrainConfig.preset("short")
    network = build_whole(backbone, 3, config, seed=0, device=torch.device("cpu"))
    with torch.no_grad():
        for parameter in network.trainable().values():
            parameter.add_(1)
    assert all(torch.equal(before[name], now) for name, now in backbone.tensors.items())


def test_what_it_trained_is_kept_as_a_checkpoint_of_timms(side_by_side: ArtifactStore) -> None:
    (kept,) = (each for each in comparisons(side_by_side.root) if each.method == "full")
    place = side_by_side.root / ".comparisons" / "digits" / "full-0.safetensors"
    assert kept.checkpoint is not None
    assert kept.checkpoint.sha256 == hashlib.sha256(place.read_bytes()).hexdigest()
    found, backbone = load_file(place), make_backbone()
    model = backbone.build(3)
    model.load_state_dict(found)  # strict
    own = {name: tensor for name, tensor in found.items() if not name.startswith("head.")}
    assert kept.n_parameters == sum(tensor.numel() for tensor in own.values())
    same = [name for name, tensor in own.items() if torch.equal(tensor, backbone.tensors[name])]
    assert same == []
    with pytest.raises(NotInStoreError, match=r"full for comparison alone.*digits/full-0\.safet"):
        side_by_side.get("digits", "full-0")
    assert "a checkpoint" in run("list", "--store", side_by_side.root).stdout
    assert side_by_side.verify() == []


def test_every_training_keeps_what_it_took(side_by_side: ArtifactStore) -> None:
    for version in side_by_side.versions("digits"):
        history = read_history(side_by_side, side_by_side.get("digits", version))
        assert history is not None
        assert history.cost is not None
        assert (history.cost.batch_size, history.cost.device) == (8, "cpu")
    assert all(each.cost is not None for each in comparisons(side_by_side.root))


def test_methods_stand_side_by_side_with_what_each_took(side_by_side: ArtifactStore) -> None:
    found = compare(["digits"], store=side_by_side.root, measure=False)
    assert {each.manifest.training.method for each in found.versions} == {"glora", "lora"}
    assert [each.method for each in found.others] == ["full", "vpt-deep"]
    assert all(each.cost is not None for each in found.versions)
    assert [each["name"] for each in found.to_dict()["comparisons"]] == ["full-0", "vpt-deep-0"]
    assert found.to_dict()["versions"][0]["cost"]["batch_size"] == 8
    shown = run("compare", "digits", "--no-data", "--store", side_by_side.root).stdout
    lines: defaultdict[str, list[str]] = defaultdict(list)
    for line in shown.splitlines():  # of a table that is cut where it is too wide
        lines[line[:22].strip()] += line[22:].split()
    assert lines["method"][: len(ALL)] == ["glora", "lora", "full", "vpt-deep"]
    first, second = found.versions
    full, prompts = found.others
    assert lines["parameters"] == [
        f"{n:,}"
        for n in (
            first.manifest.n_parameters,
            second.manifest.n_parameters,
            full.n_parameters,
            prompts.n_parameters,
        )
    ]
    assert lines["ms an image, merged"][-2:] == ["cannot", "merge"]
    assert len(lines["ms an image, unmerged"]) == 2 * len(ALL)  # each with its ratio
    assert "taken after each training" in shown


def test_two_that_left_no_version_are_compared_as_well(side_by_side: ArtifactStore) -> None:
    names = ["digits/vpt-deep-0", "digits/full-0"]
    found = compare(names, store=side_by_side.root)
    assert (found.versions, [each.method for each in found.others]) == ((), ["vpt-deep", "full"])
    result = run("compare", *names, "--store", side_by_side.root)
    assert result.exit_code == 0, result.output
    assert "digits/vpt-deep-0" in result.stdout
    with pytest.raises(ValueError, match="two versions at least"):
        compare(names[:1], store=side_by_side.root)


def test_a_damaged_history_is_a_note_and_costs_are_left_out(
    side_by_side: ArtifactStore, tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(side_by_side.root, root)
    (root / "digits" / "v1" / "history.json").write_text("{}")
    found = compare(["digits/v1", "digits/v2"], store=root, measure=False)
    first, second = found.versions
    assert first.cost is None
    assert "what it took is not known" in first.notes[0]
    assert second.cost is not None


def test_the_report_has_them_all(side_by_side: ArtifactStore) -> None:
    store = side_by_side
    manifests = [store.get("digits", version).manifest for version in store.versions("digits")]
    (cost,) = (each.cost for each in comparisons(store.root) if each.method == "vpt-deep")
    assert cost is not None
    stated = CostRecord.model_validate(
        {**cost.model_dump(), "peak_memory_bytes": 5_000_000, "merged_ms": 16.0, "unmerged_ms": 24}
    )
    section = versions_section(
        "digits",
        manifests,
        reported="v1",
        current="v2",
        damaged=[],
        costs={"v2": stated},
        others=comparisons(store.root),
    )
    (table,) = section.blocks
    assert isinstance(table, Table)
    assert [row[2] for row in table.rows] == ["lora", "glora", "full", "vpt-deep"]
    assert table.rows[0][-3:] == ("", "", "")
    assert table.rows[1][-3:] == ("5", "2.00", "3.00")
    assert table.rows[3][-2] == "cannot merge"
    assert json.loads(stated.to_json())["batch_size"] == 8


def copied(store: ArtifactStore, tmp_path: Path) -> Path:
    shutil.copytree(store.root, tmp_path / "artifacts")
    return tmp_path / "artifacts"


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        ("vpt-deep-0.json", b"", "vpt-deep-0.json: "),
        ("vpt-deep-0.json", b"{}", "task: must be present"),
        ("full-0.safetensors", b"cut", "full-0.safetensors: .*full-0.json"),
        ("full-0.safetensors", None, "full-0.safetensors"),
    ],
)
def test_a_damaged_comparison_is_named_by_verify_and_list(
    side_by_side: ArtifactStore, tmp_path: Path, file: str, data: bytes | None, said: str
) -> None:
    root = copied(side_by_side, tmp_path)
    place = root / ".comparisons" / "digits" / file
    if data is None:
        place.unlink()
    else:
        place.write_bytes(data)
    (finding,) = ArtifactStore.open(root).verify()
    assert re.search(said, finding.problem)
    assert ArtifactStore.open(root).verify("digits") == [finding]
    result = run("list", "--store", root)
    assert result.exit_code == 0
    assert f"note: {finding.problem[:40]}" in result.stderr


def test_a_record_under_another_name_is_no_comparison(
    side_by_side: ArtifactStore, tmp_path: Path
) -> None:
    root = copied(side_by_side, tmp_path)
    folder = root / ".comparisons" / "digits"
    (folder / "vpt-deep-0.json").rename(folder / "other.json")
    assert [each.name for each in comparisons(root)] == ["full-0"]
    (finding,) = ArtifactStore.open(root).verify()
    assert "must be that of digits/other, it states digits/vpt-deep-0" in finding.problem


def test_a_comparison_is_removed_with_its_checkpoint(
    side_by_side: ArtifactStore, tmp_path: Path
) -> None:
    root = copied(side_by_side, tmp_path)
    for name in ("full-0", "vpt-deep-0"):
        result = run("remove", "digits", name, "--store", root)
        assert result.exit_code == 0, result.output
    assert not (root / ".comparisons" / "digits").exists()
    assert ArtifactStore.open(root).versions("digits") == side_by_side.versions("digits")


def test_what_is_trained_again_replaces_nothing(
    side_by_side: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(side_by_side, tmp_path)
    monkeypatch.setattr(pipeline, "load_task", lambda spec, seed: make_task())
    use_small_backbone(monkeypatch)
    again = {"epochs": 1, "batch_size": 12, "store": root}
    (outcome,) = train("digits", method="vpt-deep", **again)
    assert outcome.name == "vpt-deep-0-2"
    assert {each.name: each.epochs for each in comparisons(root)} == {
        "full-0": 2,
        "vpt-deep-0": 2,
        "vpt-deep-0-2": 1,
    }
    for method in ("lora", "adapter"):
        with pytest.raises(StoreError, match="must be new, a comparison has this name"):
            train("digits", method=method, version="full-0", **again)


def test_what_differs_is_told_of_comparisons_too(
    side_by_side: ArtifactStore, tmp_path: Path
) -> None:
    root = copied(side_by_side, tmp_path)
    place = root / ".comparisons" / "digits" / "vpt-deep-0.json"
    record = json.loads(place.read_text())
    place.write_text(json.dumps({**record, "data": "photos", "seed": 4}))
    found = compare(["digits/v1", "digits/vpt-deep-0"], store=root, measure=False)
    told = {each.what: each.values for each in found.differences}
    assert told == {
        "method": ("lora", "vpt-deep"),
        "seed": ("0", "4"),
        "data": ("digits", "photos"),
    }
    assert found.notes == ("digits/vpt-deep-0: its accuracies are those on photos",)
    alike = compare(["digits/full-0", "digits/v1"], store=root, measure=False)
    assert [each.what for each in alike.differences] == ["method"]
