"""What a report says of a version, and why it leaves out what it leaves out."""

from __future__ import annotations

import json
import shutil
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from glora_deploy.errors import DataError, MissingDependencyError, StoreError
from glora_deploy.report import WrittenReport, write_report
from glora_deploy.store.companions import COMPANION_RECORD, HISTORY
from glora_deploy.store.history import read_history
from glora_deploy.store.store import ArtifactStore

FIGURES = {
    "training-loss",
    "training-accuracy",
    "training-rate",
    "training-seconds",
    "search-progress",
    "search-sizes",
    "forms",
    "parameters",
    "confusion",
    "mistakes",
    "features-before",
    "features-after",
}


@pytest.fixture
def own_store(hostile_store: ArtifactStore, tmp_path: Path) -> ArtifactStore:
    """A copy that a test may change; it names the same images."""
    shutil.copytree(hostile_store.root, tmp_path / "artifacts")
    return ArtifactStore.open(tmp_path / "artifacts")


def without_images(store: ArtifactStore, tmp_path: Path) -> ArtifactStore:
    """The store as it comes out of a pack: it does not say where the images lie."""
    from glora_deploy.packs.pack import pack
    from glora_deploy.packs.unpack import unpack

    pack(store, [("colours", None)], tmp_path / "colours.tar")
    unpacked = ArtifactStore(tmp_path / "unpacked")
    unpack(unpacked, tmp_path / "colours.tar")
    return unpacked


def test_a_page_and_a_png_of_each_figure(hostile_report: WrittenReport) -> None:
    names = {path.name for path in hostile_report.folder.iterdir()}
    assert names == {"index.html", "report.json", *(f"{name}.png" for name in FIGURES)}
    assert hostile_report.left_out == ()
    for name in FIGURES:
        with Image.open(hostile_report.folder / f"{name}.png") as image:
            image.load()
            assert image.format == "PNG"
            assert image.width >= 500
    record = json.loads((hostile_report.folder / "report.json").read_bytes())
    assert (record["task"], record["version"]) == ("colours", "v1")


def test_the_page_has_the_numbers_of_manifest_history_and_answers(
    hostile_store: ArtifactStore, hostile_report: WrittenReport
) -> None:
    page = hostile_report.page.read_text("utf-8")
    artifact = hostile_store.get("colours", "v1")
    manifest = artifact.manifest
    history = read_history(hostile_store, artifact)
    assert history is not None
    assert history.search is not None
    first, last = history.stages[0].epochs[0], history.stages[0].epochs[-1]
    assert f"loss from {first.loss:.3f} in epoch 1 to {last.loss:.3f} in epoch 8" in page
    assert f"{sum(map(len, history.search.generations))} subnets in 3 generations" in page
    assert f"{manifest.n_parameters:,} parameters of the supports" in page
    assert manifest.adapter.sha256 in page
    accuracy = manifest.training.test_accuracy
    assert accuracy is not None
    assert f"{round(21 * accuracy)} of 21 images of the test split are answered right" in page
    assert "The training recorded" not in page  # it is the same accuracy now
    assert "v2" in page


def test_lora_has_no_search_and_the_page_says_so(
    hostile_store: ArtifactStore, tmp_path: Path
) -> None:
    written = write_report("colours", "v2", store=hostile_store.root, out=tmp_path / "out")
    assert written.left_out == (("Search", "This method trains one fixed subnet: no search."),)
    assert "Not shown: This method trains one fixed" in written.page.read_text("utf-8")
    assert not (written.folder / "search-progress.png").exists()


def test_without_images_the_page_says_where_they_must_be_given(
    hostile_store: ArtifactStore, tmp_path: Path
) -> None:
    store = without_images(hostile_store, tmp_path)
    written = write_report("colours", "v1", store=store.root, out=tmp_path / "out")
    titles = [title for title, _ in written.left_out]
    assert titles == ["Answers", "The surest mistakes", "Features before and after"]
    (why,) = {why for _, why in written.left_out}
    assert "does not say where its data (folder) lie. Give --data" in why
    page = written.page.read_text("utf-8")
    assert page.count("does not say where its data (folder) lie") == 3
    recorded = store.get("colours", "v1").manifest.training.test_accuracy
    assert recorded is not None
    assert f"<dd>{recorded:.1%}</dd><dd>as the training recorded it</dd>" in page
    assert {path.stem for path in written.folder.glob("*.png")} == FIGURES - {
        "confusion",
        "mistakes",
        "features-before",
        "features-after",
    }


def test_images_that_are_given_must_be_there(hostile_store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        write_report(
            "colours",
            store=hostile_store.root,
            out=tmp_path / "out",
            data=f"folder:{tmp_path / 'nowhere'}",
        )
    assert not (tmp_path / "out").exists()


def test_a_version_of_an_earlier_release_has_no_curves(
    own_store: ArtifactStore, tmp_path: Path
) -> None:
    folder = own_store.root / "colours" / "v1"
    for path in folder.iterdir():
        if path.name not in ("manifest.json", "adapter.safetensors"):
            path.unlink()
    store = without_images(own_store, tmp_path)
    written = write_report("colours", "v1", store=store.root, out=tmp_path / "out")
    assert dict(written.left_out)["Training"] == (
        "This version keeps no history; releases before histories wrote none."
    )
    assert dict(written.left_out)["Search"] == dict(written.left_out)["Training"]


def test_a_damaged_history_is_named_in_the_page(own_store: ArtifactStore, tmp_path: Path) -> None:
    path = own_store.root / "colours" / "v1" / HISTORY
    path.write_bytes(path.read_bytes()[:-9])
    written = write_report("colours", "v1", store=own_store.root, out=tmp_path / "out")
    why = dict(written.left_out)["Training"]
    assert HISTORY in why
    assert COMPANION_RECORD in why


def test_the_pictures_are_the_images_that_were_answered_wrong(
    hostile_report: WrittenReport, colour_images: Path
) -> None:
    import base64
    import re

    page = hostile_report.page.read_text("utf-8")
    shown = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    pixels = {Image.open(BytesIO(base64.b64decode(each))).tobytes() for each in shown}
    mislabelled = {
        Image.open(path).convert("RGB").tobytes()
        for path in sorted(colour_images.glob("test/*/*.png"))
        if int(path.stem) < 4
    }
    assert mislabelled <= pixels


@pytest.mark.parametrize("package", ["matplotlib", "jinja2", "sklearn"])
def test_a_missing_package_is_named_with_its_extra(
    hostile_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'glora-deploy\[report\]'"):
        write_report("colours", store=hostile_store.root, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_refused_before_anything_is_computed(
    hostile_store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    stages: list[str] = []
    with pytest.raises(StoreError, match=r"got notes\.txt\. Give another one"):
        write_report(
            "colours",
            store=hostile_store.root,
            out=tmp_path,
            report=lambda stage, done, total: stages.append(stage),
        )
    assert stages == []
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
