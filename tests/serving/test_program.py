"""The program: what it says, what it refuses, and that it serves a store without torch."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image
from typer.testing import CliRunner

from glora_deploy.serving.cli import app, read_token, to_bytes
from glora_deploy.serving.predictor import Predictor
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from server_program import running
from stored_tasks import make_stored_task

PROGRAM = [sys.executable, "-m", "glora_deploy.serving"]


def get(url: str, token: str = "") -> Any:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request) as response:
        return json.loads(response.read() or b"null")


def refusal(*arguments: str) -> str:
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if first := process.stdout.readline():
        process.kill()
    _, notes = process.communicate()
    assert first == ""
    assert process.returncode == 1
    (line,) = [line for line in notes.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_log_that_cannot_be_written_stops_nobody(trained: tuple[ArtifactStore, Artifact]) -> None:
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            [*PROGRAM, "--store", str(trained[0].root), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
        )
    assert process.stdout is not None
    url = process.stdout.readline().split()[0]
    for _ in range(3):
        assert get(f"{url}/v2")["name"] == "glora-deploy"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{url}/v2/nothing")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    process.stdout.close()


def test_it_serves_a_store_without_torch_and_leaves_in_order(
    trained: tuple[ArtifactStore, Artifact], tmp_path: Path
) -> None:
    store, artifact = trained
    picture = tmp_path / "red.png"
    Image.new("RGB", (40, 30), (220, 20, 30)).save(picture)
    with running("--store", str(store.root), "--threads", "1", "--log-format", "json") as found:
        process, first = found
        match = re.fullmatch(r"(http://127\.0\.0\.1:\d+) serves 1 task\n", first)
        assert match, first
        url = match[1]
        request = urllib.request.Request(
            f"{url}/v1/tasks/colours/predict", picture.read_bytes(), {"content-type": "image/png"}
        )
        with urllib.request.urlopen(request) as response:
            answer = json.loads(response.read())
        assert answer["delta_sha256"] == artifact.manifest.adapter.sha256
        expected = Predictor.from_store(store.root, "colours").predict(picture)
        top = [(one["label"], one["probability"]) for one in answer["predictions"][0]["top"]]
        assert top == [
            (one.label, pytest.approx(one.probability, abs=1e-5)) for one in expected.top
        ]
        assert get(f"{url}/v1/status")["in_memory"][0]["task"] == "colours"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert [line["method"] for line in lines if "method" in line] == ["predict", "status"]


def test_both_transports_answer_alike_and_leave_together(
    trained: tuple[ArtifactStore, Artifact],
) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with running("--store", str(trained[0].root), "--grpc-port", "0") as (process, first):
        match = re.fullmatch(r"http://(\S+) serves 1 task; gRPC at (127\.0\.0\.1:\d+)\n", first)
        assert match, first
        answers = []
        for module, address in zip((triton_http, triton_grpc), match.groups(), strict=True):
            tensor = module.InferInput("image", list(images.shape), "FP32")
            tensor.set_data_from_numpy(images)
            with module.InferenceServerClient(address) as client:
                answers.append(client.infer("colours", [tensor]).as_numpy("logits"))
        np.testing.assert_array_equal(*answers)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        notes = process.stderr.read()
    assert " http infer POST " in notes
    assert " grpc ModelInfer " in notes
    assert "Traceback" not in notes


def test_a_port_of_grpc_in_use_is_named(trained: tuple[ArtifactStore, Artifact]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refusal("--store", str(trained[0].root), "--port", "0", "--grpc-port", port)
    assert f"127.0.0.1:{port}: must be an address of this machine that is free" in line
    assert "Give another --grpc-port" in line


def test_tokens_come_from_a_file_or_the_environment(
    trained: tuple[ArtifactStore, Artifact], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("token-of-a-file\n")
    arguments = ("--store", str(trained[0].root), "--token-file", str(file), "--no-log-requests")
    with running(*arguments, env={"GLORA_MANAGEMENT_TOKEN": "management-token"}) as (_, first):
        url = first.split()[0]
        with pytest.raises(urllib.request.HTTPError, match="401"):
            get(f"{url}/v1/tasks")
        assert get(f"{url}/v1/tasks", "token-of-a-file")["tasks"][0]["task"] == "colours"
        load = urllib.request.Request(
            f"{url}/v2/repository/models/colours/load",
            b"",
            {"authorization": "Bearer management-token"},
        )
        with urllib.request.urlopen(load) as response:
            assert response.headers["glora-version"] == "v1"


def test_a_port_in_use_is_named(trained: tuple[ArtifactStore, Artifact]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal("--store", str(trained[0].root), "--port", str(port))
    assert f"127.0.0.1:{port}: must be an address of this machine that is free" in line
    assert "in use" in line


def test_ports_in_use_are_found_before_the_store_is_opened(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("--grpc-port", "--metrics-port"):
            line = refusal("--store", str(tmp_path / "none"), "--port", "0", option, str(port))
            assert f"127.0.0.1:{port}: must be" in line
            assert f"Give another {option}" in line


def test_an_address_of_another_machine_is_named() -> None:
    assert "Give another --host" in refusal("--host", "192.0.2.1", "--port", "0")


def test_an_empty_store_and_none_are_told_apart(tmp_path: Path) -> None:
    ArtifactStore.create(tmp_path / "empty")
    line = refusal("--store", str(tmp_path / "empty"), "--port", "0")
    assert "must hold a task to serve, it has none. Train one: glora train --task digits" in line
    assert "nowhere" in refusal("--store", str(tmp_path / "nowhere"), "--port", "0")


def test_a_store_whose_versions_are_all_refused_says_why(tmp_path: Path) -> None:
    make_stored_task(tmp_path / "artifacts", "pets")  # nobody has exported its graph
    line = refusal("--store", str(tmp_path / "artifacts"), "--port", "0")
    assert "must hold a version that can be served, got pets/v1 UNAVAILABLE" in line
    assert "must hold an ONNX graph" in line
    assert f"glora export --task pets --fmt onnx --store {tmp_path / 'artifacts'}" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory-budget", "lots"], "a size must be a number with a unit, such as 500MB"),
        (["--max-pixels", "999999999"], "max_pixels must be 1 to"),
        (["--max-queue", "2"], "max_queue must be at least 16"),
        (["--backend", "abacus"], "abacus"),
        (["--backend", "torch", "--precision", "bf16"], "--precision: precision must be fp32 with"),
        (["--backend", "tensorrt"], "--device: device must be cuda with tensorrt, got cpu"),
        (["--int8", "--backend", "torch"], "--int8: int8 must be served by onnxruntime"),
        (["--max-body", "0"], "--max-body: max_body_bytes must be at least 1"),
        (["--host", " "], "host must be an address or a name"),
        (["--port", "8000", "--grpc-port", "8000"], "must be a port of its own, got 8000"),
        (["--drain-s", "inf"], "--drain-s: drain_s must be 0 or more and finite"),
        (["--rate", "inf"], "--rate: rate_per_s must be above 0 and finite"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("token", ["short", "", "a token\nof two lines", "pass\u00e9partout"])
def test_a_weak_token_is_refused(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("GLORA_TOKEN", token)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 1
    assert "GLORA_TOKEN: must hold a token of 8 or more printable ASCII" in result.output
    assert not token or token not in result.output


def test_a_file_without_a_token_is_named(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"\xff\xfe\x00abcdefghijk")
    result = CliRunner().invoke(app, ["--management-token-file", str(file)])
    assert result.exit_code == 1
    assert f"{file}: must hold a token" in " ".join(result.output.split())


def test_no_option_takes_a_token_itself() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "--token-file" in text
    assert not re.search(r"--(management-)?token\s", text)


def test_help_loads_nothing_that_serves() -> None:
    heavy = ["fastapi", "uvicorn", "onnxruntime", "torch", "numba", "prometheus_client", "pydantic"]
    code = (
        "import sys\n"
        "from glora_deploy.serving.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('loaded', *sorted(set({heavy}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("10KB", 10_000), ("2 MiB", 2 << 20), ("1.5GiB", 3 << 29), ("1tb", 10**12)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert to_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 PB", "1e9", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size must be"):
        to_bytes(text)


def test_a_file_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "of-environment")
    (tmp_path / "token").write_text(" of-a-file\n")
    assert read_token(tmp_path / "token", "A_TOKEN") == "of-a-file"
    assert read_token(None, "A_TOKEN") == "of-environment"
    assert read_token(None, "NO_SUCH_TOKEN") is None
