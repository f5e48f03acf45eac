"""int8 for ONNX Runtime on CPU: weights and the products with them, calibrated on real images.

The copy is made from the float32 ``model.onnx`` and stands beside it, self-contained. Layers with
weights compute in 8 bits; LayerNorm, Softmax, GELU, the products of attention, the layer that reads
the image and the one that writes the logits stay float, as these lose most and cost least.

x86 CPUs with VNNI (Cascade Lake, Zen 4 and newer) multiply all 8 bits exactly. Older ones add pairs
of products in 16 bits, which can saturate: quantise with ``seven_bit`` for those.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from glora_deploy.atomic import flush, write_durable
from glora_deploy.errors import ExportError
from glora_deploy.image_set import ImageSet, TaskData
from glora_deploy.manifest import Manifest
from glora_deploy.preprocess import Preprocessing, preprocess_batch
from glora_deploy.tensor_file import map_tensors

from .files import INT8_FILE, INT8_REPORT_FILE, MODEL_FILE, WEIGHTS_FILE
from .inputs import data_words
from .int8_report import Batch, Latency, QuantizeReport, compare_models, time_models
from .runtime import PREPROCESSED, OnnxSession, write_int8
from .skeleton import layer_of

BATCH = 8
"""Images per calibration run, and the larger of the two batches that are timed."""

N_NOISE = 64
"""Images of noise that the two models are compared on where the task's data are not at hand."""

_UNLIMITED = 2**62
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
    seven_bit: bool = False
    """Leave out one bit of each weight, for x86 CPUs without VNNI."""
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
            quantiser left out a layer, or more accuracy is lost than allowed. Neither file is then
            there, not even from an earlier run.
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
        calibration = (batch.images for batch in images.calibration())
        write_int8(model, draft, nodes, calibration, seven_bit=config.seven_bit)
        _finish(draft, model, nodes)
        on_step(f"comparing on {images.data}")
        before = OnnxSession(folder / MODEL_FILE, threads=config.threads)
        after = OnnxSession(draft, threads=config.threads)
        accuracy, comparison, n_test = compare_models(before, after, images.test())
        report = QuantizeReport(
            task=manifest.task,
            version=manifest.version,
            adapter_sha256=manifest.adapter.sha256,
            data=images.data,
            n_calibration=images.n_calibration,
            n_test=n_test,
            accuracy=accuracy,
            comparison=comparison,
            max_loss=config.max_loss,
            float_bytes=float_bytes,
            int8_bytes=draft.stat().st_size,
            latency=_time(before, after, images),
            threads=config.threads,
            seven_bit=config.seven_bit,
            quantized=len(nodes),
            kept_float=kept,
        )
        if report.loss > config.max_loss:
            raise ExportError(_refusal(report))
        flush(draft)
        draft.replace(folder / INT8_FILE)
    write_durable(folder / INT8_REPORT_FILE, report.to_json())
    return report


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


def _finish(path: Path, float_model: onnx.ModelProto, nodes: Sequence[str]) -> None:
    """Check what the quantiser wrote, and say in its metadata what it is."""
    model = onnx.load_model(path)
    signed = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    weights = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in signed
    }
    by_name = {node.name: node for node in model.graph.node}
    missed = [name for name in nodes if by_name[name].input[1] not in weights]
    if missed:
        raise ExportError(
            f"{INT8_FILE}: every chosen layer must be quantised, got {len(missed)} of {len(nodes)} "
            f"left out: {', '.join(missed[:3])}."
        )
    props = {prop.key: prop.value for prop in float_model.metadata_props}
    props.pop(PREPROCESSED)
    onnx.helper.set_model_props(model, {**props, "precision": "int8"})
    model.producer_name = float_model.producer_name
    model.producer_version = float_model.producer_version
    path.write_bytes(model.SerializeToString())


def _time(before: OnnxSession, after: OnnxSession, images: _Images) -> tuple[Latency, ...]:
    first = next(images.test()).images
    full = np.resize(first, (BATCH, *first.shape[1:]))
    return tuple(time_models(before, after, full[:n]) for n in (1, BATCH))


def _refusal(report: QuantizeReport) -> str:
    lost = f"loses {100 * report.loss:.1f} points of top-1"
    if report.accuracy is not None:
        lost += f" ({report.accuracy.before:.1%} to {report.accuracy.after:.1%})"
    return (
        f"{report.task}/{report.version}: int8 must lose at most {100 * report.max_loss:g} "
        f"percentage points, {lost} on {report.n_test} images. Keep layers in float (--keep-float "
        "'blocks.*.mlp.fc2'), calibrate on more images (--calibration-images), or allow more "
        "(--max-loss)."
    )


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
