"""Push with the real huggingface_hub client against a Hub on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load

from glora_deploy.errors import ArtifactError, HubError, ParityError, StoreError
from glora_deploy.export.hub.model_card import MARK
from glora_deploy.export.hub.push_pull import push, require_pushable
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.parity import PARITY_FILE, Report
from glora_deploy.store.export_record import ExportRecord
from hub_server import PATIENCE_S, READ, WRITE, HubServer
from pushed import DELTA, MERGED, NOBODY, REPO, Pushed
from stored_tasks import make_stored_task

# huggingface_hub 2.4 hands httpx2 2.16 a large file in a way that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def rewrite_record(task: Pushed, **changes: Any) -> None:
    """Write export.json again, so that it states the files as they are now, with changes."""
    again = ExportRecord.of_folder(task.folder, task.artifact.manifest, "fp32", usable=True)
    again.model_copy(update=changes).write(task.folder)


# What a push leaves on the Hub


def test_a_push_is_one_commit_of_the_export_the_delta_and_a_card(task: Pushed) -> None:
    assert task.push() == f"{task.hub.endpoint}/{REPO}"
    assert task.files.keys() == MERGED | {".gitattributes"}
    assert len(task.hub.repos[REPO].commits) == 2  # the first is the empty repository
    for name in ("model.safetensors", "parity.json"):
        assert task.files[name] == (task.folder / name).read_bytes()
    for name in DELTA:
        assert task.files[name] == (task.artifact.path / Path(name).name).read_bytes()


def test_the_config_is_the_exported_one_with_a_licence(task: Pushed) -> None:
    task.push(license="mit")
    pushed = json.loads(task.files["config.json"])
    expected = json.loads((task.folder / "config.json").read_text("utf-8"))
    expected["pretrained_cfg"]["license"] = "mit"
    assert pushed == expected
    assert "\nlicense: mit\n" in task.files["README.md"].decode()


@pytest.mark.slow
def test_timm_loads_a_pushed_repository_bit_for_bit_without_this_package(
    task: Pushed, tmp_path: Path
) -> None:
    task.push()
    code = f"""if True:
        import sys
        sys.modules["glora_deploy"] = None
        import timm, numpy as np
        model = timm.create_model("hf-hub:{REPO}", pretrained=True)
        tensors = {{name: t.numpy() for name, t in model.state_dict().items()}}
        np.savez("loaded.npz", **tensors)
        assert model.pretrained_cfg["label_names"] == ["ant", "bee", "cat", "dog", "elk"]
    """
    run_python(code, tmp_path, task.hub)
    expected = load(task.files["model.safetensors"])
    with np.load(tmp_path / "loaded.npz") as loaded:
        assert {*loaded} == expected.keys()
        for name, tensor in expected.items():
            assert loaded[name].tobytes() == tensor.tobytes()


def run_python(code: str, folder: Path, hub: HubServer) -> None:
    """Run code in a new process whose Hub is this one."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_ETAG_TIMEOUT": str(PATIENCE_S),
        "HF_HUB_DOWNLOAD_TIMEOUT": str(PATIENCE_S),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("single_file", [False, True])
def test_every_python_block_of_the_card_runs(
    hub: HubServer, tmp_path: Path, single_file: bool
) -> None:
    from PIL import Image

    store, artifact = make_stored_task(tmp_path / "store")
    config = ExportConfig(formats=("merged", "onnx"), n_images=2, single_file=single_file)
    assert export(store, artifact, config).report.passed
    Pushed(hub, store, artifact).push()
    card = hub.repos[REPO].files()["README.md"].decode()
    assert ("`model.onnx` holds its weights:" in card) is single_file
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 3
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "image.jpg")
    checks = """if True:
        images = rest = None
        import torch
        plain = model.eval()(torch.zeros(1, 3, 32, 32)).detach().numpy()
        assert logits.shape == (1, 5) and np.abs(logits - plain).max() < 1e-5, logits - plain
    """
    run_python("\n".join([*blocks, checks]), tmp_path, hub)


def test_a_model_with_preprocessing_goes_along_and_runs(hub: HubServer, tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path / "store")
    config = ExportConfig(formats=("onnx", "pixels"), n_images=2)
    assert export(store, artifact, config).report.passed
    Pushed(hub, store, artifact).push()
    files = hub.repos[REPO].files()
    assert files.keys() == MERGED | {"model.onnx", "model.pixels.onnx", ".gitattributes"}
    assert "`model.pixels.onnx` resizes, crops and normalises by itself" in str(files["README.md"])
    for name in ("model.pixels.onnx", "model.safetensors"):
        (tmp_path / name).write_bytes(files[name])
    pixels = np.zeros((2, 40, 50, 3), np.uint8)
    found = OnnxSession(tmp_path / "model.pixels.onnx").run("probabilities", {"pixels": pixels})
    assert found.shape == (2, 5)


def test_pushing_again_changes_nothing(task: Pushed) -> None:
    task.push()
    before = dict(task.hub.repos[REPO].commits)
    task.push()
    assert task.hub.repos[REPO].commits == before


def test_files_of_an_earlier_push_go_and_those_of_others_stay(task: Pushed) -> None:
    task.push()
    theirs = {"notes.txt": b"mine", "onnx/model.onnx": b"mine too"}
    task.hub.repos[REPO].commit("main", {**task.files, **theirs, "model.onnx": b"old"})
    task.push()
    assert task.files.keys() == MERGED | theirs.keys() | {".gitattributes"}
    assert {name: task.files[name] for name in theirs} == theirs


def test_a_repository_of_somebody_elses_making_loses_nothing(task: Pushed) -> None:
    task.hub.add(REPO, {"model.onnx": b"theirs", "config.json": b"{}"})
    task.push()
    assert task.files["model.onnx"] == b"theirs"
    assert task.files.keys() == MERGED | {"model.onnx"}


@pytest.mark.parametrize(
    ("readme", "kept"),
    [(b"# Mine \xff", True), (f"---\n---\n{MARK}\nold".encode(), False)],
    ids=["written by hand", "written by a push"],
)
def test_only_a_card_of_ours_is_replaced(task: Pushed, readme: bytes, kept: bool) -> None:
    task.hub.add(REPO, {"README.md": readme})
    task.push()
    assert (task.files["README.md"] == readme) is kept


def test_a_branch_is_made_and_the_default_one_left_alone(task: Pushed) -> None:
    task.hub.add(REPO, {"notes.txt": b""})
    for _ in range(2):
        address = task.push(revision="v1/fp32")
    assert address == f"{task.hub.endpoint}/{REPO}/tree/v1/fp32"
    assert task.hub.repos[REPO].files("main") == {"notes.txt": b""}
    pushed = task.hub.repos[REPO].files("v1/fp32")
    assert pushed.keys() == MERGED | {"notes.txt"}
    assert f"hf-hub:{REPO}@v1/fp32" in pushed["README.md"].decode()


def test_a_private_push_makes_a_private_repository(task: Pushed) -> None:
    task.push(private=True)
    assert task.hub.repos[REPO].private
    task.push(private=True)


def test_a_private_push_into_a_public_repository_is_refused(task: Pushed) -> None:
    task.hub.add(REPO, {"notes.txt": b""})
    with pytest.raises(HubError, match=f"^{REPO}: must be private, it exists and is public"):
        task.push(private=True)
    assert task.files == {"notes.txt": b""}


# Lost connections


@pytest.mark.parametrize("fault", ["drop", "drop the answer", 503])
@pytest.mark.parametrize("request_", ["/repos/create", "/commit/"])
def test_a_connection_lost_half_way_is_taken_up_again(
    task: Pushed, fault: Any, request_: str
) -> None:
    task.hub.faults = [(request_, fault)]
    said: list[str] = []
    task.push(on_step=said.append)
    assert task.hub.faults == []
    assert any("trying again in 0.01 s" in text for text in said)
    assert task.files.keys() == MERGED | {".gitattributes"}
    assert len(task.hub.repos[REPO].commits) == 2


def test_an_upload_lost_half_way_is_taken_up_again(task: Pushed) -> None:
    task.hub.faults = [("^PUT ", "drop")]
    task.push()
    assert task.hub.faults == []
    assert task.files["model.safetensors"] == (task.folder / "model.safetensors").read_bytes()


def test_a_refused_upload_is_not_tried_again(task: Pushed) -> None:
    task.hub.add(REPO, {"notes.txt": b""})
    task.hub.faults = [("^PUT ", 403)]
    said: list[str] = []
    with pytest.raises(HubError, match=f"^{REPO}: the token must be allowed to do this, it is not"):
        task.push(on_step=said.append)
    assert not any("trying again" in text for text in said)
    assert task.files == {"notes.txt": b""}


def test_after_the_last_attempt_nothing_is_visible(task: Pushed) -> None:
    task.hub.add(REPO, {"notes.txt": b""})
    task.hub.faults = [("/commit/", "drop")] * 3
    with pytest.raises(HubError, match=rf"^{REPO}: the Hub did not answer \(") as caught:
        task.push()
    assert "\n" not in str(caught.value)
    assert task.files == {"notes.txt": b""}
    assert task.hub.faults == []


def test_a_commit_in_between_is_kept(task: Pushed) -> None:
    task.hub.add(REPO, {"notes.txt": b""})
    original = task.hub.fault_for

    def commit_first(request: str) -> Any:
        if "/commit/" in request and len(task.hub.repos[REPO].commits) == 1:
            task.hub.repos[REPO].commit("main", {"notes.txt": b"", "new.txt": b"theirs"})
        return original(request)

    task.hub.fault_for = commit_first  # type: ignore[method-assign]
    task.push()
    assert task.files.keys() == MERGED | {"notes.txt", "new.txt"}
    assert sum("/commit/" in request for request in task.hub.requests) == 2


# Refusals


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "needs a valid token, got none. Log in with 'hf auth login', or set HF_TOKEN"),
        ("hf_wrong", "needs a valid token, got one that the Hub refuses. Log in"),
        (READ, "the token must be allowed to do this, it is not"),
    ],
)
def test_a_token_that_will_not_do_is_explained_at_once(
    task: Pushed, token: str | None, message: str
) -> None:
    with pytest.raises(HubError, match=f"^{REPO}: {re.escape(message)}"):
        task.push(token=token)
    assert task.hub.requests.count("POST /api/repos/create") == 1
    assert task.hub.repos == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pets", "'pets': must be USER/NAME, got no user"),
        ("", "'': must be USER/NAME, got"),
        ("ann/pets/more", "'ann/pets/more': must be USER/NAME, got"),
        ("ann/..", "'ann/..': must be USER/NAME, got"),
        ("https://huggingface.co/ann/pets", "must be USER/NAME, got"),
        ("datasets/ann/pets", "datasets/ann/pets: must be a model repository, got one of datasets"),
        ("spaces/ann/pets", "must be a model repository, got one of spaces"),
    ],
)
def test_a_name_that_is_no_model_repository_is_refused(
    task: Pushed, name: str, message: str
) -> None:
    with pytest.raises(HubError, match=re.escape(message)):
        task.push(name)
    assert task.hub.requests == []


BAD_BRANCHES = [
    "", "a b", "a..b", "/a", "a/", "a//b", "-a", ".a", "a/.b", "a.", "a.lock",
    "a~1", "a^", "a:b", "a?", "a*", "a[0", "a\\b", "a@{b", 'a"b', "a\n",
]  # fmt: skip


@pytest.mark.parametrize("revision", BAD_BRANCHES)
def test_a_name_that_is_no_branch_is_refused(task: Pushed, revision: str) -> None:
    message = f"^{REPO}: the revision must be the name of a branch, got "
    with pytest.raises(HubError, match=message):
        require_pushable(REPO, revision, token=WRITE, endpoint=task.hub.endpoint)
    with pytest.raises(HubError, match=message):
        task.push(revision=revision)
    assert task.hub.requests == []


@pytest.mark.parametrize("revision", [None, "main", "v1/fp32", "a-b_c.d", "größe", "fix#12"])
def test_where_a_push_may_go_nothing_is_made_before_it(task: Pushed, revision: str | None) -> None:
    require_pushable(REPO, revision, token=WRITE, endpoint=task.hub.endpoint)
    assert "GET /api/whoami-v2" in task.hub.requests
    assert not [request for request in task.hub.requests if not request.startswith("GET ")]
    assert task.hub.repos == {}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pets", {}, "'pets': must be USER/NAME, got no user"),
        ("datasets/ann/pets", {}, "must be a model repository, got one of datasets"),
        (REPO, {"token": None}, "needs a token, got none. Log in with 'hf auth login', or set"),
        (REPO, {"token": "hf_wrong"}, "needs a valid token, got one that the Hub refuses. Log in"),
        (REPO, {"token": READ}, "the token must be allowed to write, it may only read. Log in"),
        (REPO, {"endpoint": NOBODY}, "the Hub did not answer ("),
    ],
)
def test_a_push_that_cannot_succeed_is_known_beforehand(
    hub: HubServer, name: str, changes: dict[str, Any], message: str
) -> None:
    known = {"token": WRITE, "endpoint": hub.endpoint, "delays_s": (0.01,)}
    with pytest.raises(HubError, match=re.escape(message)):
        require_pushable(name, **known | changes)
    assert hub.repos == {}


def test_a_connection_lost_while_asking_for_the_token_is_taken_up_again(hub: HubServer) -> None:
    hub.faults = [("whoami", "drop")]
    require_pushable(REPO, token=WRITE, endpoint=hub.endpoint, delays_s=(0.01,))
    assert hub.faults == []


def test_a_licence_unknown_to_the_hub_is_refused_before_anything_is_sent(task: Pushed) -> None:
    with pytest.raises(
        HubError, match=r"the Hub refused: Invalid metadata in README\.md"
    ) as caught:
        task.push(license="nonsense")
    assert "license unknown" in str(caught.value)
    assert task.files.keys() == {".gitattributes"}


def test_offline_a_push_says_what_to_do(task: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set\. Unset it"):
        task.push()


def test_what_was_not_exported_is_not_pushed(task: Pushed) -> None:
    with pytest.raises(StoreError, match=r"^pets/v1 fp16: must be exported before it is pushed"):
        push(task.store, task.artifact, "fp16", REPO, token=WRITE, endpoint=task.hub.endpoint)
    assert task.hub.requests == []


def test_a_failed_parity_is_not_pushed(own_task: Pushed) -> None:
    path = own_task.folder / PARITY_FILE
    report = Report.from_json(path.read_bytes(), "parity.json")
    bad = report.steps[0].model_copy(update={"outcome": "fail", "reason": "differs"})
    path.write_bytes(report.model_copy(update={"steps": (bad,)}).to_json())
    rewrite_record(own_task)
    with pytest.raises(ParityError, match=r"differs\. The export is marked unusable"):
        own_task.push()
    assert own_task.hub.requests == []


def test_an_export_without_a_parity_report_is_not_pushed(own_task: Pushed) -> None:
    (own_task.folder / PARITY_FILE).unlink()
    rewrite_record(own_task)
    with pytest.raises(ParityError, match=r"^pets/v1 fp32: has no parity.json. Export it again"):
        own_task.push()


def test_an_export_of_another_delta_is_not_pushed(own_task: Pushed) -> None:
    rewrite_record(own_task, adapter_sha256="0" * 64)
    with pytest.raises(ArtifactError, match=r"adapter_sha256 must be .*, got 000000000000\.\."):
        own_task.push()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "parity.json"])
def test_an_altered_file_is_not_pushed(own_task: Pushed, name: str) -> None:
    data = bytearray((own_task.folder / name).read_bytes())
    data[-3] ^= 1
    (own_task.folder / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{re.escape(name)}: sha256 is"):
        own_task.push()
    assert own_task.hub.requests == []
