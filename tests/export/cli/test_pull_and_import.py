"""``pull`` and ``import`` from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from glora_deploy.export.cli.commands import app
from glora_deploy.store.store import ArtifactStore
from hub_server import WRITE, HubServer, local_hub
from stored_tasks import LABELS, make_backbone, make_stored_task


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A local Hub in the place of the public one."""
    with local_hub(monkeypatch, tmp_path) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


# The Hub's client uploads with a progress bar in a way that its HTTP library is giving up.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_a_pushed_task_is_pulled_into_another_store(tmp_path: Path, hub: HubServer) -> None:
    _, artifact = make_stored_task(tmp_path / "ours")
    pushed = run(
        "--task", "pets", "--store", tmp_path / "ours", "--images", 1,
        "--push", "ann/pets", "--token", WRITE, "--license", "mit",
    )  # fmt: skip
    assert pushed.exit_code == 0, pushed.output
    assert f"{hub.endpoint}/ann/pets" in pushed.output
    # An untrained backbone has no source to come from again.
    make_stored_task(tmp_path / "theirs", "cats")
    theirs_too = ("--store", tmp_path / "theirs", "--token", WRITE)
    asleep = run("pull", "ann/pets", *theirs_too, "--task", "asleep", "--no-current")
    assert asleep.exit_code == 0, asleep.output
    assert ArtifactStore.open(tmp_path / "theirs").current("asleep") is None
    pulled = run("pull", "ann/pets", *theirs_too)
    assert pulled.exit_code == 0, pulled.output
    theirs = ArtifactStore.open(tmp_path / "theirs").get("pets", "v1")
    # The header differs, which repeats the digest of another manifest: this one is of today.
    assert theirs.is_bound()
    for name, tensor in artifact.tensors().items():
        assert theirs.tensors()[name].tobytes() == tensor.tobytes()


def test_a_push_with_a_wrong_token_is_refused_before_the_export_is_made(
    tmp_path: Path, hub: HubServer
) -> None:
    _, artifact = make_stored_task(tmp_path)
    result = run("--task", "pets", "--store", tmp_path, "--push", "ann/pets", "--token", "hf_wrong")
    assert result.exit_code == 1
    assert "ann/pets: needs a valid token, got one that the Hub refuses" in result.stderr
    assert not (artifact.path / "exports").exists()
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("ann/dogs", WRITE, "ann/dogs: must be a model repository that your token can see"),
        ("ann/dogs", "hf_wrong", "ann/dogs: needs a valid token, got one that the Hub refuses"),
    ],
    ids=["repository", "token"],
)
@pytest.mark.usefixtures("hub")
def test_a_failed_pull_is_one_line_and_leaves_nothing(
    repo: str, token: str, message: str, tmp_path: Path
) -> None:
    result = run("pull", repo, "--store", tmp_path / "new" / "store", "--token", token)
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("repo", ["dogs", "a/b/c", "datasets/ann/dogs"])
def test_what_names_no_model_repository_is_wrong_usage(
    tmp_path: Path, hub: HubServer, repo: str
) -> None:
    result = run("pull", repo, "--store", tmp_path / "store")
    assert result.exit_code == 2, result.output
    assert "Give USER/NAME" in result.stderr or "must be USER/NAME" in result.stderr
    assert hub.requests == []
    assert not (tmp_path / "store").exists()


def test_a_peft_adapter_becomes_a_task(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="no peft installed")
    model = make_backbone().build(len(LABELS))
    config = peft.LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["head"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    names = tmp_path / "labels.txt"
    names.write_text("\n".join(LABELS))
    weights = tmp_path / "backbone.safetensors"
    save_file(dict(make_backbone().tensors), weights)
    result = run(
        "import", tmp_path / "adapter", "--task", "pets", "--store", tmp_path / "store",
        "--backbone", "vit_tiny_patch16_224", "--checkpoint", weights, "--labels", names,
    )  # fmt: skip
    # The command knows timm's own sizes only; this backbone is narrower.
    assert result.exit_code == 1
    assert "backbone.safetensors: weights do not fit" in result.stderr
    assert not (tmp_path / "store").exists()


def import_with_labels(
    tmp_path: Path, labels: bytes, monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[Result, Path]:
    """Import an adapter with a file of class names, on the small backbone."""
    peft = pytest.importorskip("peft", reason="no peft installed")
    monkeypatch.setattr(
        "glora_deploy.backbones.load.load_backbone", lambda *a, **k: make_backbone()
    )
    config = peft.LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["head"])
    model = peft.get_peft_model(make_backbone().build(len(LABELS)), config)
    model.save_pretrained(tmp_path / "adapter")
    names = tmp_path / "labels.txt"
    names.write_bytes(labels)
    store = tmp_path / "store"
    command = ("import", tmp_path / "adapter", "--task", "pets", "--store", store)
    return run(*command, "--labels", names, *options), store


def test_an_import_need_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "\n".join(LABELS).encode()
    result, store = import_with_labels(tmp_path, names, monkeypatch, "--no-current")
    assert result.exit_code == 0, result.output
    assert ArtifactStore.open(store).versions("pets") == ["v1"]
    assert ArtifactStore.open(store).current("pets") is None


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_a_byte_order_mark_is_no_part_of_the_first_label(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ("\ufeff" + "\r\n".join(LABELS) + end).encode()
    result, store = import_with_labels(tmp_path, labels, monkeypatch)
    assert result.exit_code == 0, result.output
    assert ArtifactStore.open(store).get("pets").manifest.labels == LABELS


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (b"ant\n\nbee\ncat\ndog\nelk\n", "labels.txt: line 2 must be a name, got a blank line"),
        ("ant\nbée\ncat".encode("latin1"), "labels.txt: must be a readable UTF-8 text file, got"),
    ],
)
def test_labels_that_would_be_wrong_are_refused(
    tmp_path: Path, labels: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, store = import_with_labels(tmp_path, labels, monkeypatch)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not store.exists()


def test_an_import_under_a_name_that_is_no_slug_is_refused_before_anything_is_read(
    tmp_path: Path,
) -> None:
    result = run("import", tmp_path / "no", "--task", "../pets", "--store", tmp_path / "store")
    assert result.exit_code == 2
    assert "task must be 1 to 64 of" in result.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere", [], "nowhere: must be a folder, or USER/NAME on the Hub, it is neither"),
        ("empty", [], "adapter_config.json: must be a file, none is here"),
        ("loha", [], "peft_type must be LORA or GLORA, got LOHA"),
        ("cut", [], "adapter_model.safetensors: not a readable safetensors file"),
        ("lora", ["--head", "gone.safetensors"], "gone.safetensors: not a readable safetensors"),
        (
            "lora",
            ["--labels", "gone.txt"],
            "gone.txt: must be a readable UTF-8 text file: No such file",
        ),
        ("gone.pt", ["--subnet", "subnet.txt"], "gone.pt: must be a file, none is here"),
        ("theirs.pt", ["--subnet", "gone.txt"], "gone.txt: must be a file, none is here"),
    ],
)
def test_what_is_wrong_with_a_source_is_found_before_a_backbone_is_fetched(
    tmp_path: Path, hub: HubServer, source: str, options: list[str], message: str
) -> None:
    for folder in ("empty", "loha", "cut", "lora"):
        (tmp_path / folder).mkdir()
        if folder != "empty":
            config = tmp_path / folder / "adapter_config.json"
            config.write_text(f'{{"peft_type": "{"LOHA" if folder == "loha" else "LORA"}"}}')
    save_file({"head.weight": torch.zeros(3, 768)}, tmp_path / "lora/adapter_model.safetensors")
    (tmp_path / "cut/adapter_model.safetensors").write_bytes(b"\x10")
    torch.save({"head.weight": torch.zeros(3, 768)}, tmp_path / "theirs.pt")
    files = [option if option.startswith("--") else tmp_path / option for option in options]
    result = run("import", tmp_path / source, "--task", "pets", "--store", tmp_path / "s", *files)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert hub.requests == []
    assert not (tmp_path / "s").exists()


def test_a_hub_that_does_not_answer_is_asked_twice(tmp_path: Path, hub: HubServer) -> None:
    hub.faults = [("typo/dir", "drop")] * 99
    result = run("import", "typo/dir", "--task", "pets", "--store", tmp_path / "store")
    assert result.exit_code == 1, result.output
    assert "typo/dir: the Hub did not answer (" in result.stderr
    assert sum("typo/dir" in request for request in hub.requests) == 2


LYCORIS = {
    f"lora_unet_blocks_0_attn_qkv.{name}.weight": torch.zeros(2, 2)
    for name in ("a1", "a2", "b1", "b2")
}


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("lyco.safetensors", []),
        ("lyco.safetensors", ["--subnet", "subnet.txt"]),
        ("lyco.pt", []),
        ("lyco.pt", ["--subnet", "subnet.txt"]),
        ("lyco.ckpt", []),
        ("folder", []),
        ("folder", ["--subnet", "subnet.txt"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "with subnet" if value else "alone",
)
def test_lycoris_is_refused_with_the_reason(
    tmp_path: Path, source: str, options: list[str]
) -> None:
    (tmp_path / "folder").mkdir()
    save_file(LYCORIS, tmp_path / "lyco.safetensors")
    save_file(LYCORIS, tmp_path / "folder/lyco.safetensors")
    torch.save(LYCORIS, tmp_path / "lyco.pt")
    torch.save(LYCORIS, tmp_path / "lyco.ckpt", _use_new_zipfile_serialization=False)
    result = run(
        "import", tmp_path / source, "--task", "pets", "--store", tmp_path / "store", *options
    )
    assert result.exit_code == 1, result.output
    assert "a1.weight is LyCORIS' GLoRA, another formula: it adds the matrix" in result.stderr
    assert not (tmp_path / "store").exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("ours.pt", 2, "a .pt needs one: it holds every"),
        ("evil.pt", 2, "a .pt needs one: it holds every"),
        ("gone.pt", 2, "a .pt needs one: it holds every"),
        ("damaged.pt", 2, "a .pt needs one: it holds every"),
        ("ours.safetensors", 1, "must be a folder, or USER/NAME on the Hub, it is neither"),
        ("damaged.safetensors", 1, "must be a folder, or USER/NAME on the Hub, it is neither"),
        ("folder", 1, "adapter_config.json: must be a file, none is here"),
    ],
)
def test_what_is_not_lycoris_is_refused_for_what_it_lacks(
    tmp_path: Path, name: str, status: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    ours = {"blocks.0.attn.qkv.Ad": torch.zeros(2, 2)}
    torch.save(ours, tmp_path / "ours.pt")
    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    torch.save({"a": Evil()}, tmp_path / "folder/evil.pt")
    save_file(ours, tmp_path / "ours.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10")
    (tmp_path / "damaged.pt").write_bytes(b"\x80\x02.")
    result = run(
        "import", tmp_path / name, "--task", "pets", "--store", tmp_path / "store",
        "--backbone", "test_vit", "--checkpoint", "random:1",
    )  # fmt: skip
    assert result.exit_code == status, result.output
    assert message in result.stderr.replace("\n", " ")
    assert "must not run" not in result.output + capfd.readouterr().out
