"""Exported Triton repositories in a real Triton server: loaded as they are, under model control."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient import http
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from glora_deploy.data.preprocess import preprocess_batch
from glora_deploy.export.cli.commands import app
from glora_deploy.serving.exported_model import load_from_store
from glora_deploy.serving.image_input import to_image
from glora_deploy.serving.predictor import Predictor
from stored_tasks import make_stored_task
from triton_server import needs_triton, triton_server

pytestmark = needs_triton

ATOL = 1e-5  # float32: another number of threads adds up in another order
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


class Served:
    """A store, the repository exported from it, and a client of the server that has it."""

    def __init__(self, store: Path, repository: Path, client: http.InferenceServerClient) -> None:
        self.store = store
        self.repository = repository
        self.client = client

    def export(self, task: str, *arguments: str) -> None:
        command = ["--task", task, "--fmt", "triton", "--images", "1"]
        places = ["--store", str(self.store), "--out", str(self.repository)]
        done = CliRunner().invoke(app, [*command, *places, *arguments])
        assert done.exit_code == 0, done.output

    def logits(self, task: str, version: str = "") -> tuple[str, NDArray[np.float32]]:
        """Which number answered, and what."""
        tensor = http.InferInput("image", [*IMAGES.shape], "FP32")
        tensor.set_data_from_numpy(IMAGES)
        answer = self.client.infer(task, [tensor], model_version=version)
        return answer.get_response()["model_version"], answer.as_numpy("logits")

    def states(self, task: str) -> dict[str, str]:
        """Number to state, of what can be asked for or has failed."""
        index = self.client.get_model_repository_index()
        going = {"UNLOADING", "UNAVAILABLE unloaded"}
        found = {
            entry["version"]: " ".join((entry["state"], entry.get("reason", ""))).strip()
            for entry in index
            if entry["name"] == task and "version" in entry
        }
        return {number: state for number, state in found.items() if state not in going}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("triton")
    store, repository = root / "store", root / "repository"
    make_stored_task(store, "pets", seed=1)
    make_stored_task(store, "cars", seed=2, labels=("red", "green", "blue"))
    (root / "server").mkdir()
    repository.mkdir()
    with (
        triton_server(repository, root / "server") as server,
        http.InferenceServerClient(server.http) as client,
    ):
        served = Served(store, repository, client)
        served.export("pets", "--task", "cars")
        yield served


def ours(served: Served, task: str, version: str) -> NDArray[np.float32]:
    """What this project computes from the same export."""
    return load_from_store(served.store, task, version, "fp32", 1).session.logits(IMAGES)


def require_answer(served: Served, task: str, number: str, version: str) -> None:
    """The version of the store answers by default, under this number."""
    answered, logits = served.logits(task)
    assert answered == number
    np.testing.assert_allclose(logits, ours(served, task, version), rtol=0, atol=ATOL)


def test_two_tasks_load_unchanged_and_answer_as_the_predictor_does(served: Served) -> None:
    before = {path: path.read_bytes() for path in served.repository.rglob("*") if path.is_file()}
    for task in ("pets", "cars"):
        served.client.load_model(task)
        assert served.states(task) == {"1": "READY"}
        require_answer(served, task, "1", "v1")
    different = ours(served, "pets", "v1")[:, :3] - ours(served, "cars", "v1")
    assert np.abs(different).max() > 1000 * ATOL
    after = {path: path.read_bytes() for path in served.repository.rglob("*") if path.is_file()}
    assert after == before


def test_classification_names_the_labels_of_the_predictor(served: Served) -> None:
    served.client.load_model("pets")
    predictor = Predictor.from_store(served.store, "pets", "v1")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 40, 50, 3), np.uint8)
    tensor = http.InferInput("image", [2, 3, 32, 32], "FP32")
    tensor.set_data_from_numpy(
        preprocess_batch([to_image(one) for one in pixels], predictor.preprocessing)
    )
    asked = [http.InferRequestedOutput("logits", class_count=3)]
    answer = served.client.infer("pets", [tensor], outputs=asked).as_numpy("logits")
    predictions = predictor.predict_batch(pixels, top_k=3)
    for row, prediction in zip(answer, predictions, strict=True):
        classes = [entry.decode().split(":") for entry in row]
        assert [label for _, _, label in classes] == [one.label for one in prediction.top]
        indices = [int(index) for _, index, _ in classes]
        assert [predictor.labels[index] for index in indices] == [c for _, _, c in classes]
        values = np.array([float(value) for value, _, _ in classes])
        shares = np.array([one.probability for one in prediction.top])
        np.testing.assert_allclose(
            np.exp(values - values[0]), shares / shares[0], rtol=0, atol=1e-5
        )


def test_the_configuration_that_is_served_says_which_delta_it_is(served: Served) -> None:
    served.client.load_model("pets")
    config = served.client.get_model_config("pets")
    model = load_from_store(served.store, "pets", "v1", "fp32", 1)
    parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
    assert (parameters["task"], parameters["version"]) == ("pets", "v1")
    assert parameters["adapter_sha256"] == model.delta_sha256
    assert json.loads(parameters["preprocessing"])["size"] == [32, 32]
    # It would not be ready if either had failed.
    assert [warmup["batch_size"] for warmup in config["model_warmup"]] == [1, 32]


def add_version(served: Served, task: str, *arguments: str, seed: int) -> None:
    """One more version of a task of two classes, exported under the next number."""
    make_stored_task(served.store, task, seed=seed, labels=("one", "other"))
    served.export(task, *arguments)


def test_versions_are_kept_and_each_answers_under_its_number(served: Served) -> None:
    add_version(served, "kept", seed=3)
    served.client.load_model("kept")
    add_version(served, "kept", "--keep-versions", "2", seed=4)
    # The folder was exchanged beneath it: the loaded one answers until it is told to load.
    require_answer(served, "kept", "1", "v1")
    served.client.load_model("kept")
    assert served.states("kept") == {"1": "READY", "2": "READY"}
    require_answer(served, "kept", "2", "v2")
    number, logits = served.logits("kept", "1")
    assert number == "1"
    np.testing.assert_allclose(logits, ours(served, "kept", "v1"), rtol=0, atol=ATOL)
    told = served.client.get_model_config("kept")["parameters"]["versions"]["string_value"]
    assert {number: one["version"] for number, one in json.loads(told).items()} == {
        "1": "v1",
        "2": "v2",
    }


def test_a_rollback_is_a_load_with_the_older_number_or_an_export_of_it(served: Served) -> None:
    add_version(served, "rolled", seed=5)
    add_version(served, "rolled", "--keep-versions", "2", seed=6)
    served.client.load_model("rolled")
    config = served.client.get_model_config("rolled")
    older = {**config, "version_policy": {"specific": {"versions": [1]}}}
    served.client.load_model("rolled", config=json.dumps(older))
    require_answer(served, "rolled", "1", "v1")
    with pytest.raises(InferenceServerException, match="not at ready state"):
        served.logits("rolled", "2")
    # Files that have not changed are not read again, nor is what was said of them taken back.
    served.client.load_model("rolled")
    require_answer(served, "rolled", "1", "v1")
    served.client.load_model("rolled", config=json.dumps(config))
    require_answer(served, "rolled", "2", "v2")

    served.export("rolled", "--version", "v1", "--keep-versions", "2")
    served.client.load_model("rolled")
    assert served.states("rolled") == {"2": "READY", "3": "READY"}
    require_answer(served, "rolled", "3", "v1")


@pytest.mark.parametrize("kept", [2, 1])
def test_a_broken_version_is_refused_and_the_one_before_serves_on(
    served: Served, kept: int
) -> None:
    task = f"mended-{kept}"
    add_version(served, task, seed=7)
    served.client.load_model(task)
    add_version(served, task, "--keep-versions", str(kept), seed=8)
    graph = served.repository / task / "2" / "model.onnx" / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    for _ in range(2):  # the second time the files are those that failed
        with pytest.raises(InferenceServerException, match="version 2 is at UNAVAILABLE") as told:
            served.client.load_model(task)
        assert told.value.status() == "400"
        states = served.states(task)
        assert states.keys() == {"1", "2"}
        assert states["1"] == "READY"
        assert states["2"].startswith("UNAVAILABLE Internal: InvalidProtobuf")
        require_answer(served, task, "1", "v1")
        with pytest.raises(InferenceServerException, match="not at ready state"):
            served.logits(task, "2")
    graph.write_bytes(whole)
    served.client.load_model(task)
    require_answer(served, task, "2", "v2")
    assert served.states(task).keys() == ({"1", "2"} if kept == 2 else {"2"})


def test_a_task_that_was_unloaded_answers_no_more_and_the_other_does(served: Served) -> None:
    served.client.load_model("pets")
    served.client.load_model("cars")
    served.client.unload_model("cars")
    with pytest.raises(InferenceServerException, match="no available versions"):
        served.logits("cars")
    served.logits("pets")
    served.client.load_model("cars")
    served.logits("cars")
