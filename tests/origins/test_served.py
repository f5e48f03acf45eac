"""A server on an origin: the program itself, without torch, between a bucket and its clients."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from calls_http import IMAGES, listed
from glora_deploy.commands.main import app
from glora_deploy.origins.publish import publish
from glora_deploy.store.store import ArtifactStore
from marked_tasks import reference_logits
from object_server import Origin
from server_program import running


@contextmanager
def serving(origin: Origin, cache: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program that follows an origin, and its address."""
    arguments = ("--threads", "1", "--no-log-requests", "--store", origin.url)
    with running(*arguments, "--cache-dir", str(cache), "--poll-s", "0.05") as (process, first):
        yield process, first.split()[0]


def logits(url: str, task: str) -> tuple[str, Any]:
    """The version that answers, and what it says of the images."""
    body = json.dumps({"inputs": [listed()], "outputs": [{"name": "logits"}]}).encode()
    with urllib.request.urlopen(f"{url}/v2/models/{task}/infer", body) as response:
        answer = json.loads(response.read())
    (output,) = answer["outputs"]
    return answer["model_version"], np.reshape(output["data"], output["shape"])


def await_version(url: str, task: str, version: str) -> Any:
    """What a version answers once it is the one that does; the run's own limit ends a wait."""
    while True:
        named, found = logits(url, task)
        if named == version:
            return found
        time.sleep(0.05)


def test_a_server_answers_right_and_takes_over_what_is_published(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    expected = {
        version: reference_logits(store, store.get("pets", version), IMAGES)
        for version in ("v1", "v2")
    }
    assert np.abs(expected["v1"] - expected["v2"]).max() > 0.1
    publish(store, origin.bucket(), "pets", "v1")
    with serving(origin, tmp_path / "cache") as (process, url):
        version, found = logits(url, "pets")
        assert version == "1"
        np.testing.assert_allclose(found, expected["v1"], atol=1e-4)
        publish(store, origin.bucket(), "pets", "v2")
        publish(store, origin.bucket(), "cars")
        np.testing.assert_allclose(await_version(url, "pets", "2"), expected["v2"], atol=1e-4)
        origin.objects.away = True
        asked = len(origin.objects.requests)
        while len(origin.objects.requests) < asked + 7:  # two looks at least, with their retries
            time.sleep(0.05)
        np.testing.assert_allclose(logits(url, "pets")[1], expected["v2"], atol=1e-4)
        origin.objects.away = False
        publish(store, origin.bucket(), "pets", "v1")
        np.testing.assert_allclose(await_version(url, "pets", "1"), expected["v1"], atol=1e-4)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.stderr is not None
        notes = process.stderr.read()
    assert notes.count("could not be asked") == 1
    origin.objects.away = True
    with serving(origin, tmp_path / "cache") as (_, url):
        np.testing.assert_allclose(logits(url, "pets")[1], expected["v1"], atol=1e-4)


def test_a_server_without_a_cache_says_why_it_cannot_start(origin: Origin, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as caught, serving(origin, tmp_path / "cache"):
        pass
    (line,) = [line for line in str(caught.value).splitlines() if line.startswith("error: ")]
    assert f"{origin.url}: must publish a version that can be fetched" in line
    assert "it has no index.json" in line


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_publishes_and_rolls_back(store: ArtifactStore, origin: Origin) -> None:
    to = ("--task", "pets", "--store", store.root, "--to", origin.url)
    for arguments, said in (
        ((), r"pets/v1: published, current; 0\.\d+ MB sent"),
        ((), "pets/v1: was published and current already"),
        (("--version", "v2"), r"pets/v2: published, current; 0\.\d+ MB sent"),
        (("--version", "v1"), "pets/v1: was published already, current again"),
    ):
        done = run("publish", *to, *arguments)
        assert done.exit_code == 0, done.output
        assert re.fullmatch(said, done.stdout.strip()), done.stdout
    assert run("publish", *to, "--quiet").stdout == ""


def test_an_address_of_another_kind_is_refused(store: ArtifactStore) -> None:
    done = run("publish", "--task", "pets", "--store", store.root, "--to", "gs://models/pets")
    assert done.exit_code == 2
    assert "an origin must be s3://BUCKET" in done.stderr


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    store: ArtifactStore, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    done = run("publish", "--task", "pets", "--store", store.root, "--to", origin.url)
    assert done.exit_code == 1
    assert "needs obstore: pip install 'glora-deploy[s3]'" in done.stderr


@pytest.mark.parametrize(
    "file", ["manifest.json", "adapter.safetensors", "export.json", "model.onnx"]
)
def test_a_server_that_is_killed_in_mid_download_comes_back_with_right_answers(
    file: str, store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    expected = {
        version: reference_logits(store, store.get("pets", version), IMAGES)
        for version in ("v1", "v2")
    }
    cache = tmp_path / "cache"
    publish(store, origin.bucket(), "pets", "v1")
    with serving(origin, cache) as (process, url):
        assert logits(url, "pets")[0] == "1"

        def kill() -> None:
            process.kill()
            process.wait()

        origin.objects.faults.append((f"^GET .*/v2/.*{re.escape(file)}", kill))
        publish(store, origin.bucket(), "pets", "v2")
        assert process.wait() == -signal.SIGKILL
    assert origin.objects.faults == []
    (root,) = cache.iterdir()
    assert ArtifactStore.open(root).verify() == []
    assert ArtifactStore.open(root).current("pets") == "v1"
    origin.objects.away = True
    with serving(origin, cache) as (_, url):
        version, found = logits(url, "pets")
        assert version == "1"
        np.testing.assert_allclose(found, expected["v1"], atol=1e-4)
        origin.objects.away = False
        np.testing.assert_allclose(await_version(url, "pets", "2"), expected["v2"], atol=1e-4)
