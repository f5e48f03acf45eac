"""The store changes while the engine serves: new versions, broken ones, rollback, removal."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from glora_deploy.serving.errors import LoadError, UnavailableError, UnknownTaskError
from glora_deploy.serving.tasks.contract import Answer, InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.live_store import LiveStore
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from marked_tasks import OpenEngine, add_marked_task
from stored_tasks import make_backbone, make_stored_task

Images = NDArray[np.float32]


def ask(engine: StoreEngine, task: str, images: Images, version: str | None = None) -> Answer:
    return engine.submit(InferRequest(task=task, version=version, images=images)).result()


def who(engine: StoreEngine, task: str, images: Images, version: str | None = None) -> str:
    """``version:class`` of an answer whose images are all put into one class."""
    answer = ask(engine, task, images, version)
    (found,) = set(answer.logits.argmax(1).tolist())
    return f"{answer.version}:{found}"


def states(engine: StoreEngine, task: str) -> dict[str, tuple[str, bool]]:
    return {v.version: (v.state, v.is_current) for v in engine.versions(task)}


def reason(engine: StoreEngine, task: str, version: str) -> str:
    return engine.describe(task, version).reason


def second(store: ArtifactStore, task: str = "t0", mark: int = 6, **options: bool) -> Artifact:
    return add_marked_task(store, store.get("colours"), task, mark=mark, seed=mark, **options)


def flip_a_byte(path: Path, where: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)


def test_a_new_version_answers_once_it_is_loaded(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(own_marked)
    assert who(engine, "t0", images) == "v1:0"
    second(own_marked)
    assert who(engine, "t0", images) == "v1:0"
    loaded = engine.load("t0")
    assert (loaded.version, loaded.is_current, loaded.in_memory) == ("v2", True, True)
    assert who(engine, "t0", images) == "v2:6"
    assert who(engine, "t0", images, "v1") == "v1:0"
    assert states(engine, "t0") == {"v1": ("READY", False), "v2": ("READY", True)}


def test_a_load_that_names_a_version_is_a_rollback_until_the_store_says_otherwise(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    second(own_marked)
    engine = open_engine(own_marked)
    assert who(engine, "t0", images) == "v2:6"
    assert engine.load("t0", "v1").is_current
    assert who(engine, "t0", images) == "v1:0"
    assert states(engine, "t0") == {"v1": ("READY", True), "v2": ("READY", False)}
    assert who(engine, "t0", images, "v2") == "v2:6"
    assert engine.load("t0").version == "v2"
    assert who(engine, "t0", images) == "v2:6"


def test_a_version_that_is_not_current_in_the_store_can_be_loaded(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(own_marked)
    second(own_marked, make_current=False)
    with pytest.raises(UnknownTaskError):
        ask(engine, "t0", images, "v2")
    assert engine.load("t0").version == "v1"
    assert who(engine, "t0", images, "v2") == "v2:6"
    assert engine.load("t0", "v2").is_current
    assert who(engine, "t0", images) == "v2:6"


def test_watching_leaves_a_rollback_until_the_store_names_another_version(
    own_marked: ArtifactStore, images: Images, open_engine: OpenEngine
) -> None:
    second(own_marked)
    engine = open_engine(own_marked)
    engine.load("t0", "v1")
    second(own_marked, mark=3, make_current=False)
    engine._live.poll()
    assert who(engine, "t0", images, "v3") == "v3:3"
    assert who(engine, "t0", images) == "v1:0"
    own_marked.set_current("t0", "v3")
    engine._live.poll()
    assert who(engine, "t0", images) == "v3:3"


def test_watching_returns_to_the_store_when_a_version_that_was_rolled_back_to_is_gone(
    own_marked: ArtifactStore, images: Images, open_engine: OpenEngine
) -> None:
    second(own_marked)
    engine = open_engine(own_marked)
    engine.load("t0", "v1")
    own_marked.remove("t0", "v1")
    engine._live.poll()
    assert who(engine, "t0", images) == "v2:6"


def test_a_rollback_of_the_store_is_one_call(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    second(own_marked)
    engine = open_engine(own_marked)
    assert who(engine, "t0", images) == "v2:6"
    own_marked.rollback("t0")
    assert engine.load("t0").version == "v1"
    assert who(engine, "t0", images) == "v1:0"


def test_watching_takes_over_what_becomes_current(
    own_marked: ArtifactStore,
    open_engine: OpenEngine,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    looked = threading.Condition()
    poll = LiveStore.poll

    def counted(live: LiveStore) -> None:
        nonlocal looks
        poll(live)
        with looked:
            looks += 1
            looked.notify_all()

    def look() -> None:
        with looked:
            enough = looks + 2  # one may be under way
            looked.wait_for(lambda: looks >= enough)

    monkeypatch.setattr(LiveStore, "poll", counted)
    engine = open_engine(own_marked, watch_s=0.01)
    second(own_marked)
    look()
    assert who(engine, "t0", images) == "v2:6"
    own_marked.rollback("t0")
    look()
    assert who(engine, "t0", images) == "v1:0"
    second(own_marked, "t9", 3)
    look()
    assert who(engine, "t9", images) == "v1:3"
    own_marked.remove("t9")
    look()
    assert "t9" not in engine.tasks()
    with pytest.raises(UnknownTaskError):
        ask(engine, "t9", images)
    engine.unload("t1")
    look()
    assert states(engine, "t1") == {"v1": ("UNAVAILABLE", True)}  # it stays away until it is loaded
    broken = second(own_marked, "t2")
    look()
    assert who(engine, "t2", images) == "v2:6"
    flip_a_byte(broken.path / "manifest.json")
    look()
    assert who(engine, "t2", images) == "v2:6"


def break_bytes(store: ArtifactStore, new: Artifact) -> None:
    flip_a_byte(new.path / "adapter.safetensors")


def break_size(store: ArtifactStore, new: Artifact) -> None:
    path = new.path / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def break_labels(store: ArtifactStore, new: Artifact) -> None:
    path = new.path / "manifest.json"
    path.write_text(path.read_text("utf-8").replace("class 3", "class X"), "utf-8")


def break_backbone(store: ArtifactStore, new: Artifact) -> None:
    path = new.path / "manifest.json"
    record = json.loads(path.read_text("utf-8"))
    record["backbone"]["fingerprint"] = "ab" * 32
    path.write_text(json.dumps(record), "utf-8")


def lose_delta(store: ArtifactStore, new: Artifact) -> None:
    (new.path / "adapter.safetensors").unlink()


def fail_parity(store: ArtifactStore, new: Artifact) -> None:
    made = store.export_dir(store.get("colours"), "fp32")
    place = store.export_dir(new, "fp32")
    shutil.copytree(made, place)
    manifest = new.manifest
    record = json.loads((place / "export.json").read_text("utf-8"))
    record |= {"task": new.task, "version": new.version, "usable": False}
    record |= {"adapter_sha256": manifest.adapter.sha256, "manifest_digest": manifest.digest()}
    (place / "export.json").write_text(json.dumps(record), "utf-8")


BREAK: dict[str, tuple[Callable[[ArtifactStore, Artifact], None], str]] = {
    "bytes": (break_bytes, "t0/v2/adapter.safetensors: sha256 is "),
    "size": (break_size, "t0/v2/adapter.safetensors: "),
    "labels": (break_labels, "t0/v2/manifest.json: what it says has digest "),
    "backbone": (break_backbone, "store: does not keep the backbone with fingerprint abababab"),
    "delta": (lose_delta, "t0/v2/adapter.safetensors"),
    "parity": (fail_parity, "t0/v2: its export in fp32 must have passed its parity check"),
}


@pytest.mark.parametrize("kind", BREAK)
def test_a_broken_version_is_refused_and_the_one_before_answers_on(
    kind: str, own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    damage, text = BREAK[kind]
    engine = open_engine(own_marked)
    before = engine.usage()
    damage(own_marked, second(own_marked))
    for _ in range(2):
        with pytest.raises(LoadError, match=r"^t0/v2 was refused: ") as refused:
            engine.load("t0")
        assert text in str(refused.value)
        assert str(own_marked.root) not in str(refused.value)
        assert who(engine, "t0", images) == "v1:0"
        assert states(engine, "t0") == {"v1": ("READY", True), "v2": ("UNAVAILABLE", False)}
        assert text in reason(engine, "t0", "v2")
    with pytest.raises(UnavailableError, match=r"^t0/v2 is not ready: "):
        ask(engine, "t0", images, "v2")
    assert engine.usage().evictions == before.evictions


@pytest.mark.parametrize("kind", BREAK)
def test_a_version_that_is_broken_at_the_start_never_answers(
    kind: str, own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    damage, text = BREAK[kind]
    damage(own_marked, second(own_marked))
    engine = open_engine(own_marked)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="t0/v2"):
            ask(engine, "t0", images)
    assert states(engine, "t0") == {"v1": ("READY", False), "v2": ("UNAVAILABLE", True)}
    assert text in reason(engine, "t0", "v2")
    assert who(engine, "t0", images, "v1") == "v1:0"
    assert who(engine, "t1", images) == "v1:1"


def test_a_manifest_that_cannot_be_read_is_listed_with_the_reason(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    new = second(own_marked)
    (new.path / "manifest.json").write_bytes(b"{")
    engine = open_engine(own_marked)
    (listed,) = [v for v in engine.versions("t0") if v.version == "v2"]
    assert listed.state == "UNAVAILABLE"
    assert listed.reason.startswith("t0/v2/manifest.json: must be JSON")
    with pytest.raises(LoadError, match="must be JSON"):
        engine.load("t0")
    own_marked.set_current("t0", "v1")
    engine.load("t0")
    assert who(engine, "t0", images) == "v1:0"


def test_a_failed_parity_record_can_be_allowed_and_a_passed_one_required(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    fail_parity(own_marked, second(own_marked))
    assert who(open_engine(own_marked, allow_unproven=True), "t0", images) == "v2:6"
    strict = open_engine(own_marked, require_proven=True)
    ready = [v.task for v in strict.versions() if v.state == "READY"]
    assert ready == ["colours"]
    text = "t1/v1: must have an export in fp32 that passed its parity check, got none. Run: "
    assert reason(strict, "t1", "v1").startswith(text)


def test_a_version_mended_on_disk_answers_after_a_load(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    path = second(own_marked).path / "adapter.safetensors"
    flip_a_byte(path)
    engine = open_engine(own_marked)
    with pytest.raises(UnavailableError):
        ask(engine, "t0", images)
    flip_a_byte(path)
    assert engine.load("t0").state == "READY"
    assert who(engine, "t0", images) == "v2:6"


def test_damage_after_a_merge_is_found_by_the_next_load_and_memory_answers_on(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(own_marked)
    assert who(engine, "t0", images) == "v1:0"
    flip_a_byte(own_marked.get("t0").path / "adapter.safetensors")
    with pytest.raises(LoadError, match="sha256"):
        engine.load("t0")
    assert who(engine, "t0", images) == "v1:0"


def test_another_delta_under_the_same_name_is_another_version(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(own_marked)
    first = ask(engine, "t0", images)
    own_marked.remove("t0")
    assert second(own_marked).version == "v1"
    assert ask(engine, "t0", images).delta_sha256 == first.delta_sha256
    engine.load("t0")
    again = ask(engine, "t0", images)
    assert (again.version, again.logits.argmax(1).tolist()) == ("v1", [6, 6, 6])
    assert again.delta_sha256 == own_marked.get("t0").manifest.adapter.sha256
    assert engine.usage().weights_bytes == engine.describe("t0").size_bytes


def test_watching_sees_another_delta_under_the_name_of_a_version_that_is_not_current(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    second(own_marked)
    engine = open_engine(own_marked)
    assert who(engine, "t0", images, "v1") == "v1:0"
    own_marked.remove("t0", "v1")
    base = own_marked.get("colours")
    other = add_marked_task(own_marked, base, "other", mark=5, seed=5)
    own_marked.put("t0", other.tensors(), other.manifest, version="v1", make_current=False)
    engine._live.poll()
    assert who(engine, "t0", images, "v1") == "v1:5"
    assert who(engine, "t0", images) == "v2:6"
    assert who(engine, "other", images) == "v1:5"


def test_an_unload_ends_when_its_last_request_has(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(own_marked, max_delay_ms=1e7, max_batch=2)
    waiting = engine.submit(InferRequest(task="t0", images=images[:1]))
    engine.unload("t0")
    assert states(engine, "t0") == {"v1": ("UNLOADING", True)}
    with pytest.raises(UnavailableError, match=r"^t0/v1 is not ready: unloaded$"):
        ask(engine, "t0", images[:1])
    assert not waiting.done()
    gone = threading.Event()
    waiting.add_done_callback(lambda _: gone.set())
    engine.close()
    gone.wait()
    assert waiting.result().logits.argmax() == 0
    assert states(engine, "t0") == {"v1": ("UNAVAILABLE", True)}
    assert not engine.describe("t0").in_memory
    assert engine.usage().weights_bytes == 0


def test_a_request_is_answered_by_the_version_it_was_admitted_for(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    engine = open_engine(own_marked, max_delay_ms=1e7, max_batch=4)
    early = engine.submit(InferRequest(task="t0", images=images[:1]))
    second(own_marked)
    engine.load("t0")
    late = engine.submit(InferRequest(task="t0", images=images[:1]))
    own_marked.remove("t0", "v1")
    engine.load("t0")
    engine.close()
    answers = [future.result() for future in (early, late)]
    assert [(a.version, int(a.logits.argmax())) for a in answers] == [("v1", 0), ("v2", 6)]


def test_unloading_one_version_leaves_the_others(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    second(own_marked)
    engine = open_engine(own_marked)
    engine.unload("t0", "v2")
    with pytest.raises(UnavailableError):
        ask(engine, "t0", images)
    assert who(engine, "t0", images, "v1") == "v1:0"
    engine.load("t0")
    assert who(engine, "t0", images) == "v2:6"


def test_a_backbone_that_was_altered_serves_no_task(
    own_marked: ArtifactStore, open_engine: OpenEngine
) -> None:
    (fingerprint,) = own_marked.backbone_names()
    flip_a_byte(own_marked.backbone_path(fingerprint) / "model.safetensors")
    engine = open_engine(own_marked)
    assert {version.state for version in engine.versions()} == {"UNAVAILABLE"}
    assert "the backbone's tensors have fingerprint" in reason(engine, "t0", "v1")


def test_several_backbones_are_served_side_by_side(
    own_marked: ArtifactStore, open_engine: OpenEngine, images: Images
) -> None:
    """The second has the first one's architecture, so it takes its graph."""
    args = own_marked.get("t0").manifest.backbone.model_args
    other = make_backbone(seed=5, **{k: v for k, v in args.items() if k != "img_size"})
    _, base = make_stored_task(own_marked.root, "other", backbone=other)
    add_marked_task(own_marked, base, "far", mark=5)
    engine = open_engine(own_marked)
    assert who(engine, "far", images) == "v1:5"
    assert who(engine, "t1", images) == "v1:1"
    files = [
        own_marked.backbone_path(name) / "model.safetensors" for name in own_marked.backbone_names()
    ]
    assert len(files) == 2
    headers = sum(file.stat().st_size for file in files) - engine.usage().backbone_bytes
    assert 0 < headers < 20_000
