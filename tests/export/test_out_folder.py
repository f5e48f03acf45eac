"""A folder of the user's holds one export, whole: what was there is replaced, or nothing is."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glora_deploy.errors import StoreError
from glora_deploy.export.out_folder import require_no_export, require_replaceable, write_out
from glora_deploy.parity import Report
from out_driver import NAMES, make_files


def version_in(out: Path) -> str:
    """Which export a folder holds; fails if it holds parts of two."""
    assert sorted(path.name for path in out.iterdir()) == sorted(NAMES)
    (found,) = {Report.from_json((out / name).read_bytes(), name).version for name in NAMES}
    return found


@pytest.fixture
def old(tmp_path: Path) -> dict[str, Path]:
    return make_files(tmp_path / "a", "old")


@pytest.fixture
def new(tmp_path: Path) -> dict[str, Path]:
    return make_files(tmp_path / "b", "new")


def test_an_earlier_export_is_replaced_whole(
    tmp_path: Path, old: dict[str, Path], new: dict[str, Path]
) -> None:
    out = tmp_path / "deep" / "out"
    assert write_out(old, out) == [out / name for name in NAMES]
    assert version_in(out) == "old"
    out.chmod(0o750)
    write_out(new, out)
    assert version_in(out) == "new"
    assert out.stat().st_mode & 0o777 == 0o750
    alone = {"parity.json": new["parity.json"]}
    write_out(alone, out)
    assert [path.name for path in out.iterdir()] == ["parity.json"]
    assert [path.name for path in out.parent.iterdir()] == ["out"], "no scratch is left"


def test_an_empty_folder_and_a_link_to_a_folder_are_taken(
    tmp_path: Path, old: dict[str, Path], new: dict[str, Path]
) -> None:
    (tmp_path / "out").mkdir()
    write_out(old, tmp_path / "out")
    (tmp_path / "link").symlink_to("out")
    write_out(new, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert version_in(tmp_path / "out") == "new"


@pytest.mark.parametrize(
    ("foreign", "got"),
    [
        ({"notes.txt": "mine"}, "notes.txt"),
        ({"notes.txt": "mine", "zebra": "", "yak": ""}, "notes.txt and 2 more"),
        ({"sub/model.onnx": "another's"}, "sub"),
        # Under one of our names, and without what an export leaves beside it.
        ({"model.onnx": "mine"}, "model.onnx without the parity.json of an export"),
        ({"parity.json": "{}"}, "parity.json without the parity.json of an export"),
        ({"model.onnx/1": "a folder of that name"}, "model.onnx"),
    ],
)
def test_a_folder_with_anything_else_is_refused_and_left_alone(
    tmp_path: Path, new: dict[str, Path], foreign: dict[str, str], got: str
) -> None:
    out = tmp_path / "out"
    for name, text in foreign.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    with pytest.raises(StoreError) as error:
        write_out(new, out)
    assert str(error.value) == (
        f"{out}: --out must hold one export and nothing else, since it is replaced whole, got "
        f"{got}. Give a new folder, or move what is in it away."
    )
    found = {str(p.relative_to(out)): p.read_text() for p in out.rglob("*") if p.is_file()}
    assert found == foreign


def test_what_is_put_beside_an_export_stops_the_next_one(
    tmp_path: Path, old: dict[str, Path], new: dict[str, Path]
) -> None:
    write_out(old, tmp_path / "out")
    (tmp_path / "out" / "labels.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"got labels\.txt\. Give a new folder"):
        write_out(new, tmp_path / "out")
    (tmp_path / "out" / "labels.txt").unlink()
    assert version_in(tmp_path / "out") == "old"


def test_a_folder_that_cannot_be_exchanged_is_refused_with_the_way_out(
    tmp_path: Path, new: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    way_out = f" Give one inside it, such as {out}/export."
    monkeypatch.chdir(out)
    with pytest.raises(StoreError, match=r"it is the current folder\. Give one inside it") as error:
        require_replaceable(Path())
    assert str(error.value).endswith("such as export.")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.path.ismount", lambda path: path == out)
        with pytest.raises(StoreError, match="it has a file system mounted on it") as error:
            require_replaceable(out)
        assert str(error.value).endswith(way_out)
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)
        with pytest.raises(StoreError, match="it lies in a folder that cannot be written"):
            require_replaceable(out)

    def busy(new: Path, place: Path) -> None:
        raise OSError(16, "Device or resource busy", str(place))

    monkeypatch.setattr("glora_deploy.export.out_folder.replace_folder", busy)
    with pytest.raises(StoreError, match="in use as a whole, as a mounted one is") as error:
        write_out(new, out)
    assert str(error.value).endswith(way_out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "out"]


def test_a_file_in_the_way_is_refused(tmp_path: Path, new: dict[str, Path]) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(StoreError, match="--out must be a folder, a file is in the way"):
            write_out(new, out)


def test_a_missing_source_leaves_the_folder_as_it_was(
    tmp_path: Path, old: dict[str, Path], new: dict[str, Path]
) -> None:
    write_out(old, tmp_path / "out")
    new["model.safetensors"].unlink()
    with pytest.raises(FileNotFoundError):
        write_out(new, tmp_path / "out")
    assert version_in(tmp_path / "out") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_a_process_that_dies_at_any_moment_leaves_the_old_export_or_the_new(
    tmp_path: Path,
) -> None:
    driver = Path(__file__).parent.parent / "out_driver.py"
    environment = {**os.environ, "PYTHONPATH": str(driver.parent)}
    command = [sys.executable, str(driver), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for kind, can_be_missing in (("exchange", False), ("renames", True)):
        roots = sorted((tmp_path / kind).glob("[0-9]*"))
        assert len(roots) > 10
        versions = [
            version_in(root / "out") if (root / "out").exists() else "missing" for root in roots
        ]
        assert versions[0] == "old"
        assert versions[-1] == "new"
        # Old until it is new; between two renames there is nothing, and never a mixture.
        seen = list(dict.fromkeys(versions))
        assert seen == ["old", "missing", "new"] if can_be_missing else seen == ["old", "new"]
        for root in roots:
            again = make_files(root / "again", "again")
            write_out(again, root / "out")
            assert version_in(root / "out") == "again"
            assert sorted(path.name for path in root.iterdir()) == ["again", "out"]


def test_many_exports_into_one_folder_at_once_leave_one_of_them(tmp_path: Path) -> None:
    sources = [make_files(tmp_path / "sources" / str(n), str(n)) for n in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda files: write_out(files, tmp_path / "out"), sources))
    assert version_in(tmp_path / "out") in map(str, range(12))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sources"]


def test_an_export_is_no_model_repository(tmp_path: Path, old: dict[str, Path]) -> None:
    require_no_export(tmp_path / "missing")
    require_no_export(tmp_path)
    write_out(old, tmp_path / "out")
    with pytest.raises(StoreError, match="must be a model repository, got an export that --out"):
        require_no_export(tmp_path / "out")
