"""What is visible at an origin, whoever writes at once and whatever is interrupted."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from glora_deploy.errors import OriginError, StoreError
from glora_deploy.export.pipeline import export
from glora_deploy.origins.publish import publish
from glora_deploy.origins.s3_bucket import S3Bucket
from glora_deploy.store.store import ArtifactStore
from object_server import ONNX, Origin
from stored_tasks import make_backbone, make_stored_task


def index_of(origin: Origin) -> dict[str, Any]:
    status, data, _ = origin.objects.ask("GET", f"/models/{origin.prefix}/index.json")
    assert status == 200
    found: dict[str, Any] = json.loads(data)
    return found


def currents(origin: Origin) -> dict[str, str]:
    return {task: entry["current"] for task, entry in index_of(origin)["tasks"].items()}


def test_a_version_travels_with_its_graph_and_backbone_and_without_merged_weights(
    store: ArtifactStore, origin: Origin
) -> None:
    done = publish(store, origin.bucket(), "pets")
    assert (done.version, done.is_new, done.was_current) == ("v1", True, False)
    names = [name.split("/") for name in origin.names()]
    assert sorted(name[-1] for name in names if name[0] == "tasks") == [
        "adapter.safetensors", "export.json", "manifest.json", "model.onnx", "parity.json",
    ]  # fmt: skip
    fingerprint = store.get("pets").manifest.backbone.fingerprint
    assert sorted(name[1] + name[-1] for name in names if name[0] == "backbones") == [
        f"{fingerprint}config.json", f"{fingerprint}model.safetensors",
    ]  # fmt: skip
    assert len(names) == 8
    assert currents(origin) == {"pets": "v1"}


def test_the_index_is_written_last(store: ArtifactStore, origin: Origin) -> None:
    publish(store, origin.bucket(), "pets")
    written = [line for line in origin.objects.requests if line.startswith("PUT")]
    assert len(written) == 8
    assert [line.split("/")[-1] for line in written if "index.json" in line] == ["index.json 200"]
    assert "index.json" in written[-1]


def test_publishing_again_writes_nothing(store: ArtifactStore, origin: Origin) -> None:
    publish(store, origin.bucket(), "pets")
    origin.objects.requests.clear()
    done = publish(store, origin.bucket(), "pets")
    assert (done.is_new, done.was_current, done.uploaded_bytes) == (False, True, 0)
    assert [line for line in origin.objects.requests if line.startswith("PUT")] == []


def test_an_older_version_becomes_current_again_by_the_index_alone(
    store: ArtifactStore, origin: Origin
) -> None:
    publish(store, origin.bucket(), "pets", "v1")
    publish(store, origin.bucket(), "pets", "v2")
    assert currents(origin) == {"pets": "v2"}
    origin.objects.requests.clear()
    done = publish(store, origin.bucket(), "pets", "v1")
    assert (done.is_new, done.was_current) == (False, False)
    assert currents(origin) == {"pets": "v1"}
    assert list(index_of(origin)["tasks"]["pets"]["versions"]) == ["v1", "v2"]
    written = [line for line in origin.objects.requests if line.startswith("PUT")]
    assert len(written) == 1


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_writers_at_once_neither_loses_an_entry(
    store: ArtifactStore, origin: Origin, is_first: bool
) -> None:
    if not is_first:
        publish(store, origin.bucket(), "pets", "v3")
    # Between the read and the write of the one, the other publishes: a new index or a changed one.
    for task, version in (("pets", "v2"), ("cars", "v1")):
        between = (lambda t, v: lambda: publish(store, origin.bucket(), t, v))(task, version)
        origin.objects.faults.append((r"PUT .*/index\.json", between))
    publish(store, origin.bucket(), "pets", "v1")
    assert origin.objects.faults == []
    assert currents(origin) == {"cars": "v1", "pets": "v1"}
    expected = ["v1", "v2"] if is_first else ["v1", "v2", "v3"]
    assert sorted(index_of(origin)["tasks"]["pets"]["versions"]) == expected
    assert any(line.endswith("index.json 412") for line in origin.objects.requests)


def test_another_version_of_a_published_name_is_refused_whoever_is_quicker(
    store: ArtifactStore, origin: Origin, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("other") / "artifacts"
    other, artifact = make_stored_task(root, "cars", backbone=make_backbone(), seed=99)
    export(other, artifact, ONNX)
    origin.objects.faults.append(
        (r"PUT .*/index\.json", lambda: publish(other, origin.bucket(), "cars") and None)
    )
    with pytest.raises(StoreError, match="another version of that name is published there"):
        publish(store, origin.bucket(), "cars")
    kept = index_of(origin)["tasks"]["cars"]["versions"]["v1"]["files"]["adapter.safetensors"]
    assert kept["sha256"] == other.get("cars").manifest.adapter.sha256


@pytest.mark.parametrize("fault", ["cut", "cut the answer", 503])
def test_what_is_interrupted_at_any_request_is_invisible_and_can_be_repeated(
    store: ArtifactStore, origin: Origin, fault: Any
) -> None:
    publish(store, origin.bucket(), "cars")
    origin.objects.requests.clear()
    publish(store, origin.bucket(), "pets")
    n_requests = len(origin.objects.requests)
    assert n_requests > 10
    for k in range(n_requests):
        origin.prefix = f"{origin.prefix}-{k}"
        publish(store, origin.bucket(), "cars")
        origin.objects.faults += [(".", pass_by)] * k + [(".", fault)]
        with pytest.raises(OriginError):
            publish(store, origin.bucket(), "pets")
        # Only the last request makes it visible, and it may have arrived.
        visible = "pets" in currents(origin)
        assert visible == (k == n_requests - 1 and fault == "cut the answer")
        assert currents(origin)["cars"] == "v1"
        publish(store, origin.bucket(), "pets")
        assert currents(origin) == {"cars": "v1", "pets": "v1"}


def pass_by() -> None:
    """Of a request that nothing befalls."""


def test_a_version_without_a_proven_graph_is_refused(
    origin: Origin, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bare, _ = make_stored_task(tmp_path_factory.mktemp("bare") / "artifacts")
    with pytest.raises(StoreError, match="glora export --task pets --version v1 --fmt onnx"):
        publish(bare, origin.bucket(), "pets")
    assert origin.names() == []


def test_a_bucket_that_is_not_there_is_named(store: ArtifactStore, origin: Origin) -> None:
    bucket = S3Bucket("s3://nowhere/prod", retries=0)
    with pytest.raises(OriginError, match="s3://nowhere/prod: must be a bucket that is there"):
        publish(store, bucket, "pets")


def test_without_a_key_the_variable_is_named(
    store: ArtifactStore, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as knows_no_role:
        threading.Thread(target=knows_no_role.serve_forever).start()
        address = f"http://127.0.0.1:{knows_no_role.server_port}"
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", address)
        try:
            with pytest.raises(OriginError, match="AWS_ACCESS_KEY_ID must be set"):
                publish(store, origin.bucket(), "pets")
        finally:
            knows_no_role.shutdown()


def test_an_object_that_was_cut_short_is_written_again(
    store: ArtifactStore, origin: Origin
) -> None:
    publish(store, origin.bucket(), "pets")
    (name,) = [name for name in origin.names() if name.endswith("adapter.safetensors")]
    path = f"/models/{origin.prefix}/{name}"
    whole = origin.objects.ask("GET", path)[1]
    origin.objects.ask("PUT", path, whole[:100])
    publish(store, origin.bucket(), "pets")
    assert origin.objects.ask("GET", path)[1] == whole
