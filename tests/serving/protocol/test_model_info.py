"""What is served, as Triton's own messages read it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import model_config_pb2, service_pb2

from glora_deploy.serving.errors import InputError, UnknownTaskError
from glora_deploy.serving.protocol.model_info import (
    is_ready,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
)
from glora_deploy.serving.protocol.version_names import client_name, find_version, stored_name
from glora_deploy.serving.tasks.contract import InferRequest
from toy_engine import SIZE, ToyEngine


@pytest.fixture
def engine() -> Iterator[ToyEngine]:
    made = ToyEngine()
    yield made
    made.close()


def test_metadata_name_each_input_output_and_ready_version(engine: ToyEngine) -> None:
    engine.unload("pets", "v1")
    record = model_metadata(engine, "pets")
    message = ParseDict(record, service_pb2.ModelMetadataResponse())
    assert message.versions == ["2"]
    assert model_metadata(engine, "pets", "2")["versions"] == ["2"]
    assert model_metadata(engine, "pets", "1")["versions"] == []  # it was unloaded
    assert [(one.name, one.datatype, list(one.shape)) for one in message.inputs] == [
        ("image", "FP32", [-1, 3, SIZE, SIZE]),
        ("image_bytes", "BYTES", [-1, 1]),
    ]
    assert [(one.name, list(one.shape)) for one in message.outputs] == [
        ("logits", [-1, 3]),
        ("probabilities", [-1, 3]),
    ]


def test_the_configuration_is_one_of_tritons(engine: ToyEngine) -> None:
    config = ParseDict(model_config(engine, "digits", "1"), model_config_pb2.ModelConfig())
    assert config.max_batch_size == 4
    assert config.input[0].data_type == model_config_pb2.TYPE_FP32
    assert list(config.output[0].dims) == [5]
    assert config.parameters["version"].string_value == "v1"


def test_statistics_are_tritons_and_count_images_and_batches(engine: ToyEngine) -> None:
    images = np.zeros((3, 3, SIZE, SIZE), np.float32)
    engine.submit(InferRequest(task="pets", images=images)).result()
    record = model_statistics(engine, "pets")
    message = ParseDict(record, service_pb2.ModelStatisticsResponse())
    first, second = message.model_stats
    assert (first.version, first.inference_count) == ("1", 0)
    assert (second.version, second.inference_count, second.execution_count) == ("2", 3, 1)
    assert second.inference_stats.success.count == 1
    assert second.batch_stats[0].batch_size == 3
    assert len(model_statistics(engine)["model_stats"]) == 3
    assert len(model_statistics(engine, "pets", "v1")["model_stats"]) == 1


def test_the_index_lists_every_version_or_the_ready_ones(engine: ToyEngine) -> None:
    engine.unload("pets", "v1")
    assert repository_index(engine) == [
        {"name": "digits", "version": "1", "state": "READY"},
        {"name": "pets", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
        {"name": "pets", "version": "2", "state": "READY"},
    ]
    assert [one["version"] for one in repository_index(engine, ready=True)] == ["1", "2"]
    assert not is_ready(engine, "pets", "1")
    assert is_ready(engine, "pets")
    assert not is_ready(engine, "pets", "7")
    assert not is_ready(engine, "cars")
    assert not is_ready(engine, "..")


def test_versions_that_would_share_a_name_keep_their_own() -> None:
    engine = ToyEngine({"pets": ["3", "v3", "v4", "v05", "beta"]})
    names = {each.version: client_name(engine, "pets", each.version) for each in engine.versions()}
    assert names == {"3": "3", "v3": "v3", "v4": "4", "v05": "v05", "beta": "beta"}
    for stored, shown in names.items():
        assert find_version(engine, "pets", shown).version == stored
        assert find_version(engine, "pets", stored).version == stored
    engine.close()


def test_a_version_that_is_not_served_yet_can_be_named(engine: ToyEngine) -> None:
    assert stored_name(engine, "pets", "7") == "v7"
    assert stored_name(engine, "pets", "beta") == "beta"
    with pytest.raises(InputError):
        stored_name(engine, "pets", "..")
    with pytest.raises(UnknownTaskError):
        find_version(engine, "pets", "7")
