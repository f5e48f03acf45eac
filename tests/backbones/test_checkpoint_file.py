"""Backbone weights as people have them, built from a real small timm network."""

from __future__ import annotations

import argparse
import gzip
import io
import logging
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from glora_deploy.backbones.checkpoint_file import CheckpointFile, load_torch
from glora_deploy.backbones.load import Backbone, load_backbone
from glora_deploy.errors import ArtifactError, NonFiniteError, StoreError

VIT = "vit_tiny_patch16_224"
NARROW = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
State = dict[str, Tensor]


def make_state(seed: int = 0) -> State:
    torch.manual_seed(seed)
    return dict(timm.create_model(VIT, img_size=32, **NARROW).state_dict())


def load(checkpoint: Path | str) -> Backbone:
    return load_backbone(VIT, checkpoint=checkpoint, input_size=32, model_args=NARROW)


def behind(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def require_loaded(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    for name, tensor in backbone.tensors.items():
        assert torch.equal(tensor, state[name]), name


def dino_head() -> State:
    return {"module.head.mlp.0.weight": torch.ones(7, 48), "module.head.last.weight": torch.ones(3)}


WRAPPED: dict[str, Callable[[State], dict[str, Any]]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "arch": VIT},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "an architecture's name under model": lambda s: {"model": VIT, "state_dict": s},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.5},
    "net": lambda s: {"net": s, "acc": 91.2},
    "beside a number": lambda s: {**s, "epoch": 3},
    "distributed": lambda s: behind("module.", s),
    "compiled": lambda s: behind("_orig_mod.", s),
    "distributed and compiled": lambda s: {"model": behind("module._orig_mod.", s)},
    "lightning": lambda s: {
        "state_dict": {**behind("model.", s), "criterion.weight": torch.ones(10)},
        "hyper_parameters": {"lr": 1e-3},
        "callbacks": {"best": {"score": torch.tensor(0.5)}},
    },
    "encoder": lambda s: {"state_dict": behind("encoder.", s)},
    "backbone": lambda s: behind("backbone.", s),
    "a chain of three": lambda s: {"net": {"weights": behind("module.backbone.", s)}},
    "a wrapper of transformers": lambda s: behind("timm_model.", s),
    "dino's teacher alone": lambda s: {"teacher": behind("module.backbone.", s) | dino_head()},
    "averaged weights": lambda s: {"model": make_state(5), "model_ema": s},
    "averaged weights of lightning": lambda s: {
        "state_dict": behind("net.", make_state(5)) | behind("net_ema.module.", s)
    },
    "what a trainer was asked for": lambda s: {
        "model": s,
        "args": argparse.Namespace(lr=0.1, data="/data", nested=argparse.Namespace(a=1)),
        "best": np.float64(0.5),
        "steps": np.int64(7),
    },
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize("older", [False, True], ids=["zip", "pickle"])
def test_a_network_is_found_in_what_a_trainer_saved(
    tmp_path: Path, wrap: Callable[[State], dict[str, Any]], older: bool
) -> None:
    state = make_state()
    path = tmp_path / "w.pth"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=not older)
    backbone = load(path)
    require_loaded(backbone, state)
    assert backbone.source == "file:w.pth"


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "encoder.", "visual.trunk.", "a.b.c."])
def test_a_prefix_in_safetensors_is_taken_off(tmp_path: Path, prefix: str) -> None:
    state = make_state()
    save_file(behind(prefix, state), tmp_path / "w.safetensors")
    require_loaded(load(tmp_path / "w.safetensors"), state)


def test_the_log_says_in_one_line_what_was_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = make_state()
    torch.save({"state_dict": behind("model.", state) | {"loss.a": torch.ones(1)}}, tmp_path / "w")
    with caplog.at_level(logging.WARNING, "glora_deploy"):
        load(tmp_path / "w")
    (line,) = caplog.messages
    assert line == f"{tmp_path / 'w'}: took the 20 tensors behind 'state_dict.model.', " + (
        "none of the 1 others"
    )
    caplog.clear()
    torch.save(state, tmp_path / "w")
    load(tmp_path / "w")
    assert caplog.messages == []


def save_dino(path: Path) -> tuple[State, State]:
    student, teacher = make_state(1), make_state(2)
    content = {
        "student": behind("module.backbone.", student) | dino_head(),
        "teacher": behind("module.backbone.", teacher) | dino_head(),
        "dino_loss": {"center": torch.zeros(1, 9)},
        "args": argparse.Namespace(arch="vit_tiny"),
    }
    torch.save(content, path)
    return student, teacher


def test_two_networks_in_one_file_are_refused_with_the_choices(tmp_path: Path) -> None:
    save_dino(tmp_path / "dino.pth")
    with pytest.raises(ArtifactError) as caught:
        load(tmp_path / "dino.pth")
    assert str(caught.value) == (
        f"{tmp_path}/dino.pth: must hold the network once, it does 2 times: student, teacher. "
        f"Choose one by --checkpoint '{tmp_path}/dino.pth#teacher'."
    )


@pytest.mark.parametrize(
    "part", ["student", "teacher", "teacher.module", "teacher.module.backbone"]
)
def test_a_part_of_a_file_can_be_chosen(tmp_path: Path, part: str) -> None:
    student, teacher = save_dino(tmp_path / "dino.pth")
    backbone = load(f"{tmp_path}/dino.pth#{part}")
    require_loaded(backbone, student if part == "student" else teacher)
    assert backbone.source == f"file:dino.pth#{part.removesuffix('.')}"
    backbone.record()  # it is a source that a manifest may hold


def test_two_networks_behind_one_prefix_are_told_apart_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "moco.pth"
    both = behind("module.encoder_q.", make_state(1)) | behind("module.encoder_k.", make_state(2))
    torch.save({"state_dict": both}, path)
    with pytest.raises(ArtifactError, match=r"2 times: state_dict\.module\.encoder_k, state_d"):
        load(path)
    require_loaded(load(f"{path}#state_dict.module.encoder_q"), make_state(1))
    with pytest.raises(ArtifactError, match=r"Choose one by .*#state_dict\.module\.encoder_q'"):
        load(f"{path}#state_dict")


def test_a_part_that_is_not_there_is_refused_naming_those_that_are(tmp_path: Path) -> None:
    save_dino(tmp_path / "dino.pth")
    with pytest.raises(
        ArtifactError,
        match=r"#pupil must be a part of it.*parts: dino_loss, student, teacher\.",
    ):
        load(f"{tmp_path}/dino.pth#pupil")


def test_the_name_of_a_file_may_hold_the_mark_of_a_part(tmp_path: Path) -> None:
    path = tmp_path / "w#1.pth"
    torch.save(make_state(), path)
    assert CheckpointFile.parse(path) == CheckpointFile(path, None)
    assert load(path).source == "file:w#1.pth"
    with pytest.raises(StoreError, match=r"gone\.pth#a: the checkpoint must be a file"):
        load(tmp_path / "gone.pth#a")


def test_a_part_of_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.zeros(2))
    with pytest.raises(ArtifactError, match=r"w\.npz: a \.npz has no parts, got #a"):
        load(f"{tmp_path}/w.npz#a")


def test_another_network_behind_a_prefix_is_refused_by_what_differs(tmp_path: Path) -> None:
    state = make_state()
    del state["blocks.0.attn.qkv.bias"]
    save_file(behind("model.", state), tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"do not fit: lacks blocks\.0\.attn\.qkv\.bias$"):
        load(tmp_path / "w.safetensors")


def test_tensors_of_something_else_are_named_not_counted_up(tmp_path: Path) -> None:
    save_file({"layers.0.w": torch.ones(3), "emb": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError) as caught:
        load(tmp_path / "w.safetensors")
    assert str(caught.value) == (
        f"{tmp_path}/w.safetensors: weights do not fit: none of the model's 18 tensors is there, "
        "its names are such as emb. Give weights of VisionTransformer under timm's names."
    )
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match="is there, it holds no tensor"):
        load(tmp_path / "w.pth")


# Not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_that_are_not_finite_are_refused_naming_tensor_and_file(
    tmp_path: Path, value: float, suffix: str
) -> None:
    state = make_state()
    state["blocks.0.mlp.fc1.weight"][3, 4] = value
    state["norm.bias"][:2] = value
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    with pytest.raises(NonFiniteError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: blocks.0.mlp.fc1.weight must be finite, it holds NaN or infinity in 1 of 9216 "
        "numbers, and so do 1 more tensors. Give other weights, or save these in float32."
    )


def test_a_classifier_that_is_not_finite_does_no_harm(tmp_path: Path) -> None:
    state = make_state()
    state["head.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    assert load(tmp_path / "w.safetensors").fingerprint


# What a file is


@pytest.mark.parametrize("name", ["W.SAFETENSORS", "w.safetensors", "w.pth", "w"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    state = make_state()
    save_file(state, tmp_path / name)
    require_loaded(load(tmp_path / name), state)


@pytest.mark.parametrize("name", ["W.PTH", "w.safetensors", "w.npz", "w.pth.tar", "w"])
def test_a_file_of_torch_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    state = make_state()
    torch.save(state, tmp_path / name)
    require_loaded(load(tmp_path / name), state)


def archive(**files: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return data.getvalue()


def tar_archive() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        file.addfile(tarfile.TarInfo("weights.pth"))
    return data.getvalue()


def torch_file() -> bytes:
    data = io.BytesIO()
    torch.save({"a": torch.ones(99)}, data)
    return data.getvalue()


POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
OTHERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "pointer": (lambda: POINTER, "a Git LFS pointer. Run 'git lfs pull' in its repository."),
    "page": (lambda: PAGE, "a web page. Download the file itself; on the Hub its address has /res"),
    "xml": (lambda: b"<?xml version='1.0'?><Error/>", "a web page. Download the file itself"),
    "text": (lambda: b"Entry not found", "a text that begins with 'Entry not found'. Give the"),
    "json": (lambda: b'{"error": {"a": 1}}', 'a text that begins with \'{"error": {"a": 1}}\''),
    "long text": (lambda: b"x" * 1023 + "é".encode(), "a text that begins with 'xxxx"),
    "empty": (lambda: b"", "an empty file. Download or save it again."),
    "zip": (lambda: archive(**{"w.pth": b"1"}), "a zip archive with w.pth. Unpack it and give the"),
    "empty zip": (archive, "an empty zip archive. Unpack it"),
    "half a zip": (lambda: torch_file()[:-50], "a zip archive cut short. Download or save it ag"),
    "tar": (tar_archive, "a tar archive. Unpack it and give the weights in it."),
    "gzip": (lambda: gzip.compress(b"1"), "a gzip archive. Unpack it and give the weights in it."),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file, as Keras writes it. Give weights of"),
    "array": (lambda: b"\x93NUMPY\x01\0", "a single NumPy array. Give weights of PyTorch or timm."),
    "program": (
        lambda: archive(**{"p/data.pkl": b"", "p/code/f.py": b"", "p/constants.pkl": b""}),
        "a TorchScript program. Save the state_dict() of its network.",
    ),
    "noise": (
        lambda: bytes(range(128, 256)),
        "something that is no safetensors, torch or npz file. Download or",
    ),
}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.npz"])
@pytest.mark.parametrize(("make", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_file_of_weights_is_named_for_what_it_is(
    tmp_path: Path, make: Callable[[], bytes], message: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(ArtifactError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: must be weights, got {message}")


@pytest.mark.parametrize("n_bytes", [1, 9, 500])
def test_safetensors_cut_short_are_named(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "w.safetensors"
    save_file(make_state(), path)
    path.write_bytes(path.read_bytes()[:-n_bytes])
    with pytest.raises(ArtifactError, match=r"w\.safetensors: cannot be read as .*Download or sav"):
        load(path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"model": make_state(), "x": Evil()}, "print"),
        ({"model": torch.nn.Linear(2, 2)}, "torch.nn.modules.linear.Linear"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"path": Path("/data")}, "pathlib.PosixPath"),
    ],
    ids=["code", "a module", "a module alone", "a path"],
)
@pytest.mark.parametrize("older", [False, True], ids=["zip", "pickle"])
def test_a_file_that_needs_code_to_run_is_refused_without_advice_to_run_it(
    tmp_path: Path, content: Any, held: str, older: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not older)
    with pytest.raises(ArtifactError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: must hold tensors and plain values only: it holds {held}, and to make one would "
        "run code of the file. Save its state_dict() alone where it comes from."
    )
    assert "must not run" not in capfd.readouterr().out


def test_a_damaged_pickle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"\x80\x02}")
    with pytest.raises(ArtifactError, match=re.escape(f"{path}: must hold tensors and plain")):
        load_torch(path)


def test_google_npz_in_capitals_is_handed_to_timm(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.zeros(2))
    (tmp_path / "w.npz").rename(tmp_path / "W.NPZ")
    with pytest.raises(ArtifactError, match=r"W\.NPZ: not a checkpoint of this model \(.*JAX"):
        load(tmp_path / "W.NPZ")
