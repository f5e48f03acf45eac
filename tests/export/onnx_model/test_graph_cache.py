from __future__ import annotations

import logging
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from glora_deploy.export.onnx_model.graph_cache import UNREAD, GraphCache, GraphSpec

N_CLASSES = 5


def make_spec(**changes: object) -> GraphSpec:
    facts: dict[str, object] = {
        "architecture": "flat",
        "model_args": {},
        "n_classes": N_CLASSES,
        "input_size": (3, 4, 4),
    }
    return GraphSpec(**{**facts, **changes})  # type: ignore[arg-type]


class Builder:
    """Gives a graph, which the tracer has its own tests for, and counts how often."""

    calls = 0

    def __call__(self) -> onnx.ModelProto:
        self.calls += 1
        ends = [
            onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", N_CLASSES])
            for name in ("image", "logits")
        ]
        node = onnx.helper.make_node("Identity", ["image"], ["logits"])
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]))
        onnx.helper.set_model_props(model, {UNREAD: "[]"})
        return model


def test_the_second_task_reads_the_skeleton_of_the_first(tmp_path: Path) -> None:
    cache, build = GraphCache(tmp_path / "skeletons"), Builder()
    first = cache.get(make_spec(), build)
    assert cache.get(make_spec(), build) == first
    assert build.calls == 1
    assert [p.name for p in cache.folder.glob("*.onnx")] == [f"{make_spec().key()}.onnx"]


def test_another_architecture_has_another_skeleton(tmp_path: Path) -> None:
    cache, build = GraphCache(tmp_path), Builder()
    cache.get(make_spec(), build)
    cache.get(make_spec(architecture="spare"), build)
    assert build.calls == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "other"},
        {"model_args": {"depth": 2}},
        {"n_classes": 7},
        {"input_size": (3, 4, 8)},
        {"opset": 18},
    ],
)
def test_whatever_shapes_the_graph_shapes_the_key(changes: dict[str, object]) -> None:
    assert make_spec(**changes).key() != make_spec().key()


def test_another_library_version_means_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_spec().key()
    monkeypatch.setattr("glora_deploy.store.graph_key.version", lambda library: "0")
    assert make_spec().key() != before


@pytest.mark.parametrize("length", [0, -1], ids=["empty", "cut"])
def test_a_damaged_skeleton_is_built_again(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache, build = GraphCache(tmp_path), Builder()
    first = cache.get(make_spec(), build)
    path = tmp_path / f"{make_spec().key()}.onnx"
    path.write_bytes(path.read_bytes()[:length])
    with caplog.at_level(logging.WARNING):
        assert cache.get(make_spec(), build) == first
    assert f"{path} is damaged" in caplog.text
    assert cache.get(make_spec(), build) == first
    assert build.calls == 2


def test_a_skeleton_of_another_class_count_does_not_enter_the_cache(tmp_path: Path) -> None:
    cache, spec = GraphCache(tmp_path), make_spec(n_classes=N_CLASSES + 1)
    with pytest.raises(ValueError, match="the skeleton must have 6 classes, got 5"):
        cache.get(spec, Builder())
    assert not list(tmp_path.iterdir())
