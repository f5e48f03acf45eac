from __future__ import annotations

import json
from pathlib import Path

from command_stores import make_listed_store, run


def test_show_prints_the_manifest_as_it_is_stored(tmp_path: Path) -> None:
    store = make_listed_store(tmp_path)
    result = run("show", "pets", "v1", "--store", tmp_path)
    assert json.loads(result.output)["version"] == "v1"
    assert result.output.encode() == (tmp_path / "pets/v1/manifest.json").read_bytes()
    assert store.current("pets") == "v2"
