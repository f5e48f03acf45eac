"""The same calls to a real Triton server and to ours: what differs is listed, and why.

Both serve one store: Triton the repository that was exported from it, ours the store itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.grpc import service_pb2_grpc
from typer.testing import CliRunner

import calls_grpc
import calls_http
from answer_diff import ATOL, differing
from glora_deploy.export.cli.commands import app
from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.settings import ServerSettings
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from grpc_server import serving_grpc
from http_server import serving
from stored_tasks import make_stored_task
from triton_differences import DIFFERENCES
from triton_server import needs_triton, triton_server

pytestmark = needs_triton

PROVENANCE = {
    "task", "version", "delta_sha256", "queue_ns", "swap_ns", "compute_ns", "batch_size",
}  # fmt: skip
"""Of every answer of ours, and of none of Triton's."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Triton and ours, over HTTP and gRPC."""

    triton_http: str
    triton_grpc: str
    our_http: str
    our_grpc: str


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    root = tmp_path_factory.mktemp("oracle")
    store, repository, folder = root / "store", root / "repository", root / "server"
    folder.mkdir()
    make_stored_task(store, "pets", seed=1)
    make_stored_task(store, "cars", seed=2, labels=("red", "green", "blue"))
    export(store, repository, "--task", "pets", "--task", "cars")
    make_stored_task(store, "pets", seed=3)
    export(store, repository, "--task", "pets", "--keep-versions", "2")
    settings = ServerSettings(tokens=Tokens(management="changing-token"))
    with (
        triton_server(repository, folder) as triton,
        StoreEngine(store, EngineSettings(max_batch=32, threads=1)) as engine,
        serving(build_app(engine, settings)) as ours,
        serving_grpc(engine, settings) as ours_over_grpc,
        triton_http.InferenceServerClient(triton.http) as client,
    ):
        for task in ("pets", "cars"):
            client.load_model(task)
        yield Servers(triton.http, triton.grpc, ours.address, ours_over_grpc.address)


def export(store: Path, repository: Path, *arguments: str) -> None:
    places = ["--store", str(store), "--out", str(repository)]
    done = CliRunner().invoke(app, ["--fmt", "triton", "--images", "1", *places, *arguments])
    assert done.exit_code == 0, done.output


def explained(
    differences: Mapping[str, list[str]], group: str, transport: str
) -> tuple[list[str], list[str]]:
    """What no row of the table explains, and the rows' patterns that nothing needed."""
    unexplained: list[str] = []
    needed: set[tuple[int, str]] = set()
    for name, paths in differences.items():
        for path in paths:
            rows = {
                (row, pattern)
                for row, one in enumerate(DIFFERENCES)
                for pattern in getattr(one, transport)
                if fnmatchcase(f"{group}/{name}", pattern)
                and any(fnmatchcase(path, each) for each in one.paths)
            }
            needed |= rows
            if not rows:
                unexplained.append(f"{group}/{name}: {path}")
    idle = [
        f"{one.triton}: {pattern}"
        for row, one in enumerate(DIFFERENCES)
        for pattern in getattr(one, transport)
        if pattern.startswith(f"{group}/") and (row, pattern) not in needed
    ]
    return unexplained, idle


@pytest.mark.parametrize("group", list(calls_http.cases()))
def test_http_answers_as_triton_but_for_what_is_listed(servers: Servers, group: str) -> None:
    differences = {}
    for name, call in calls_http.cases()[group].items():
        theirs, _ = calls_http.answer_of(servers.triton_http, call)
        if name.startswith("unload"):
            wait_until_unloaded(servers)
        ours, headers = calls_http.answer_of(servers.our_http, call)
        check_ours(ours, headers)
        differences[name] = differing(comparable(theirs), comparable(ours), "status")
    assert explained(differences, group, "http") == ([], [])


@pytest.mark.parametrize("group", list(calls_grpc.cases()))
def test_grpc_answers_as_triton_but_for_what_is_listed(servers: Servers, group: str) -> None:
    differences = {}
    with (
        grpc.insecure_channel(servers.triton_grpc) as theirs,
        grpc.insecure_channel(servers.our_grpc) as ours,
    ):
        stubs = [service_pb2_grpc.GRPCInferenceServiceStub(one) for one in (theirs, ours)]
        for name, call in calls_grpc.cases()[group].items():
            their_answer = calls_grpc.answer_of(stubs[0], call)
            if name.startswith("unload"):
                wait_until_unloaded(servers)
            our_answer = calls_grpc.answer_of(stubs[1], call)
            for message in our_answer.get("messages", ()):
                remove_provenance(message.get("infer_response", message))
            differences[name] = differing(comparable(their_answer), comparable(our_answer), "code")
    assert explained(differences, group, "grpc") == ([], [])


def wait_until_unloaded(servers: Servers) -> None:
    """Triton answers an unload before it is done."""
    with triton_http.InferenceServerClient(servers.triton_http) as client:
        while any(one.get("state") == "UNLOADING" for one in client.get_model_repository_index()):
            pass


def check_ours(answer: dict[str, Any], headers: Mapping[str, str]) -> None:
    """What every answer of ours has and no answer of Triton's; it is taken out."""
    record = answer["json"]
    if answer["status"] != 200:
        assert headers["content-type"] == "application/json"
        assert record["error"]
    elif isinstance(record, dict) and "model_name" in record:
        parameters = remove_provenance(record)
        assert headers["glora-delta"] == parameters["delta_sha256"]
        assert headers["glora-version"] == parameters["version"]


def remove_provenance(record: dict[str, Any]) -> dict[str, Any]:
    """Take from an inference's answer which delta computed it, and how long that took."""
    parameters: dict[str, Any] = record.get("parameters", {})
    if "model_name" not in record or not record["model_name"]:
        return {}
    taken = {key: parameters.pop(key) for key in PROVENANCE}
    if not parameters and not isinstance(taken["task"], dict):  # protobuf always has the field
        del record["parameters"]
    return taken


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what can never be equal: the text of errors, counts and times of statistics."""
    record = answer.get("json")
    if isinstance(record, dict) and "error" in record:
        assert isinstance(record["error"], str)
        assert record["error"]
        return answer | {"json": "an error", "content-type": None}
    if isinstance(record, dict) and "model_stats" in record:
        return answer | {"json": _without_counts(record)}
    messages = answer.get("messages", ())
    if any("model_stats" in message for message in messages):
        return answer | {"messages": [_without_counts(message) for message in messages]}
    for message in messages:
        if message.get("error_message"):
            message["error_message"] = "an error"
    return answer


def _without_counts(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {inner: _without_counts(one, inner) for inner, one in value.items()}
    if isinstance(value, list):
        kept = value[:1] if key == "batch_stats" else value
        return [_without_counts(one, key) for one in kept]
    return value if key in ("name", "version") else type(value).__name__


def test_a_rollback_is_one_load_on_either_and_so_is_the_way_back(servers: Servers) -> None:
    """Triton is told by a configuration, ours by the version."""
    tokens = {"authorization": "Bearer changing-token"}
    with (
        triton_http.InferenceServerClient(servers.triton_http) as theirs,
        triton_http.InferenceServerClient(servers.our_http) as ours,
    ):
        both = (theirs, ours)
        newest = [answered(client) for client in both]
        config = theirs.get_model_config("pets")
        only_1 = {**config, "version_policy": {"specific": {"versions": [1]}}}
        theirs.load_model("pets", config=json.dumps(only_1))
        ours.load_model("pets", headers=tokens, query_params={"version": "1"})
        older = [answered(client) for client in both]
        theirs.load_model("pets", config=json.dumps(config))
        ours.load_model("pets", headers=tokens, query_params={"version": "2"})
        again = [answered(client) for client in both]
    assert [number for number, _ in (*newest, *older, *again)] == ["2", "2", "1", "1", "2", "2"]
    for one, other in (newest, older, again):
        np.testing.assert_allclose(one[1], other[1], rtol=0, atol=ATOL)
    assert np.abs(newest[0][1] - older[0][1]).max() > 1000 * ATOL


def answered(client: Any) -> tuple[str, np.ndarray]:
    """The number of the version that answers where none is named, and its logits."""
    answer = client.infer("pets", [http_input(calls_http.IMAGES)])
    return answer.get_response()["model_version"], answer.as_numpy("logits")


def test_statistics_count_the_same_requests(servers: Servers) -> None:
    def counts(client: Any) -> list[int]:
        (one,) = client.get_inference_statistics("pets", "2")["model_stats"]
        sums = one["inference_stats"]
        counted = [sums[name]["count"] for name in ("success", "fail", "queue", "compute_infer")]
        return [one["inference_count"], one["execution_count"], *counted]

    grown = []
    for address in (servers.triton_http, servers.our_http):
        with triton_http.InferenceServerClient(address) as client:
            before = counts(client)
            for n in (1, 2, 2):
                client.infer("pets", [http_input(calls_http.IMAGES[:n])])
            with pytest.raises(triton_http.InferenceServerException):
                client.infer("pets", [http_input(calls_http.IMAGES[:, :, :, 1:])])
            grown.append([after - b for after, b in zip(counts(client), before, strict=True)])
    assert grown == [[5, 3, 3, 0, 3, 3]] * 2


def http_input(values: np.ndarray) -> triton_http.InferInput:
    made = triton_http.InferInput("image", list(values.shape), "FP32")
    made.set_data_from_numpy(np.ascontiguousarray(values))
    return made


def grpc_input(values: np.ndarray) -> triton_grpc.InferInput:
    made = triton_grpc.InferInput("image", list(values.shape), "FP32")
    made.set_data_from_numpy(np.ascontiguousarray(values))
    return made


def test_the_stock_clients_get_the_same_from_both(servers: Servers) -> None:
    """Of HTTP and gRPC, sync and asyncio: logits, and classes of either version."""

    async def later(module: Any, made: Any, address: str) -> list[Any]:
        async with module.InferenceServerClient(address) as client:
            logits = await client.infer("pets", [made(calls_http.IMAGES)])
            return [logits.as_numpy("logits")]

    def now(module: Any, made: Any, address: str) -> list[Any]:
        found = []
        with module.InferenceServerClient(address) as client:
            for version in ("", "1"):
                logits = client.infer("pets", [made(calls_http.IMAGES)], model_version=version)
                found.append(logits.as_numpy("logits"))
                asked = [module.InferRequestedOutput("logits", class_count=2)]
                classes = client.infer(
                    "pets", [made(calls_http.IMAGES)], outputs=asked, model_version=version
                ).as_numpy("logits")
                found.append([one.decode().split(":", 1)[1] for one in classes.reshape(-1)])
        return found

    def everything(http_address: str, grpc_address: str) -> list[Any]:
        return [
            *now(triton_http, http_input, http_address),
            *now(triton_grpc, grpc_input, grpc_address),
            *asyncio.run(later(triton_http_aio, http_input, http_address)),
            *asyncio.run(later(triton_grpc_aio, grpc_input, grpc_address)),
        ]

    theirs = everything(servers.triton_http, servers.triton_grpc)
    ours = everything(servers.our_http, servers.our_grpc)
    assert len(theirs) == 10
    for one, other in zip(theirs, ours, strict=True):
        if isinstance(one, list):
            assert one == other
        else:
            np.testing.assert_allclose(one, other, rtol=0, atol=ATOL)
