"""An origin in a repository on the Hub: published in one commit, followed, raced for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from glora_deploy.commands.main import app
from glora_deploy.errors import OriginError
from glora_deploy.origins.bucket import open_bucket
from glora_deploy.origins.fetch import Fetcher
from glora_deploy.origins.hub_bucket import HubBucket
from glora_deploy.origins.index import INDEX
from glora_deploy.origins.publish import publish, read_index
from glora_deploy.store.store import ArtifactStore
from hub_server import READ, WRITE, HubServer, local_hub
from object_server import ROOM

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

URL = "hf://ann/tasks"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with local_hub(monkeypatch, tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", WRITE)
        yield server


def bucket(url: str = URL) -> HubBucket:
    return HubBucket(url, retries=0)


def follow(cache: Path, url: str = URL) -> Fetcher:
    return Fetcher(bucket(url), ArtifactStore.create(cache), ROOM)


def commits(hub: HubServer) -> int:
    return sum("/commit/" in request for request in hub.requests)


def test_a_publication_is_one_commit_and_is_followed(
    store: ArtifactStore, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = publish(store, bucket(), "pets", "v1")
    assert (done.is_new, done.was_current, commits(hub)) == (True, False, 1)
    assert hub.repos["ann/tasks"].private
    monkeypatch.setenv("HF_TOKEN", READ)
    fetcher = follow(tmp_path / "cache")
    assert fetcher.look()
    assert fetcher.store.verify() == []
    assert fetcher.store.current("pets") == "v1"
    for name, tensor in store.get("pets", "v1").tensors().items():
        assert np.array_equal(fetcher.store.get("pets").tensors()[name], tensor)
    asked = len(hub.requests)
    assert fetcher.look()
    assert len(hub.requests) == asked + 1  # what the branch is now, and no more

    monkeypatch.setenv("HF_TOKEN", WRITE)
    publish(store, bucket(), "pets", "v2")
    assert fetcher.look()
    assert fetcher.store.current("pets") == "v2"
    large = len(hub.large)
    again = publish(store, bucket(), "pets", "v1")
    assert (again.is_new, again.uploaded_bytes, commits(hub)) == (False, 0, 3)
    assert len(hub.large) == large
    assert fetcher.look()
    assert fetcher.store.current("pets") == "v1"


def test_nothing_is_visible_before_the_commit(
    store: ArtifactStore, hub: HubServer, tmp_path: Path
) -> None:
    publish(store, bucket(), "cars")
    before = hub.repos["ann/tasks"].files()
    hub.faults.append(("POST .*/commit/", 500))
    with pytest.raises(OriginError, match="the Hub could not be asked"):
        publish(store, bucket(), "pets")
    assert hub.repos["ann/tasks"].files() == before
    publish(store, bucket(), "pets")
    index, _ = read_index(bucket())
    assert set(index.tasks) == {"cars", "pets"}


def test_no_entry_is_lost_where_publishers_race(store: ArtifactStore, hub: HubServer) -> None:
    publish(store, bucket(), "cars")
    failures: list[Exception] = []

    def send(version: str) -> None:
        try:
            publish(store, bucket(), "pets", version)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=send, args=(version,)) for version in ("v1", "v2", "v3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    index, _ = read_index(bucket())
    assert set(index.tasks["pets"].versions) == {"v1", "v2", "v3"}
    assert set(index.tasks) == {"cars", "pets"}


def test_who_loses_the_race_is_told(store: ArtifactStore, hub: HubServer) -> None:
    publish(store, bucket(), "cars")
    slow = bucket()
    index, known = read_index(slow)
    publish(store, bucket(), "pets")
    assert slow.write(INDEX, index.to_json(), instead_of=known) is False
    found, _ = read_index(bucket())
    assert set(found.tasks) == {"cars", "pets"}


def test_a_branch_is_an_origin_of_its_own(
    store: ArtifactStore, hub: HubServer, tmp_path: Path
) -> None:
    publish(store, bucket(), "pets", "v1")
    publish(store, bucket(f"{URL}@staging"), "pets", "v2")
    for url, version in ((URL, "v1"), (f"{URL}@staging", "v2")):
        fetcher = follow(tmp_path / version, url)
        assert fetcher.look()
        assert fetcher.store.current("pets") == version


@pytest.mark.parametrize("file", ["adapter.safetensors", "manifest.json", "model.safetensors"])
def test_a_file_that_was_altered_is_refused(
    file: str, store: ArtifactStore, hub: HubServer, tmp_path: Path
) -> None:
    publish(store, bucket(), "pets", "v1")
    files = hub.repos["ann/tasks"].files()
    (name,) = [name for name in files if name.endswith(f"/{file}")]
    whole = files[name]
    files[name] = whole[:-1] + bytes([whole[-1] ^ 1])
    fetcher = follow(tmp_path / "cache")
    assert fetcher.look()
    assert "sha256 is" in fetcher.problems["pets"]
    assert fetcher.store.tasks() == []
    files[name] = whole[:-1]
    again = follow(tmp_path / "cache")
    assert again.look()
    assert f"has {len(whole) - 1} bytes" in again.problems["pets"]
    del files[name]
    again = follow(tmp_path / "cache")
    assert again.look()
    assert "there is no such file" in again.problems["pets"]
    files[name] = whole
    again = follow(tmp_path / "cache")
    assert again.look()
    assert again.store.verify() == []
    assert again.store.current("pets") == "v1"


def test_while_the_hub_is_away_what_was_fetched_stays(
    store: ArtifactStore, hub: HubServer, tmp_path: Path
) -> None:
    publish(store, bucket(), "pets", "v1")
    fetcher = follow(tmp_path / "cache")
    assert fetcher.look()
    hub.faults += [(".", "drop"), (".", 503)]
    assert not fetcher.look()
    assert fetcher.is_away
    assert not fetcher.look()
    assert fetcher.store.current("pets") == "v1"
    assert fetcher.look()
    assert not fetcher.is_away


def test_a_failure_that_may_pass_is_tried_again(store: ArtifactStore, hub: HubServer) -> None:
    hub.faults += [("POST .*/commit/", 503), ("POST .*/preupload/", 500)]
    assert publish(store, HubBucket(URL, retries=2), "cars").is_new
    assert hub.faults == []


@pytest.mark.parametrize("token", ["", READ, "wrong"])
def test_a_token_that_may_not_write_is_told_in_one_line(
    token: str, store: ArtifactStore, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, bucket(), "cars")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OriginError) as caught:
        publish(store, bucket(), "pets", "v1")
    assert str(caught.value).startswith(URL)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", WRITE)
    assert set(read_index(bucket())[0].tasks) == {"cars"}


def test_an_empty_origin_is_told(hub: HubServer, tmp_path: Path) -> None:
    fetcher = follow(tmp_path / "cache")
    assert not fetcher.look()
    assert "must hold what 'glora publish' wrote" in fetcher.reason


@pytest.mark.parametrize("url", ["hf://ann", "hf://ann/tasks/more", "hf://ann/ta sks", "hf:///x"])
def test_what_is_no_repository_is_no_address(url: str) -> None:
    with pytest.raises(OriginError, match="hf://USER/REPO"):
        open_bucket(url)


def test_the_command_publishes_there(store: ArtifactStore, hub: HubServer, tmp_path: Path) -> None:
    arguments = ["publish", "--task", "pets", "--store", str(store.root), "--to", URL]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("pets/v1: published, current; ")
    code = "from glora_deploy.commands.main import main; main()"
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    done_again = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done_again.returncode == 0, done_again.stderr
    assert done_again.stdout.strip() == "pets/v1: was published and current already"
