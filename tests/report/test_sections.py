"""The sections that need no network: what they draw and say of a manifest or a history."""

from __future__ import annotations

from pathlib import Path

import pytest

from glora_deploy.glora.forms import SUPPORTS
from glora_deploy.report.blocks import Figure, Table
from glora_deploy.report.canvas import draw
from glora_deploy.report.palette import ACCENT, INK
from glora_deploy.report.search_section import search_section
from glora_deploy.report.subnet_section import subnet_section
from glora_deploy.report.training_section import training_section
from glora_deploy.report.versions_section import versions_section
from glora_deploy.store.history import (
    CandidateRecord,
    EpochRecord,
    History,
    SearchRecord,
    StageName,
    StageRecord,
    ValidationRecord,
)
from stored_tasks import make_backbone, make_stored_task


def make_stage(
    stage: StageName = "training", *, first: int = 1, n: int = 4, supernet_epochs: int = 2
) -> StageRecord:
    epochs = tuple(
        EpochRecord(
            epoch=number,
            loss=1 / number,
            accuracy=1 - 0.5 / number,
            learning_rate=0.01,
            seconds=2.0,
        )
        for number in range(first, first + n)
    )
    measured = (ValidationRecord(after_epoch=epochs[-1].epoch, accuracy=0.75),)
    return StageRecord(
        stage=stage, supernet_epochs=supernet_epochs, epochs=epochs, validations=measured
    )


def make_history(*stages: StageRecord, search: SearchRecord | None = None) -> History:
    return History(history_version=1, stages=stages or (make_stage(),), search=search)


def figure_of(blocks: tuple[object, ...]) -> Figure:
    (found,) = [block for block in blocks if isinstance(block, Figure)]
    return found


def test_curves_say_where_they_begin_and_end() -> None:
    figure = figure_of(training_section(make_history(), "").blocks)
    assert "loss from 1.000 in epoch 1 to 0.250 in epoch 4" in figure.alt
    assert "training accuracy from 50.0% to 87.5%" in figure.alt
    assert "Up to the dotted line, 2 epochs" in figure.caption
    assert "Diamonds" in figure.caption


@pytest.mark.parametrize(
    ("history", "as_searched", "told", "untold"),
    [
        (make_history(), True, "stored are those at the dotted line", "Retraining"),
        (make_history(make_stage(supernet_epochs=4)), False, "Diamonds", "dotted line"),
        (make_history(make_stage("lora", supernet_epochs=0)), False, "Diamonds", "dotted line"),
        (make_history(make_stage(), make_stage("retraining")), False, "Retraining, dashed", "Epo"),
        (make_history(make_stage(first=3)), False, "Epochs before 3 were trained", "Retraining"),
    ],
)
def test_a_caption_says_what_is_special_about_a_training(
    history: History, as_searched: bool, told: str, untold: str
) -> None:
    section = training_section(history, "", as_searched=as_searched)
    caption = figure_of(section.blocks).caption
    assert told in caption
    assert untold not in caption


def test_a_single_epoch_can_be_drawn() -> None:
    history = make_history(make_stage("lora", n=1, supernet_epochs=0))
    assert len(figure_of(training_section(history, "").blocks).drawings) == 4


def test_a_search_says_what_it_went_through() -> None:
    def candidates(*accuracies: float) -> tuple[CandidateRecord, ...]:
        return tuple(
            CandidateRecord(n_parameters=1000 + round(100 * each), val_accuracy=each)
            for each in accuracies
        )

    search = SearchRecord(
        seconds=1.0,
        generations=(
            candidates(0.25, 0.5),
            (*candidates(0.75), CandidateRecord(n_parameters=9, val_accuracy=0.4, whole=False)),
        ),
        chosen=candidates(0.75)[0],
    )
    figure = figure_of(search_section(make_history(search=search), "").blocks)
    assert "4 subnets in 2 generations" in figure.alt
    assert "rose from 50.0% to 75.0%" in figure.alt
    assert "1 subnet could soon no longer rank" in figure.alt
    assert "1,075 parameters with 75.0%" in figure.alt


def test_the_parameters_by_type_add_up_and_every_form_is_in_the_table(tmp_path: Path) -> None:
    _, artifact = make_stored_task(tmp_path)
    manifest = artifact.manifest
    section = subnet_section(manifest)
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == list(manifest.layers)
    for name, *forms, n_parameters in table.rows:
        paths = manifest.layers[name].layer_paths()
        assert forms == [str(paths[support]) for support in SUPPORTS]
        assert n_parameters == f"{paths.n_parameters(manifest.layers[name].layer_shape()):,}"
    counts = [int(row[-1].replace(",", "")) for row in table.rows]
    assert sum(counts) == manifest.n_parameters
    told = figure_of(section.blocks).alt.partition("by type of layer: ")[2]
    shares = [int(part.split(" (")[0].split()[-1].replace(",", "")) for part in _parts(told)]
    assert sum(shares) == manifest.n_parameters


def _parts(told: str) -> list[str]:
    """``attn.qkv 1,200 (3%), ...`` split between its entries."""
    return [part for part in told.replace(" and ", ", ").split("%)") if "(" in part]


def test_a_convolutional_network_has_a_map_too(tmp_path: Path) -> None:
    _, artifact = make_stored_task(tmp_path, backbone=make_backbone("test_resnet"))
    figure = figure_of(subnet_section(artifact.manifest).blocks)
    assert [each.name for each in figure.drawings] == ["forms", "parameters"]
    assert "layer.conv1" in figure.drawings[0].svg


def test_a_drawing_has_the_pages_colours_and_the_words_as_they_are() -> None:
    word = f'<b> & "{INK}" id="x" $y$'

    def paint(axes: list) -> None:  # type: ignore[type-arg]
        axes[0].plot([1, 2], [3, 4], color=ACCENT)
        axes[0].set_title(word)

    first, second = (draw(name, paint, width=3, height=2) for name in ("one", "two"))
    assert "var(--accent)" in first.svg
    assert ACCENT not in first.svg
    assert f'&lt;b&gt; &amp; "{INK}" id="x" $y$</text>' in first.svg
    assert 'id="one-figure_1"' in first.svg
    assert 'id="two-figure_1"' in second.svg
    assert first.svg.startswith("<svg")
    assert draw("one", paint, width=3, height=2) == first


def test_versions_stand_side_by_side_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    store, first = make_stored_task(tmp_path)
    _, second = make_stored_task(tmp_path, seed=1)
    section = versions_section(
        "pets",
        [first.manifest, second.manifest],
        reported="v1",
        current=store.current("pets"),
        damaged=["v0"],
    )
    (table,) = section.blocks
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["v1 (shown here)", "v2 (current)"]
    assert table.rows[1][5] == f"{second.manifest.n_parameters:,}"
    assert "v0: the manifest cannot be read." in section.lead
