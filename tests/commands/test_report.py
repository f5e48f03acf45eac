from __future__ import annotations

from pathlib import Path

import pytest

from command_stores import run
from glora_deploy.store.store import ArtifactStore

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `report`)")
pytest.importorskip("jinja2", reason="jinja2 is not installed (extra `report`)")


def test_report_writes_a_folder_named_after_the_current_version(
    colour_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("report", "colours", "--store", colour_store.root)
    assert result.exit_code == 0, result.output
    assert result.stdout == "colours-v1-report/index.html\n"
    assert "colours/v1" in Path("colours-v1-report/index.html").read_text("utf-8")


def test_report_says_what_it_leaves_out_and_refuses_a_folder_of_others(tmp_path: Path) -> None:
    from command_stores import make_whole_store

    make_whole_store(tmp_path / "store", "pets")
    out = tmp_path / "out"
    result = run("report", "pets", "--store", tmp_path / "store", "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "left out Training: This version keeps no history" in result.stderr
    assert "left out Answers: " in result.stderr
    (out / "notes.txt").write_text("mine")
    result = run("report", "pets", "--store", tmp_path / "store", "--out", out)
    assert result.exit_code == 1
    assert "got notes.txt. Give another one" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["report"], "TASK"),
        (["report", "pets", "--split", "some"], "--split"),
        (["report", "pets", "--data", "nothing"], "--data"),
        (["report", "pets", "--device", "tpu"], "--device"),
    ],
)
def test_wrong_usage_of_report_is_2(arguments: list[str], named: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert named in result.stderr
