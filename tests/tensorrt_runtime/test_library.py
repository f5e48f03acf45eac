from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType

import pytest

from glora_deploy.errors import ExportError, MissingDependencyError
from glora_deploy.tensorrt_runtime import library
from glora_deploy.tensorrt_runtime.library import Gpu, listed, load_tensorrt


def install(monkeypatch: pytest.MonkeyPatch, *names: str, gpu: bool) -> dict[str, ModuleType]:
    """Pretend that these libraries, and no others, are installed on a machine with a GPU or not."""
    modules = {}
    for name in ("tensorrt", "tensorrt_rtx"):
        if name in names:
            modules[name] = ModuleType(name)
            modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, modules[name])
        else:
            monkeypatch.setitem(sys.modules, name, None)
    found = Gpu("a card", "8.6") if gpu else None
    monkeypatch.setattr(library, "find_gpu", lambda: found)
    return modules


@pytest.mark.parametrize(
    ("installed", "gpu", "chosen"),
    [
        (("tensorrt", "tensorrt_rtx"), True, "tensorrt"),
        (("tensorrt",), True, "tensorrt"),
        (("tensorrt", "tensorrt_rtx"), False, "tensorrt_rtx"),
        (("tensorrt_rtx",), True, "tensorrt_rtx"),
        (("tensorrt_rtx",), False, "tensorrt_rtx"),
    ],
)
def test_auto_takes_the_data_centre_library_only_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], gpu: bool, chosen: str
) -> None:
    modules = install(monkeypatch, *installed, gpu=gpu)
    assert load_tensorrt("auto") == (modules[chosen], chosen)


@pytest.mark.parametrize("backend", ["tensorrt", "rtx"])
def test_a_backend_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    modules = install(monkeypatch, "tensorrt", "tensorrt_rtx", gpu=True)
    name = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}[backend]
    assert load_tensorrt(backend) == (modules[name], name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("installed", "backend", "message"),
    [
        (
            (),
            "auto",
            "a TensorRT plan needs tensorrt and a GPU (extra 'gpu'), or on any machine "
            "tensorrt_rtx: pip install 'glora-deploy[rtx]'",
        ),
        ((), "rtx", "a TensorRT plan needs tensorrt_rtx: pip install 'glora-deploy[rtx]'"),
        (
            ("tensorrt_rtx",),
            "tensorrt",
            "a TensorRT plan needs tensorrt: pip install 'glora-deploy[gpu]'",
        ),
        (("tensorrt",), "rtx", "a TensorRT plan needs tensorrt_rtx"),
    ],
)
def test_a_missing_library_is_answered_with_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], backend: str, message: str
) -> None:
    install(monkeypatch, *installed, gpu=False)
    with pytest.raises(MissingDependencyError) as error:
        load_tensorrt(backend)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_the_data_centre_library_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "tensorrt", gpu=False)
    with pytest.raises(ExportError, match=r"must have a GPU, got none\. Use rtx"):
        load_tensorrt("tensorrt")


def test_a_library_that_cannot_be_loaded_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = 'raise ImportError("libnvinfer.so.11: cannot open shared object file")'
    (tmp_path / "tensorrt_rtx.py").write_text(broken)
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExportError, match=r"tensorrt_rtx must be loadable, got: libnvinfer"):
        load_tensorrt("rtx")


def test_long_lists_of_problems_are_cut_and_counted() -> None:
    assert listed([]) == ""
    assert listed(["a", "b", "c"]) == "a; b; c"
    assert listed(["a", "b", "c", "d", "e"]) == "a; b; c (2 more)"
