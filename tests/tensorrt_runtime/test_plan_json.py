from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plan_files import make_plan_info

from glora_deploy.errors import ArtifactError, ExportError
from glora_deploy.store.export_record import MODEL_FILE, PLAN_FILE, SIDECAR_FILE, WEIGHTS_FILE
from glora_deploy.tensorrt_runtime.plan_json import read_plan_info, require_runnable

FILES = {PLAN_FILE: b"plan", MODEL_FILE: b"graph", WEIGHTS_FILE: b"weights"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / SIDECAR_FILE).write_bytes(make_plan_info().to_json())
    return tmp_path


def test_a_sidecar_is_read_as_it_was_written(folder: Path) -> None:
    assert read_plan_info(folder) == make_plan_info()


def test_the_graph_and_the_weights_need_not_be_there(folder: Path) -> None:
    (folder / MODEL_FILE).unlink()
    (folder / WEIGHTS_FILE).unlink()
    assert read_plan_info(folder) == make_plan_info()


@pytest.mark.parametrize("name", [PLAN_FILE, SIDECAR_FILE])
def test_a_missing_plan_or_sidecar_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: must be a file, none is here"):
        read_plan_info(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_export_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(FILES[name][::-1])
    with pytest.raises(ArtifactError, match=rf"{name}: sha256 is .* on disk, .* in plan.json"):
        read_plan_info(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "must be an object"),
        (make_plan_info().to_json().replace(b'"tf32"', b'"tf23"'), "tf32: must be present"),
        (make_plan_info().to_json().replace(b'"fp32"', b'"int4"'), "precision: .* got 'int4'"),
        (make_plan_info().to_json().replace(b": 1,", b": 2,", 1), "format_version"),
    ],
)
def test_a_damaged_sidecar_is_refused_with_its_field(
    folder: Path, content: bytes, message: str
) -> None:
    (folder / SIDECAR_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"plan\.json: .*{message}"):
        read_plan_info(folder)


@pytest.mark.parametrize(
    ("library", "version"), [("tensorrt_rtx", "1.7.1.117"), ("tensorrt", "1.7.1.116")]
)
def test_another_library_or_version_cannot_run_a_plan(library: Any, version: str) -> None:
    with pytest.raises(ExportError) as error:
        require_runnable(make_plan_info(), library=library, version=version, capability="8.6")
    assert str(error.value) == (
        "model.plan: must run with tensorrt_rtx 1.7.1.116, which built it, "
        f"got {library} {version}. Build the plan again here."
    )


def test_a_plan_does_not_run_without_a_gpu() -> None:
    with pytest.raises(ExportError, match="must run on a GPU, got none"):
        require_runnable(
            make_plan_info(), library="tensorrt_rtx", version="1.7.1.116", capability=None
        )


@pytest.mark.parametrize(
    ("targets", "compatibility", "capability", "runs"),
    [
        ((), None, "8.0", True),
        ((), None, "12.0", True),
        ((), None, "7.5", False),
        (("8.6", "12.0"), None, "12.0", True),
        (("8.6", "12.0"), None, "8.9", False),
        (("8.6",), "ampere_plus", "9.0", True),
        (("8.6",), "ampere_plus", "7.5", False),
        (("8.6",), "same_compute_capability", "8.6", True),
        (("8.6",), "same_compute_capability", "8.9", False),
    ],
)
def test_a_plan_runs_on_the_gpus_it_was_built_for(
    targets: tuple[str, ...], compatibility: str | None, capability: str, runs: bool
) -> None:
    info = make_plan_info(compute_capabilities=targets, hardware_compatibility=compatibility)
    if runs:
        require_runnable(info, library=info.library, version=info.version, capability=capability)
    else:
        with pytest.raises(ExportError, match=rf"compute capability 8\..*, got {capability}"):
            require_runnable(
                info, library=info.library, version=info.version, capability=capability
            )
