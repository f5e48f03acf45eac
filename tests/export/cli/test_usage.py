from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
import typer.main
from onnx.external_data_helper import uses_external_data
from typer.testing import CliRunner, Result

from glora_deploy.export.cli.commands import HUB, INT8, TRITON, TRT, app
from stored_tasks import make_stored_task

PANEL_OPTIONS = {
    ("--max-loss", "0.5"): "--quantize int8",
    ("--keep-float", "head"): "--quantize int8",
    ("--calibration-images", "9"): "--quantize int8",
    ("--int8-target", "vnni"): "--quantize int8",
    ("--batch", "1,2,4"): "--fmt trt or triton",
    ("--backend", "rtx"): "--fmt trt",
    ("--compute-capability", "8.9"): "--fmt trt",
    ("--hardware-compatibility", "ampere_plus"): "--fmt trt",
    ("--timing-cache", "timings"): "--fmt trt",
    ("--refit",): "--fmt trt",
    ("--strip",): "--fmt trt",
    ("--keep-versions", "2"): "--fmt triton",
    ("--private",): "--push",
    ("--license", "mit"): "--push",
}
OTHER_OPTIONS = {
    ("--single-file",): "--fmt onnx, trt or triton, or --quantize int8",
    ("--with-preprocessing",): "--fmt onnx",
    ("--revision", "main"): "--push",
    ("--token", "hf_any"): "--push",
}


TRITON_PLAN = ["--fmt", "triton", "--fmt", "trt", "--out", "models"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own for what is written by mistake under a relative or default name."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def message(result: Result) -> str:
    """The text of a usage error, out of its frame and on one line."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = (line.strip("│╭╮╰╯─ ") for line in result.stderr.splitlines())
    _, _, text = " ".join(filter(None, lines)).partition("Error ")
    return text


@pytest.mark.parametrize(
    ("before", "subcommand", "named"),
    [
        (["--store", "other"], ["verify", "--task", "pets"], "'--store': "),
        (["--quiet"], ["pull", "ann/pets"], "'--quiet': "),
        (["--task", "cats", "--precision", "fp16"], ["verify", "--task", "pets"], "'--task' / "),
    ],
)
def test_an_option_before_a_subcommand_is_refused_and_not_dropped(
    before: list[str], subcommand: list[str], named: str
) -> None:
    text = message(run(*before, *subcommand))
    assert f"Invalid value for {named}" in text
    assert f"must come after the subcommand, as in {subcommand[0]} {before[0]}" in text


def test_a_token_in_the_environment_is_no_option_before_a_subcommand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stored_task(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    assert run("--task", "pets", "--store", tmp_path, "--images", 1).exit_code == 0
    result = run("verify", "--task", "pets", "--store", tmp_path, "--images", 1)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--fmt", "trt", "--batch", "1,8"], "--batch: must be min,opt,max such as 1,8,32, got"),
        (["--fmt", "trt", "--batch", "a,b,c"], "--batch: must be min,opt,max such as 1,8,32, got"),
        (["--fmt", "trt", "--batch", "8,4,1"], "--batch: batch must be 1 <= min <= opt <= max"),
        (
            ["--fmt", "trt", "--compute-capability", "99"],
            "--compute-capability: compute capability must look like 8.6, got '99'",
        ),
        (["--quantize", "int8", "--precision", "fp16"], "--quantize: int8 is quantised from fp32"),
        (["--push", "user"], "--push: 'user': must be USER/NAME, got no user or organisation"),
        (["--push", "datasets/ann/pets"], "--push: datasets/ann/pets: must be a model repository"),
        (["--push", "ann/pets", "--task", "cats"], "--push: takes one --task at a time"),
        (["--fmt", "triton"], "--out: name the model repository"),
        ([*TRITON_PLAN, "--quantize", "int8"], "--quantize: Triton serves one model of a task"),
        ([*TRITON_PLAN, "--backend", "rtx"], "--backend: Triton loads no plan of rtx"),
        ([*TRITON_PLAN, "--strip"], "--strip: Triton cannot put the weights into a plan"),
        ([*TRITON_PLAN, "--batch", "2,4,8"], "--batch: must begin with 1 for --fmt triton"),
        ([*TRITON_PLAN, "--keep-versions", "0"], "'--keep-versions': "),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_usage_names_the_option_and_nothing_is_exported(
    tmp_path: Path, arguments: list[str], wrong: str
) -> None:
    _, artifact = make_stored_task(tmp_path / "store")
    result = run("--task", "pets", "--store", tmp_path / "store", *arguments)
    assert message(result).startswith(f"Invalid value for {wrong}")
    assert not (artifact.path / "exports").exists()


@pytest.mark.parametrize("fmt", ["onnx", "triton"])
@pytest.mark.parametrize("place", ["store", "store/models", "store/pets/v1/exports/fp32", "link/x"])
def test_a_copy_into_the_store_is_refused(tmp_path: Path, place: str, fmt: str) -> None:
    _, artifact = make_stored_task(tmp_path / "store")
    (tmp_path / "link").symlink_to("store")
    command = ["--task", "pets", "--store", tmp_path / "store", "--fmt", fmt, "--images", 1]
    text = message(run(*command, "--out", tmp_path / place))
    assert text.startswith("Invalid value for --out: must lie outside the artifact store")
    assert not (artifact.path / "exports").exists()


def test_preprocessing_alone_asks_for_no_model_whatever_triton_is_made_from(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path / "store")
    text = message(
        run(
            *("--task", "pets", "--store", store.root, "--fmt", "triton", "--out", tmp_path / "m"),
            "--with-preprocessing",
        )
    )
    assert text == "Invalid value for '--with-preprocessing': has no effect without --fmt onnx"
    assert not (artifact.path / "exports").exists()


def test_a_copy_beside_the_store_is_outside_it_however_alike_the_names(tmp_path: Path) -> None:
    make_stored_task(tmp_path / "store")
    out = tmp_path / "store.copies"
    result = run("--task", "pets", "--store", tmp_path / "store", "--images", 1, "--out", out)
    assert result.exit_code == 0, result.output
    assert (out / "model.safetensors").is_file()


def test_a_plan_that_triton_could_not_load_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="no tensorrt_rtx installed")
    if find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed, whose plans Triton loads")
    _, artifact = make_stored_task(tmp_path / "store")
    out = tmp_path / "models"
    result = run("--task", "pets", "--store", tmp_path / "store", *TRITON_PLAN[:-1], out)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "must be built by tensorrt for Triton's backend, got tensorrt_rtx" in result.stderr
    assert not (artifact.path / "exports").exists()
    assert not out.exists()


@pytest.mark.parametrize(("option", "needed"), (PANEL_OPTIONS | OTHER_OPTIONS).items())
def test_an_option_that_would_be_ignored_is_refused(option: tuple[str, ...], needed: str) -> None:
    text = message(run("--task", "pets", "--fmt", "merged", *option))
    assert text == f"Invalid value for '{option[0]}': has no effect without {needed}"


def test_every_option_of_a_library_is_refused_where_it_has_no_effect() -> None:
    parameters = typer.main.get_command(app).params
    panels = {
        parameter.opts[0]
        for parameter in parameters
        if getattr(parameter, "rich_help_panel", None) in (INT8, TRT, TRITON, HUB)
    }
    assert panels - {"--push", "--quantize"} == {option for option, *_ in PANEL_OPTIONS}


def test_options_of_a_plan_have_no_effect_on_an_onnx_model_in_a_triton_repository() -> None:
    text = message(run("--task", "pets", "--fmt", "triton", "--out", "x", "--refit", "--strip"))
    assert text == "Invalid value for '--refit' / '--strip': has no effect without --fmt trt"


@pytest.mark.parametrize(
    "arguments",
    [["--quantize", "int8", "--max-loss", "1"], ["--fmt", "trt"], ["--fmt", "triton"]],
    ids=lambda arguments: arguments[1],
)
def test_a_single_file_takes_the_place_of_an_external_model(
    tmp_path: Path, arguments: list[str]
) -> None:
    if "trt" in arguments:
        pytest.importorskip("tensorrt_rtx", reason="no tensorrt_rtx installed")
    _, artifact = make_stored_task(tmp_path / "store")
    command = ["--task", "pets", "--store", tmp_path / "store", "--images", 1]
    path = artifact.path / "exports/fp32/model.onnx"

    def reads_another_file() -> bool:
        weights = onnx.load(path, load_external_data=False).graph.initializer
        return any(uses_external_data(weight) for weight in weights)

    assert run(*command, "--fmt", "onnx").exit_code == 0
    assert reads_another_file()
    result = run(*command, *arguments, "--single-file", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert not reads_another_file()
    # Only what --fmt and --quantize name is copied.
    assert not (tmp_path / "out/model.onnx").exists()
