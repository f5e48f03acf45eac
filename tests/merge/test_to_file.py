from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from glora_deploy.errors import BackboneMismatchError, NonFiniteError
from glora_deploy.glora.forms import LayerForms, LayerShape
from glora_deploy.merge.to_file import write_merged
from glora_deploy.precision import PRECISIONS
from reference import reference_merge

LAYERS = {
    "conv": LayerShape(kind="conv", d_out=6, d_in=2 * 3 * 5, bias=True),
    "norm": LayerShape(kind="affine", d_out=6, d_in=1, bias=True),
    "fc": LayerShape(kind="linear", d_out=7, d_in=4, bias=False),
}
PATHS = {
    "conv": LayerForms.parse("A=lora:2 B=vector C=lora:3 D=scalar E=vector"),
    "norm": LayerForms.parse("A=vector B=scalar E=vector"),
    "fc": LayerForms.parse("B=lora:2"),
}


def make_backbone_file(path: Path) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    shapes = {
        "conv.weight": (6, 2, 3, 5),
        "conv.bias": (6,),
        "norm.weight": (6,),
        "norm.bias": (6,),
        "fc.weight": (7, 4),
        "pos": (1, 3),
    }
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    save_file({**tensors, "steps": np.array(3, np.int64)}, path)
    return tensors


def make_delta() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    shapes = {
        f"{layer}.{name}": shape
        for layer, paths in PATHS.items()
        for name, shape in paths.tensor_shapes(LAYERS[layer]).items()
    }
    shapes |= {"head.weight": (3, 7), "head.bias": (3,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(path: Path, backbone: Path, precision: str = "fp32", **changes: NDArray) -> None:  # type: ignore[type-arg]
    delta = {**make_delta(), **changes}
    write_merged(path, backbone, delta, LAYERS, precision=precision, metadata={"format": "pt"})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_layer_is_the_reference_merge_rounded_once_and_the_rest_is_copied(
    tmp_path: Path, precision: str
) -> None:
    frozen = make_backbone_file(tmp_path / "b")
    write(tmp_path / "m", tmp_path / "b", precision)
    found, delta, dtype = load_file(tmp_path / "m"), make_delta(), PRECISIONS[precision]
    assert found.keys() == frozen.keys() | {"steps", "head.weight", "head.bias"}
    for layer in LAYERS:
        w0 = frozen[f"{layer}.weight"]
        supports = {n.rpartition(".")[2]: v for n, v in delta.items() if n.startswith(f"{layer}.")}
        w, b = reference_merge(w0.reshape(len(w0), -1), frozen.get(f"{layer}.bias"), supports)
        expected = {f"{layer}.weight": w.reshape(w0.shape)} | (
            {} if b is None else {f"{layer}.bias": b}
        )
        for name, value in expected.items():
            assert found[name].dtype == dtype
            # Half an ulp of rounding, and one more where float64 sums differ in their last bit.
            one_ulp = np.abs(np.spacing(value.astype(dtype))).astype(np.float64)
            assert (np.abs(found[name].astype(np.float64) - value) <= one_ulp).all(), name
    for name in ("pos", "head.weight", "head.bias"):
        source = frozen.get(name, delta.get(name))
        assert source is not None
        np.testing.assert_array_equal(found[name], source.astype(dtype))
    assert found["steps"].dtype == np.int64
    assert found["steps"] == 3


def test_the_inputs_stay_as_they_were_and_the_bytes_repeat(tmp_path: Path) -> None:
    make_backbone_file(tmp_path / "b")
    before = (tmp_path / "b").read_bytes()
    write(tmp_path / "m1", tmp_path / "b")
    write(tmp_path / "m2", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == before
    assert (tmp_path / "m1").read_bytes() == (tmp_path / "m2").read_bytes()


@pytest.mark.parametrize("at_once", [0, 24, 28 * 4 + 24, 10**6])
def test_how_many_layers_go_at_once_changes_no_byte(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_backbone_file(tmp_path / "b")
    write(tmp_path / "m1", tmp_path / "b")
    monkeypatch.setattr("glora_deploy.merge.to_file.BYTES_AT_ONCE", at_once)
    write(tmp_path / "m2", tmp_path / "b")
    assert (tmp_path / "m1").read_bytes() == (tmp_path / "m2").read_bytes()


@pytest.mark.parametrize(
    ("name", "bad"), [("fc.B_d", np.inf), ("conv.E", np.nan), ("head.weight", -np.inf)]
)
def test_a_result_that_is_not_finite_is_named_and_leaves_no_file(
    tmp_path: Path, name: str, bad: float
) -> None:
    make_backbone_file(tmp_path / "b")
    tensor = make_delta()[name]
    tensor.flat[0] = bad
    with pytest.raises(NonFiniteError, match=rf"^{name.split('.')[0]}\.weight: .*in fp32"):
        write(tmp_path / "m", tmp_path / "b", **{name: tensor})
    assert not (tmp_path / "m").exists()


def test_values_beyond_fp16_are_refused_with_the_way_out(tmp_path: Path) -> None:
    make_backbone_file(tmp_path / "b")
    big = np.full((7, 2), 1e5, np.float32)
    with pytest.raises(NonFiniteError, match=r"fc\.weight: .*in fp16\. Export it in fp32\."):
        write(tmp_path / "m", tmp_path / "b", "fp16", **{"fc.B_d": big})


def test_a_backbone_without_an_adapted_layer_is_refused(tmp_path: Path) -> None:
    tensors = make_backbone_file(tmp_path / "b")
    save_file({n: t for n, t in tensors.items() if not n.startswith("fc")}, tmp_path / "b")
    with pytest.raises(BackboneMismatchError, match="has no layer fc, which the delta adapts"):
        write(tmp_path / "m", tmp_path / "b")


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    make_backbone_file(tmp_path / "b")
    code = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import {Path(__file__).stem} as t
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
try:
    t.write(Path({str(tmp_path)!r}) / "m", Path({str(tmp_path)!r}) / "b")
except OSError as error:
    print(type(error).__name__, (Path({str(tmp_path)!r}) / "m").exists())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["OSError", "False"], done.stderr


def test_bfloat16_files_hold_bfloat16(tmp_path: Path) -> None:
    make_backbone_file(tmp_path / "b")
    write(tmp_path / "m", tmp_path / "b", "bf16")
    assert load_file(tmp_path / "m")["fc.weight"].dtype == ml_dtypes.bfloat16
