import sys
from pathlib import Path

import numpy as np
import pytest

from glora_deploy.errors import ExportError, MissingDependencyError
from glora_deploy.export.onnx_model.ort_session import OnnxSession, has_cuda
from glora_deploy.export.onnx_model.write import attach, write_onnx
from onnx_networks import N_CLASSES, make_images, make_network, make_skeleton, write_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_weights(make_network("vit"), tmp_path)
    write_onnx(tmp_path, make_skeleton("vit"), {})
    return tmp_path


def test_logits_are_float32_one_row_an_image(folder: Path) -> None:
    logits = OnnxSession(folder / "model.onnx", 1).logits(make_images("vit", 3))
    assert (logits.dtype, logits.shape) == (np.float32, (3, N_CLASSES))


def test_a_model_in_memory_reads_its_weights_from_the_folder(folder: Path) -> None:
    model = attach(make_skeleton("vit"), folder / "model.safetensors", {})
    (folder / "model.onnx").rename(folder / "other.onnx")
    session = OnnxSession(model, folder=folder)
    images = make_images("vit")
    (name, logits), *others = session.all_outputs(images).items()
    assert (name, others) == ("logits", [])
    np.testing.assert_array_equal(logits, OnnxSession(folder / "other.onnx").logits(images))


def test_without_onnx_runtime_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'glora-deploy\[cpu\]'"):
        OnnxSession(folder / "model.onnx")


def test_without_cuda_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match=r"pip install 'glora-deploy\[gpu\]'"):
        OnnxSession(folder / "model.onnx", device="cuda")


def test_a_device_that_onnx_runtime_silently_replaces_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FallsBack:
        def __init__(self, *args: object, **options: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", FallsBack)
    with pytest.raises(ExportError, match="device must be usable, got no CUDA"):
        OnnxSession(folder / "model.onnx", device="cuda")


def test_float32_products_are_not_rounded_to_tf32_on_a_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    class Records:
        def __init__(self, *args: object, providers: object) -> None:
            asked.append(providers)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_outputs(self) -> list[object]:
            return []

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert not has_cuda()
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", Records)
    assert has_cuda()
    OnnxSession(folder / "model.onnx", device="cuda")
    assert asked == [[("CUDAExecutionProvider", {"use_tf32": "0"})]]


def test_without_onnx_runtime_there_is_no_cuda_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert not has_cuda()


def test_a_damaged_model_is_refused_in_one_line(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"model\.onnx: ONNX Runtime must load it, got: .+$"):
        OnnxSession(folder / "model.onnx")
