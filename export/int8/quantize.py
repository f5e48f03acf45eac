"""int8 for ONNX Runtime on CPU: weights and the products with them, calibrated on real images.

The copy is made from the float32 ``model.onnx`` and stands beside it, self-contained. Layers with
weights compute in 8 bits; LayerNorm, Softmax, GELU, the products of attention, the layer that reads
the image and the one that writes the logits stay float, as these lose most and cost least.

Weights use 7 bits unless the CPUs that shall serve are named: some x86 CPUs add 8-bit products in
16 bits, as :mod:`.saturation` explains. The file is then right on every CPU, which is read off the
weights that were written, and what it costs is measured on the CPU at hand, which is recorded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from glora_deploy.data.image_set import ImageSet, TaskData
from glora_deploy.data.preprocess import Preprocessing, preprocess_batch
from glora_deploy.errors import ExportError
from glora_deploy.machine import Machine
from glora_deploy.store.atomic_files import flush, write_durable
from glora_deploy.store.export_record import INT8_FILE, INT8_REPORT_FILE, MODEL_FILE, WEIGHTS_FILE
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.mapped_safetensors import map_tensors

from ..onnx_model.graph_cache import layer_of
from ..onnx_model.ort_session import PREPROCESSED, OnnxSession, multiplies_exactly, write_int8
from ..parity_check.inputs import data_words
from .report import Batch, Latency, QuantizeReport, compare_models, time_models
from .saturation import SUM_MAX, Target, largest_sum

BATCH = 8
"""Images per calibration run, and the larger of the two batches that are timed."""

N_NOISE = 64
"""Images of noise that the two models are compared on where the task's data are not at hand."""

_UNLIMITED = 2**62
_WAYS_OUT = (
    "Keep layers in float (--keep-float 'blocks.*.mlp.fc2'), calibrate on more images "
    "(--calibration-images), or allow more (--max-loss)."
)
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeConfig:
    """How to quantise, and what it may cost."""

    max_loss: float = 0.01
    """Top-1 accuracy that may be lost, 0 to 1: 0.01 is one percentage point."""
    n_calibration: int = 128
    """Validation images to take the ranges of activations from."""
    keep_float: tuple[str, ...] = ()
    """Layers that stay float: dotted names, or patterns such as ``blocks.*.mlp.fc2``."""
    target: Target = "any"
    """CPUs that the file is for; all but ``any`` get 8 bits of each weight."""
    threads: int | None = None
    """For the comparison and its timing; ONNX Runtime's own choice if None."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_loss <= 1:
            raise ValueError(f"max_loss must be 0 to 1, got {self.max_loss}")
        if self.n_calibration < 1:
            raise ValueError(f"n_calibration must be at least 1, got {self.n_calibration}")


def quantize(
    folder: Path,
    manifest: Manifest,
    task: TaskData | None,
    config: QuantizeConfig,
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> QuantizeReport:
    """Write ``model.int8.onnx`` and ``int8.json`` beside a float32 ONNX model.

    Calibrated on the task's validation images and compared on all its test images; without data, on
    seeded noise, whose answer says little about real images.

    Args:
        folder: Holds ``model.onnx``, in float32, and its weights.
        manifest: Of the artifact the model was exported from.
        task: Its data; None if not at hand.
        config: How.
        on_step: Told what happens next.

    Raises:
        ExportError: If there is no float32 model, a pattern of ``keep_float`` matches no layer, the
            quantiser left out a layer or wrote weights that can saturate, or more accuracy is lost
            than allowed. Neither file is then there, not even from an earlier run.
        MissingDependencyError: If ONNX Runtime is missing.
        DataError: If an image cannot be read.
    """
    for name in (INT8_FILE, INT8_REPORT_FILE):
        (folder / name).unlink(missing_ok=True)
    on_step("folding the float model")
    model, float_bytes = _read_folded(folder)
    nodes, kept = _choose(model, config.keep_float)
    images = _Images.of(manifest, task, config.n_calibration)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".int8.") as scratch:
        draft = Path(scratch) / INT8_FILE
        on_step(f"calibrating on {images.n_calibration} images")
        largest = _write_draft(draft, model, nodes, images, config.target)
        on_step(f"comparing on {images.data}")
        report = QuantizeReport(
            task=manifest.task,
            version=manifest.version,
            adapter_sha256=manifest.adapter.sha256,
            n_calibration=images.n_calibration,
            max_loss=config.max_loss,
            float_bytes=float_bytes,
            int8_bytes=draft.stat().st_size,
            threads=config.threads,
            target=config.target,
            weight_bits=7 if _seven_bit(config.target) else 8,
            largest_sum=largest,
            quantized=len(nodes),
            kept_float=kept,
            **_measure(folder / MODEL_FILE, draft, images, config.threads),
        )
        if report.loss > config.max_loss:
            raise ExportError(f"{report.task}/{report.version}: {report.problem}. {_WAYS_OUT}")
        flush(draft)
        draft.replace(folder / INT8_FILE)
    write_durable(folder / INT8_REPORT_FILE, report.to_json())
    return report


def measure_again(
    folder: Path,
    manifest: Manifest,
    task: TaskData | None,
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> QuantizeReport:
    """Compare an int8 model with its float model once more, on this machine.

    Args:
        folder: Holds both, and ``int8.json``. Not modified.
        manifest: Of the artifact they were exported from.
        task: Its data; None if not at hand.
        on_step: Told what happens next.

    Returns:
        The report with this machine's figures; it may lose more than was allowed.

    Raises:
        ArtifactError: If ``int8.json`` is missing or damaged.
        MissingDependencyError: If ONNX Runtime is missing.
        DataError: If an image cannot be read.
    """
    report = QuantizeReport.read(folder)
    images = _Images.of(manifest, task, report.n_calibration)
    on_step(f"comparing int8 on {images.data}")
    found = _measure(folder / MODEL_FILE, folder / INT8_FILE, images, report.threads)
    return report.model_copy(update=found)


def _measure(before: Path, after: Path, images: _Images, threads: int | None) -> dict[str, Any]:
    """Those fields of a report that hold for one machine."""
    float_model = OnnxSession(before, threads=threads)
    int8_model = OnnxSession(after, threads=threads)
    accuracy, comparison, n_test = compare_models(float_model, int8_model, images.test())
    return {
        "data": images.data,
        "n_test": n_test,
        "accuracy": accuracy,
        "comparison": comparison,
        "latency": _time(float_model, int8_model, images),
        "machine": Machine.here(),
        "exact": multiplies_exactly(),
    }


def _read_folded(folder: Path) -> tuple[onnx.ModelProto, int]:
    """The float model with its weights inside and all constants folded, and the bytes it had.

    The exported graph keeps torch's weights, ``(d_out, d_in)``, and transposes them on the way to
    each product; the quantiser takes only a constant for a weight and would leave those products
    float without a word. Folding leaves none of them, and joins BatchNorm to its convolution.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        raise ExportError(f"{path}: must be a file, none is here. Export it with --fmt onnx.")
    model = ir.load(path)
    precision = model.metadata_props.get("precision", "fp32")
    if precision != "fp32":
        raise ExportError(f"{path}: must be in fp32 to be quantised, got {precision}.")
    outside = [
        value
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]
    files = [path, folder / WEIGHTS_FILE] if outside else [path]
    stored = map_tensors(folder / WEIGHTS_FILE) if outside else {}
    for value in outside:
        assert value.name is not None
        value.const_value = ir.tensor(stored[value.name], name=value.name)
    for node in model.graph:
        before = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        if node.op_type == "BatchNormalization" and before is not None:
            # A convolution that a norm is folded into would take the name of the norm.
            node.metadata_props.update(before.metadata_props)
    from onnxscript.optimizer import optimize_ir  # brings torch

    optimize_ir(
        model,
        should_fold=lambda _: True,
        input_size_limit=_UNLIMITED,
        output_size_limit=_UNLIMITED,
    )
    return ir.to_proto(model), sum(file.stat().st_size for file in files)


def _choose(model: onnx.ModelProto, keep_float: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Names of the nodes to quantise, and of the layers with weights that stay float."""
    constants = {tensor.name for tensor in model.graph.initializer}
    weighted = [
        node
        for node in model.graph.node
        if node.op_type in _WEIGHTED and node.input[1] in constants
    ]
    layers = {node.name: layer_of(node) or node.name for node in weighted}
    for pattern in keep_float:
        if not any(fnmatchcase(layer, pattern) for layer in layers.values()):
            raise ExportError(
                f"--keep-float: {pattern!r} must match a layer with weights, got none. "
                f"Layers here: {', '.join(list(layers.values())[:4])}, ..."
            )
    ends = (model.graph.input[0].name, model.graph.output[0].name)
    chosen = [
        node.name
        for node in weighted
        if not set(ends) & {*node.input, *node.output}
        and not any(fnmatchcase(layers[node.name], pattern) for pattern in keep_float)
    ]
    if not chosen:
        raise ExportError("int8: at least one layer must be left to quantise, got none.")
    return chosen, tuple(layers[name] for name in layers if name not in set(chosen))


def _seven_bit(target: Target) -> bool:
    return target == "any"


def _write_draft(
    path: Path, model: onnx.ModelProto, nodes: Sequence[str], images: _Images, target: Target
) -> int:
    """Quantise the nodes, check what the quantiser wrote, and say in its metadata what it is.

    Returns:
        What :func:`.saturation.largest_sum` reads off it.
    """
    calibration = (batch.images for batch in images.calibration())
    write_int8(model, path, nodes, calibration, seven_bit=_seven_bit(target))
    quantized = onnx.load_model(path)
    largest = _require_right(quantized, nodes, target)
    props = {prop.key: prop.value for prop in model.metadata_props}
    props.pop(PREPROCESSED)
    onnx.helper.set_model_props(quantized, {**props, "precision": "int8"})
    quantized.producer_name = model.producer_name
    quantized.producer_version = model.producer_version
    path.write_bytes(quantized.SerializeToString())
    return largest


def _require_right(model: onnx.ModelProto, nodes: Sequence[str], target: Target) -> int:
    """Refuse a layer that was left out and weights that can saturate; gives the largest sum."""
    weights = int8_weights(model)
    by_name = {node.name: node for node in model.graph.node}
    missed = [name for name in nodes if by_name[name].input[1] not in weights]
    if missed:
        raise ExportError(
            f"{INT8_FILE}: every chosen layer must be quantised, got {len(missed)} of {len(nodes)} "
            f"left out: {', '.join(missed[:3])}."
        )
    largest = largest_sum(weights.values())
    if target == "any" and largest > SUM_MAX:
        raise ExportError(
            f"{INT8_FILE}: two products must add up to at most {SUM_MAX} for any CPU, got weights "
            f"that reach {largest}. Name the CPUs that shall serve (--int8-target)."
        )
    return largest


def int8_weights(model: onnx.ModelProto) -> dict[str, tuple[NDArray[np.int8], int]]:
    """The signed constants of a quantised model, and the axis of their output channels.

    By the name under which a product reads them; without biases, which have 32 bits.
    """
    signed = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    return {
        node.output[0]: (
            onnx.numpy_helper.to_array(signed[node.input[0]]),
            next((a.i for a in node.attribute if a.name == "axis"), 1),
        )
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in signed
    }


def _time(before: OnnxSession, after: OnnxSession, images: _Images) -> tuple[Latency, ...]:
    first = next(images.test()).images
    full = np.resize(first, (BATCH, *first.shape[1:]))
    return tuple(time_models(before, after, full[:n]) for n in (1, BATCH))


@dataclass(frozen=True, slots=True)
class _Images:
    """What to calibrate on and what to compare on."""

    task: TaskData | None
    preprocessing: Preprocessing
    n_calibration: int
    data: str

    @classmethod
    def of(cls, manifest: Manifest, task: TaskData | None, n_calibration: int) -> _Images:
        preprocessing = Preprocessing(**manifest.preprocessing.model_dump())
        if task is None:
            return cls(None, preprocessing, n_calibration, "seeded noise: no data at hand")
        n = min(n_calibration, len(task.val))
        return cls(
            task, preprocessing, n, f"{len(task.test)} test images of {data_words(task.spec)}"
        )

    def calibration(self) -> Iterator[Batch]:
        if self.task is None:
            return self._noise(self.n_calibration, seed=1)
        chosen = np.random.default_rng(0).permutation(len(self.task.val))[: self.n_calibration]
        return self._batches(self.task.val.select(np.sort(chosen)))

    def test(self) -> Iterator[Batch]:
        if self.task is None:
            return self._noise(N_NOISE, seed=2)
        return self._batches(self.task.test)

    def _batches(self, images: ImageSet) -> Iterator[Batch]:
        for start in range(0, len(images), BATCH):
            indices = range(start, min(start + BATCH, len(images)))
            loaded = preprocess_batch([images.image(i) for i in indices], self.preprocessing)
            yield Batch(loaded, images.labels[start : start + BATCH])

    def _noise(self, n: int, *, seed: int) -> Iterator[Batch]:
        rng = np.random.default_rng(seed)
        for start in range(0, n, BATCH):
            shape = (min(BATCH, n - start), 3, *self.preprocessing.size)
            yield Batch(rng.standard_normal(shape, np.float32), None)
