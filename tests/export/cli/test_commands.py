from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner, Result

from glora_deploy.export.cli.commands import app
from glora_deploy.export.int8.report import QuantizeReport
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.triton_repository.config_pbtxt import HEADER
from glora_deploy.machine import Machine
from glora_deploy.parity import Report
from stored_tasks import make_backbone, make_overflowing_backbone, make_stored_task


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def listing(root: Path) -> list[tuple[str, bytes]]:
    files = (path for path in root.rglob("*") if path.is_file())
    return sorted((str(path.relative_to(root)), path.read_bytes()) for path in files)


def test_help_shows_worked_examples() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert " --task digits --fmt onnx # merge, prove, write model.onnx" in result.output


def test_an_export_prints_its_parity_and_where_the_files_lie(tmp_path: Path) -> None:
    _, artifact = make_stored_task(tmp_path / "store")
    out = tmp_path / "out"
    result = run(
        "--task", "pets", "--fmt", "onnx", "--store", tmp_path / "store",
        "--images", 3, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "onnx-fp32" in result.output
    assert str(artifact.path / "exports" / "fp32") in result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "export.json",
        "model.onnx",
        "model.safetensors",
        "parity.json",
    ]


def test_a_model_with_preprocessing_is_proven_shown_and_copied(tmp_path: Path) -> None:
    make_stored_task(tmp_path / "store", data="digits")
    out = tmp_path / "out"
    arguments = ["--task", "pets", "--store", tmp_path / "store", "--images", 3]
    result = run(*arguments, "--fmt", "onnx", "--with-preprocessing", "--out", out)
    assert result.exit_code == 0, result.output
    assert re.search(r"pixels-fp32 +12 +pass", result.stdout)
    for inputs in ("3 test images of digits", "noise of awkward sizes"):
        line = (
            f"pixels-fp32 on {inputs}: 0.00% of the pixels differ from Pillow's, by up to 0 of 255"
        )
        assert line in result.stdout
    assert {path.name for path in out.iterdir()} == {
        "export.json",
        "model.onnx",
        "model.pixels.onnx",
        "model.safetensors",
        "parity.json",
    }
    verified = run("verify", *arguments)
    assert verified.exit_code == 0, verified.output
    assert "pixels-fp32 on 3 test images of digits" in verified.stdout


def copy_out(store: Path, out: Path, *arguments: str) -> list[str]:
    """Export into a folder; the names there then."""
    result = run("--task", "pets", "--store", store, "--images", 1, "--out", out, *arguments)
    assert result.exit_code == 0, result.output
    return sorted(path.name for path in out.iterdir() if path.name != "export.json")


def answers_of(out: Path, version: str, precision: str = "fp32") -> bool:
    """Whether the graph in a folder loads, and says and proves what version it is."""
    graph = onnx.load(out / "model.onnx", load_external_data=False)
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    report = Report.from_json((out / "parity.json").read_bytes(), "parity.json")
    OnnxSession(out / "model.onnx").logits(np.zeros((1, 3, 32, 32), np.float32))
    stated = {(metadata["version"], metadata["precision"]), (report.version, report.precision)}
    return stated == {(version, precision)}


def test_a_folder_holds_one_export_whatever_was_copied_there_before(tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    make_stored_task(store, seed=0)
    make_stored_task(store, seed=1)
    make_stored_task(store, seed=2, labels=("ant", "bee"))  # v3, of fewer classes
    both = ["model.onnx", "model.safetensors", "parity.json"]
    assert copy_out(store, out, "--version", "v1", "--fmt", "onnx") == both
    merged = copy_out(store, out, "--version", "v2", "--fmt", "merged")
    # No model.onnx that says v1 and answers with the weights of v2.
    assert merged == ["config.json", "model.safetensors", "parity.json"]
    assert copy_out(store, out, "--version", "v3", "--fmt", "onnx") == both
    assert answers_of(out, "v3")
    assert copy_out(store, out, "--version", "v1", "--fmt", "onnx", "--precision", "fp16") == both
    assert answers_of(out, "v1", "fp16")
    single = copy_out(store, out, "--version", "v2", "--fmt", "onnx", "--single-file")
    assert single == ["model.onnx", "parity.json"]
    assert answers_of(out, "v2")


def test_a_folder_that_holds_anything_else_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    _, artifact = make_stored_task(tmp_path / "store")
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    result = run("--task", "pets", "--store", tmp_path / "store", "--fmt", "onnx", "--out", out)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {out}: --out must hold one export and nothing else, since it is replaced whole, "
        "got thesis.tex. Give a new folder, or move what is in it away.\n"
    )
    assert not (artifact.path / "exports").exists()
    assert listing(out) == [("thesis.tex", b"mine")]


def test_an_export_and_a_model_repository_do_not_share_a_folder(tmp_path: Path) -> None:
    store, out, models = (tmp_path / name for name in ("store", "out", "models"))
    make_stored_task(store)
    copy_out(store, out, "--fmt", "onnx")
    before = listing(out)
    triton = ("--task", "pets", "--store", store, "--images", 1, "--fmt", "triton", "--out")
    result = run(*triton, out)
    assert result.exit_code == 1
    assert f"{out}: must be a model repository, got an export that --out wrote." in result.stderr
    assert listing(out) == before
    assert run(*triton, models).exit_code == 0
    before = listing(models)
    result = run("--task", "pets", "--store", store, "--out", models)
    assert result.exit_code == 1
    assert f"{models}: --out must hold one export and nothing else" in result.stderr
    assert listing(models) == before


def test_the_bytes_of_a_delta_stand_beside_those_it_stands_for(tmp_path: Path) -> None:
    _, artifact = make_stored_task(tmp_path)
    result = run(
        "--task", "pets", "--fmt", "delta", "--precision", "fp16", "--store", tmp_path,
        "--images", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    folder = artifact.path / "exports" / "fp16"
    delta = (folder / "delta" / "adapter.safetensors").stat().st_size / 1e6
    merged = (folder / "model.safetensors").stat().st_size / 1e6
    expected = f"delta: {delta:.2f} MB in fp16, {delta / merged:.1%} of the {merged:.2f} MB"
    assert expected in result.output


def test_a_failing_parity_check_exits_with_one_and_one_line(tmp_path: Path) -> None:
    make_stored_task(tmp_path)
    result = run("--task", "pets", "--store", tmp_path, "--images", 2, "--max-error", 0)
    assert result.exit_code == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: pets/v1 fp32: ")
    assert last.endswith("The export is marked unusable.")


def test_weights_alone_that_overflow_in_fp16_are_told_of_the_onnx_model(tmp_path: Path) -> None:
    make_stored_task(tmp_path, backbone=make_overflowing_backbone(), kinds=["linear"])
    arguments = ["--task", "pets", "--precision", "fp16", "--store", tmp_path, "--images", 2]
    alone = run(*arguments)
    assert alone.exit_code == 1
    assert "logits are not finite" in alone.stderr
    assert "keeps in fp32 what fp16 cannot hold; add --fmt onnx" in alone.stderr
    both = run(*arguments, "--fmt", "onnx")
    assert both.exit_code == 0, both.output
    assert "kept in fp32: blocks.1.mlp" in both.stdout


def test_every_task_is_tried_and_one_failure_fails_the_run(tmp_path: Path) -> None:
    store, _ = make_stored_task(tmp_path)
    result = run("--task", "nope", "--task", "pets", "--store", tmp_path, "--images", 1)
    assert result.exit_code == 1
    assert "error: no task 'nope'" in result.stderr
    assert store.export_dir(store.get("pets"), "fp32").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "cats"], "no task 'cats' in {store}; tasks here: pets"),
        (["--task", "pets", "--version", "v9"], "no version 'v9' of task 'pets'"),
        (["--task", "pets", "--checkpoint", "random:1"], "the delta was trained on random:0"),
        (["--task", "pets", "--checkpoint", "no.npz"], "no.npz: the checkpoint must be a file"),
    ],
)
def test_what_the_user_got_wrong_is_said_on_one_line_and_the_store_stays(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    make_stored_task(tmp_path)
    before = listing(tmp_path)
    result = run(*arguments, "--store", tmp_path)
    assert result.exit_code == 1, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert message.format(store=tmp_path) in result.stderr
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "vit_tinny"], "for --backbone: backbone 'vit_tinny' must be demo-vit"),
        (["--checkpoint", "random:abc"], "for --checkpoint: checkpoint random:SEED must have a"),
    ],
)
def test_a_backbone_that_can_be_none_is_wrong_usage(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    make_stored_task(tmp_path)
    before = listing(tmp_path)
    result = run("--task", "pets", *arguments, "--store", tmp_path)
    assert result.exit_code == 2, result.output
    assert message in " ".join(line.strip("│ ") for line in result.stderr.splitlines())
    assert listing(tmp_path) == before


@pytest.mark.parametrize("damage", ["truncate", "flip", "nan"])
def test_a_damaged_delta_is_named_and_nothing_is_exported(tmp_path: Path, damage: str) -> None:
    _, artifact = make_stored_task(tmp_path)
    path = artifact.path / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    match damage:
        case "truncate":
            data = data[: len(data) // 2]
        case "flip":
            data[len(data) // 2] ^= 1
        case "nan":
            data[-4:] = b"\x00\x00\xc0\x7f"
    path.write_bytes(data)
    result = run("--task", "pets", "--store", tmp_path)
    assert result.exit_code == 1
    assert "adapter.safetensors" in result.stderr
    assert "on disk" in result.stderr
    assert not (artifact.path / "exports").exists()


def test_a_store_that_is_missing_or_a_file_is_named(tmp_path: Path) -> None:
    missing = run("--task", "pets", "--store", tmp_path / "nowhere")
    assert missing.exit_code == 1
    assert "nowhere: the store must be a folder" in missing.stderr
    (tmp_path / "file").write_text("x")
    in_the_way = run("--task", "pets", "--store", tmp_path / "file")
    assert in_the_way.exit_code == 1
    assert "the store must be a folder, got a file" in in_the_way.stderr


def test_a_file_where_the_output_folder_should_be_is_named(tmp_path: Path) -> None:
    make_stored_task(tmp_path / "store")
    (tmp_path / "out").write_text("x")
    result = run(
        "--task", "pets", "--store", tmp_path / "store", "--images", 1, "--out", tmp_path / "out"
    )
    assert result.exit_code == 1
    assert "--out must be a folder, a file is in the way" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["--task", "pets", "--fmt", "tflite"], ["--precision", "fp8"], ["--store", "x"]]
)
def test_usage_errors_exit_with_two(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_verify_checks_files_and_measures_again(tmp_path: Path) -> None:
    _, artifact = make_stored_task(tmp_path)
    assert run("--task", "pets", "--store", tmp_path, "--images", 1).exit_code == 0
    result = run("verify", "--task", "pets", "--store", tmp_path, "--images", 2)
    assert result.exit_code == 0, result.output
    assert "supernet-fp32" in result.output
    (artifact.path / "exports/fp32/config.json").write_text("{}")
    result = run("verify", "--task", "pets", "--store", tmp_path)
    assert result.exit_code == 1
    assert "config.json" in result.stderr


def test_a_plan_is_built_beside_its_graph_and_skipped_by_name_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="no tensorrt_rtx installed")
    _, artifact = make_stored_task(tmp_path)
    result = run("--task", "pets", "--fmt", "trt", "--store", tmp_path, "--images", 1)
    assert result.exit_code == 0, result.output
    folder = artifact.path / "exports/fp32"
    assert {"model.onnx", "model.plan", "plan.json"} <= {path.name for path in folder.iterdir()}
    if not torch.cuda.is_available():
        assert "trt-fp32 skipped: no GPU here" in result.output


def test_several_tasks_go_into_one_triton_repository(tmp_path: Path) -> None:
    store, _ = make_stored_task(tmp_path / "store", "cats")
    make_stored_task(tmp_path / "store", "pets", seed=1)
    out = tmp_path / "models"
    result = run(
        "--task", "cats", "--task", "pets", "--fmt", "triton", "--store", store.root,
        "--images", 1, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir() if path.is_dir() and path.name[0] != ".") == [
        "cats",
        "pets",
    ]
    assert (out / "pets/1/model.onnx/model.safetensors").is_file()


def test_a_model_folder_with_files_of_the_users_is_refused_before_any_work(tmp_path: Path) -> None:
    _, artifact = make_stored_task(tmp_path / "store")
    mine = tmp_path / "models/pets/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (mine.parent / "config.pbtxt").write_text(HEADER)
    result = run(
        "--task", "pets", "--fmt", "triton", "--store", tmp_path / "store", "--out",
        tmp_path / "models",
    )  # fmt: skip
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {mine.parent}: must hold one model and nothing else, since it is replaced whole, "
        "got mine.txt. Move what is not the model's away.\n"
    )
    assert not (artifact.path / "exports").exists()
    assert mine.read_text() == "mine"


def test_triton_serves_the_quantised_model_if_that_is_asked_for(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path / "store")
    out = tmp_path / "models"
    result = run(
        "--task", "pets", "--fmt", "triton", "--quantize", "int8", "--max-loss", 1,
        "--store", store.root, "--images", 1, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    quantised = artifact.path / "exports/fp32/model.int8.onnx"
    assert (out / "pets/1/model.onnx").read_bytes() == quantised.read_bytes()
    assert "KIND_CPU" in (out / "pets/config.pbtxt").read_text()


def test_as_many_versions_as_asked_for_stay_in_the_triton_repository(tmp_path: Path) -> None:
    out = tmp_path / "models"
    for seed, kept in ((0, ["1"]), (1, ["1", "2"]), (2, ["2", "3"])):
        make_stored_task(tmp_path / "store", seed=seed)
        result = run(
            "--task", "pets", "--fmt", "triton", "--keep-versions", 2,
            "--store", tmp_path / "store", "--images", 1, "--out", out,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        names = (path.name for path in (out / "pets").iterdir())
        assert sorted(name for name in names if name.isdecimal()) == kept
    assert "num_versions: 2" in (out / "pets/config.pbtxt").read_text()


def test_quantising_is_measured(tmp_path: Path) -> None:
    _, artifact = make_stored_task(tmp_path)
    arguments = ["--task", "pets", "--store", tmp_path, "--images", 1, "--quantize", "int8"]
    result = run(*arguments, "--max-loss", 1)
    assert result.exit_code == 0, result.output
    assert "times as fast at batch 8" in result.output
    assert (artifact.path / "exports/fp32/model.int8.onnx").is_file()
    report = QuantizeReport.read(artifact.path / "exports/fp32")
    assert (report.n_calibration, report.target) == (128, "any")


def test_verify_shows_both_machines_where_the_other_computes_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stored_task(tmp_path)
    arguments = ["--task", "pets", "--store", tmp_path, "--images", 1]
    here = Machine.here()
    other = here.model_copy(update={"cpu": "Old CPU", "instruction_sets": ("avx2",)})
    with monkeypatch.context() as patch:
        patch.setattr(Machine, "here", classmethod(lambda cls: other))
        made = run(*arguments, "--fmt", "onnx", "--quantize", "int8", "--max-loss", 1)
    assert made.exit_code == 0, made.output
    assert "measured on Old CPU (avx2)\n" in made.output
    assert "proven before" not in made.output
    result = run("verify", *arguments)
    assert result.exit_code == 0, result.output
    assert f"measured on {here}\n" in result.output
    before = result.output.partition("proven before on Old CPU (avx2), which computes otherwise:")
    for stage in ("supernet-fp32", "onnx-fp32", "int8"):
        assert re.search(rf"^{stage}: \S+ of the spread there, \S+ here$", before[2], re.MULTILINE)
    assert "there int8 for any CPU, against onnx-fp32: " in before[2]
    # The reports are now those of this machine, of which there is nothing more to say.
    assert "proven before" not in run("verify", *arguments).output


def test_a_file_for_other_cpus_is_named_where_its_products_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stored_task(tmp_path)
    monkeypatch.setattr("glora_deploy.export.int8.quantize.multiplies_exactly", lambda: False)
    arguments = ["--task", "pets", "--store", tmp_path, "--images", 1, "--quantize", "int8"]
    result = run(*arguments, "--max-loss", 1, "--int8-target", "vnni")
    assert result.exit_code == 0, result.output
    assert "int8 for CPUs with vnni, against onnx-fp32: " in result.output
    assert f"int8 for vnni: {Machine.here()} saturates its 8-bit products." in result.output
    result = run(*arguments, "--max-loss", 1)
    assert "saturates" not in result.output


def test_how_to_quantise_reaches_the_quantiser(tmp_path: Path) -> None:
    _, artifact = make_stored_task(tmp_path)
    result = run(
        "--task", "pets", "--store", tmp_path, "--images", 1, "--quantize", "int8",
        "--max-loss", 1, "--keep-float", "blocks.*.mlp.fc2", "--keep-float", "blocks.0.attn.proj",
        "--calibration-images", 9, "--int8-target", "vnni",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = QuantizeReport.read(artifact.path / "exports/fp32")
    assert (report.n_calibration, report.target, report.max_loss) == (9, "vnni", 1)
    kept = {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2", "blocks.0.attn.proj"}
    assert set(report.kept_float) == {"patch_embed.proj", "head", *kept}


def test_one_self_contained_model_is_built_into_a_plan_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="no tensorrt_rtx installed")
    _, artifact = make_stored_task(tmp_path)
    result = run("--task", "pets", "--fmt", "trt", "--single-file", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    assert (artifact.path / "exports/fp32/model.plan").is_file()


NOISY = """
import logging, warnings
from glora_deploy.export.onnx_model import trace
from glora_deploy.export.cli.commands import main

optimize = trace.optimize_ir

def speak_and_optimize(model):
    print("a print")
    warnings.warn("a warning")
    logging.getLogger("onnxscript").warning("a record")
    return optimize(model)

trace.optimize_ir = speak_and_optimize
main()
"""


def test_a_quiet_export_says_nothing_at_all_whatever_its_libraries_say(tmp_path: Path) -> None:
    """In a program of its own: pytest sets up logging, and so changes what is heard."""
    # Its graph holds a Split, of which the optimizer may say that it does not fold it.
    backbone = make_backbone("eva02_tiny_patch14_224", input_size=28, depth=1)
    make_stored_task(tmp_path, backbone=backbone)
    command = [
        sys.executable, "-c", NOISY, "--task", "pets", "--store", str(tmp_path),
        "--images", "1", "--fmt", "onnx", "--quantize", "int8", "--max-loss", "1",
    ]  # fmt: skip
    loud = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "a print" in loud.stdout
    assert "a warning" in loud.stderr
    assert "a record" in loud.stderr
    shutil.rmtree(tmp_path / ".skeletons")
    quiet = subprocess.run([*command, "-q"], capture_output=True, text=True, check=True)
    assert (quiet.stdout, quiet.stderr) == ("", "")
