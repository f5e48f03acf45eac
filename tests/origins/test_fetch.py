"""A local store that follows an origin: what it takes over, refuses, keeps and lets go."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from glora_deploy.origins.fetch import MAX_PAUSE_S, Fetcher
from glora_deploy.origins.publish import publish
from glora_deploy.store.store import ArtifactStore
from object_server import Origin


def there(fetcher: Fetcher) -> dict[str, tuple[str | None, list[str]]]:
    """Each task's current version, and all of them; of a store in which nothing is wrong."""
    store = fetcher.store
    assert store.verify() == []
    return {task: (store.current(task), store.versions(task)) for task in store.tasks()}


def test_a_reader_gets_what_is_current_and_no_merged_weights(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    publish(store, origin.bucket(), "pets", "v1")
    publish(store, origin.bucket(), "pets", "v2")
    publish(store, origin.bucket(), "cars")
    fetcher = origin.fetcher(tmp_path / "cache")
    assert fetcher.look()
    assert there(fetcher) == {"cars": ("v1", ["v1"]), "pets": ("v2", ["v2"])}
    for task, version in (("cars", "v1"), ("pets", "v2")):
        ours, theirs = fetcher.store.get(task, version), store.get(task, version)
        assert ours.manifest.adapter == theirs.manifest.adapter
        assert sorted(path.name for path in (ours.path / "exports/fp32").iterdir()) == [
            "export.json", "model.onnx", "parity.json",
        ]  # fmt: skip
    assert fetcher.store.backbone_names() == store.backbone_names()


def test_a_look_that_finds_nothing_new_is_one_request_that_is_answered_304(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    publish(store, origin.bucket(), "pets")
    fetcher = origin.fetcher(tmp_path / "cache")
    assert fetcher.look()
    origin.objects.requests.clear()
    assert fetcher.look()
    assert origin.objects.requests == [f"GET /models/{origin.prefix}/index.json 304"]


def test_a_reader_sees_a_new_current_and_an_older_one_again(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    fetcher = origin.fetcher(tmp_path / "cache")
    publish(store, origin.bucket(), "pets", "v1")
    fetcher.look()
    assert there(fetcher) == {"pets": ("v1", ["v1"])}
    publish(store, origin.bucket(), "pets", "v2")
    fetcher.look()
    assert there(fetcher) == {"pets": ("v2", ["v1", "v2"])}
    publish(store, origin.bucket(), "pets", "v1")
    origin.objects.requests.clear()
    fetcher.look()
    assert there(fetcher) == {"pets": ("v1", ["v1", "v2"])}
    assert len(origin.objects.requests) == 1  # the index alone


def test_an_origin_that_is_away_takes_nothing_and_is_told_once(
    store: ArtifactStore, origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, origin.bucket(), "pets", "v1")
    fetcher = origin.fetcher(tmp_path / "cache")
    fetcher.look()
    publish(store, origin.bucket(), "pets", "v2")
    origin.objects.away = True
    with caplog.at_level(logging.INFO, "glora_deploy.origins"):
        assert fetcher.pause_s(10) == 10
        pauses = []
        for _ in range(5):
            assert not fetcher.look()
            pauses.append(fetcher.pause_s(10))
        assert pauses == [20, 40, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]
        assert fetcher.pause_s(600) == 600
        assert there(fetcher) == {"pets": ("v1", ["v1"])}
        (line,) = told(caplog)
        assert "could not be asked" in line
        assert "serves on" in line
        origin.objects.away = False
        assert fetcher.look()
    assert caplog.messages[-1].endswith("answers again")
    assert fetcher.pause_s(10) == 10
    assert there(fetcher) == {"pets": ("v2", ["v1", "v2"])}


def test_an_origin_that_goes_away_at_any_request_leaves_the_old_or_the_new(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    publish(store, origin.bucket(), "pets", "v2")
    origin.objects.requests.clear()
    origin.fetcher(tmp_path / "counted").look()
    n_requests = len(origin.objects.requests)
    assert n_requests == 8
    for k in range(n_requests):
        for fault in ("cut", "truncate", 503):
            fetcher = origin.fetcher(tmp_path / f"cache-{k}-{fault}")
            origin.objects.faults += [(".", pass_by)] * k + [(".", fault)]
            assert not fetcher.look()
            assert there(fetcher) == {}
            assert fetcher.look() or fetcher.look()  # what failed is passed over once
            fetcher.look()
            assert there(fetcher) == {"pets": ("v2", ["v2"])}


def pass_by() -> None:
    """Of a request that nothing befalls."""


@pytest.mark.parametrize(
    "file", ["adapter.safetensors", "manifest.json", "model.onnx", "export.json"]
)
@pytest.mark.parametrize("how", ["altered", "shorter", "longer", "missing"])
def test_an_object_that_is_not_what_the_index_states_is_refused_and_the_old_version_stays(
    store: ArtifactStore,
    origin: Origin,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    file: str,
    how: str,
) -> None:
    publish(store, origin.bucket(), "pets", "v1")
    fetcher = origin.fetcher(tmp_path / "cache")
    fetcher.look()
    publish(store, origin.bucket(), "cars")
    publish(store, origin.bucket(), "pets", "v2")
    (name,) = [n for n in origin.names() if "/pets/v2/" in n and n.endswith(f"/{file}")]
    whole = damage(origin, name, how)
    assert fetcher.look()
    assert file in fetcher.problems["pets"]
    assert there(fetcher) == {"cars": ("v1", ["v1"]), "pets": ("v1", ["v1"])}
    (line,) = told(caplog)
    assert "Refused; what answered before answers on." in line
    assert fetcher.look()  # passed over
    assert fetcher.look()  # refused again, and known
    assert told(caplog) == [line]
    origin.objects.ask("PUT", f"/models/{origin.prefix}/{name}", whole)
    for _ in range(3):
        fetcher.look()
    assert fetcher.problems == {}
    assert there(fetcher)["pets"] == ("v2", ["v1", "v2"])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("how", ["altered", "shorter", "missing"])
def test_a_backbone_that_is_not_what_the_index_states_is_refused(
    store: ArtifactStore, origin: Origin, tmp_path: Path, file: str, how: str
) -> None:
    publish(store, origin.bucket(), "pets")
    (name,) = [n for n in origin.names() if n.startswith("backbones/") and n.endswith(file)]
    whole = damage(origin, name, how)
    fetcher = origin.fetcher(tmp_path / "cache")
    assert fetcher.look()
    assert file in fetcher.problems["pets"]
    assert there(fetcher) == {}
    assert fetcher.store.backbone_names() == []
    origin.objects.ask("PUT", f"/models/{origin.prefix}/{name}", whole)
    for _ in range(2):
        fetcher.look()
    assert there(fetcher) == {"pets": ("v1", ["v1"])}


def damage(origin: Origin, name: str, how: str) -> bytes:
    """Change an object behind the back of its index; what it was."""
    path = f"/models/{origin.prefix}/{name}"
    whole = origin.objects.ask("GET", path)[1]
    if how == "missing":
        origin.objects.ask("DELETE", path)
    else:
        changed = {
            # At the end of JSON a space for a line break: only its digest tells.
            "altered": whole[:-1] + bytes([whole[-1] ^ ord("\n") ^ ord(" ")]),
            "shorter": whole[:-1],
            "longer": whole + b"\n",
        }
        origin.objects.ask("PUT", path, changed[how])
    return whole


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of what follows origins."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("glora_deploy.origins") and record.levelno >= logging.WARNING
    ]


def test_a_version_that_is_refused_is_asked_for_ever_more_rarely(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    publish(store, origin.bucket(), "pets")
    (name,) = [n for n in origin.names() if n.endswith("manifest.json")]
    origin.objects.ask("PUT", f"/models/{origin.prefix}/{name}", b"nonsense")
    fetcher = origin.fetcher(tmp_path / "cache")
    asked = []
    for look in range(40):
        origin.objects.requests.clear()
        assert fetcher.look()
        if len(origin.objects.requests) > 1:
            asked.append(look)
    assert asked == [0, 2, 5, 10, 19, 36]


def test_a_restart_serves_from_the_cache_while_the_origin_is_away(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    publish(store, origin.bucket(), "pets", "v1")
    origin.fetcher(tmp_path / "cache").look()
    publish(store, origin.bucket(), "pets", "v2")
    origin.objects.away = True
    again = origin.fetcher(tmp_path / "cache")
    assert not again.look()
    assert there(again) == {"pets": ("v1", ["v1"])}
    origin.objects.away = False
    assert again.look()
    assert there(again) == {"pets": ("v2", ["v1", "v2"])}


def test_a_restart_fetches_nothing_that_is_there(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    publish(store, origin.bucket(), "pets")
    origin.fetcher(tmp_path / "cache").look()
    origin.objects.requests.clear()
    assert origin.fetcher(tmp_path / "cache").look()
    assert origin.objects.requests == [f"GET /models/{origin.prefix}/index.json 200"]


def damage_a_version(store: ArtifactStore) -> None:
    path = store.get("pets").path / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def lose_the_backbone(store: ArtifactStore) -> None:
    shutil.rmtree(store.backbones)


@pytest.mark.parametrize("harm", [damage_a_version, lose_the_backbone])
def test_what_is_damaged_or_gone_in_the_cache_is_fetched_again_at_the_start(
    harm: Callable[[ArtifactStore], None], store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    publish(store, origin.bucket(), "pets")
    fetcher = origin.fetcher(tmp_path / "cache")
    fetcher.look()
    harm(fetcher.store)
    again = origin.fetcher(tmp_path / "cache")
    assert again.look()
    assert there(again) == {"pets": ("v1", ["v1"])}
    assert again.store.backbone_names() == store.backbone_names()


def test_the_oldest_versions_that_are_not_current_leave_a_cache_beyond_its_budget(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    publish(store, origin.bucket(), "cars")
    roomy = origin.fetcher(tmp_path / "roomy")
    for version in ("v1", "v2"):
        publish(store, origin.bucket(), "pets", version)
        roomy.look()
    fits_three = sum(p.stat().st_size for p in roomy.store.root.rglob("*") if p.is_file())

    fetcher = origin.fetcher(tmp_path / "cache", budget_bytes=fits_three + 2000)
    for version in ("v1", "v2", "v3"):
        publish(store, origin.bucket(), "pets", version)
        fetcher.look()
    assert there(fetcher) == {"cars": ("v1", ["v1"]), "pets": ("v3", ["v2", "v3"])}
    assert fetcher.store.backbone_names() == store.backbone_names()


def test_versions_that_are_current_stay_beyond_the_budget_and_that_is_told_once(
    store: ArtifactStore, origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fetcher = origin.fetcher(tmp_path / "cache", budget_bytes=1)
    for version in ("v1", "v2"):
        publish(store, origin.bucket(), "pets", version)
        fetcher.look()
        assert there(fetcher) == {"pets": (version, [version])}
    (line,) = told(caplog)
    assert "more than the budget of 1" in line


def test_an_index_of_a_later_release_is_refused_and_the_old_one_followed(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    publish(store, origin.bucket(), "pets")
    fetcher = origin.fetcher(tmp_path / "cache")
    fetcher.look()
    path = f"/models/{origin.prefix}/index.json"
    for data, said in ((b'{"origin_version":2}', "origin_version must be 1"), (b"{", "JSON")):
        origin.objects.ask("PUT", path, data)
        assert fetcher.look()
        assert said in fetcher.problems[""]
    assert there(fetcher) == {"pets": ("v1", ["v1"])}


def test_what_another_process_makes_current_in_the_cache_is_put_right(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    fetcher = origin.fetcher(tmp_path / "cache")
    for version in ("v1", "v2"):
        publish(store, origin.bucket(), "pets", version)
        fetcher.look()
    ArtifactStore.open(fetcher.store.root).set_current("pets", "v1")
    fetcher.look()
    assert there(fetcher) == {"pets": ("v2", ["v1", "v2"])}
