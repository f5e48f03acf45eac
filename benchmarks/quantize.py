"""What int8 costs in accuracy and brings in speed on one CPU, beside ONNX Runtime's own defaults.

Everything printed comes from this one run, on this machine::

    python benchmarks/quantize.py --data photos --threads 2
    python benchmarks/quantize.py --data photos --emulator "qemu-x86_64 -cpu EPYC-Rome"

Each row is a way to write the weights: 7 bits of each, which are right on every CPU; all 8, whose
products x86 CPUs without VNNI saturate; and the same 8 stored as unsigned numbers, which ONNX
Runtime multiplies exactly everywhere by kernels of 16 bits. ``--emulator`` runs each file on such a
CPU as well, on the first test images: the last two columns are agreement and error there.

The network is a backbone with a classifier fitted to its features on the training images (ridge
regression, in closed form); a merged GLoRA network has the same layers. Ranges are calibrated on
validation images, and all figures are of test images.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import quantize_static

from glora_deploy.backbones.load import Backbone, load_backbone
from glora_deploy.data.load import ImageSet, TaskData, load_task
from glora_deploy.data.preprocess import preprocess_batch
from glora_deploy.export.int8.quantize import QuantizeConfig, quantize
from glora_deploy.export.int8.report import Batch, compare_models
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.glora.forms import LayerForms
from glora_deploy.glora.supernet_layers import find_layers
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.manifest import LayerRecord, ManifestDraft
from glora_deploy.store.manifest_fields import TrainingRecord
from glora_deploy.store.store import ArtifactStore

BATCH = 8
ROW = "{:<34}{:>8}{:>8}{:>7}{:>9}{:>8}{:>9}{:>9}{:>8}"
ELSEWHERE = """
import sys
import numpy as np
import onnxruntime
model, images, out = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
images = np.load(images, mmap_mode="r")
parts = [images[start : start + 8] for start in range(0, len(images), 8)]
np.save(out, np.concatenate([session.run(["logits"], {"image": part})[0] for part in parts]))
"""
"""All that runs in the emulator: images in, logits out."""


def batches(images: ImageSet, backbone: Backbone) -> Iterator[Batch]:
    """Preprocessed images in order."""
    for start in range(0, len(images), BATCH):
        stop = min(start + BATCH, len(images))
        loaded = [images.image(index) for index in range(start, stop)]
        yield Batch(preprocess_batch(loaded, backbone.preprocessing), images.labels[start:stop])


@torch.inference_mode()
def fit_classifier(
    backbone: Backbone, task: TaskData, n_images: int
) -> dict[str, NDArray[np.float32]]:
    """A linear classifier that solves ridge regression on the features of the backbone."""
    model = backbone.build(task.n_classes)
    (name,) = backbone.classifier
    head = model.get_submodule(name)
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    chosen = np.sort(np.random.default_rng(0).permutation(len(task.train))[:n_images])
    train = task.train.select(chosen)
    for batch in batches(train, backbone):
        model(torch.from_numpy(batch.images))
    hook.remove()
    x = torch.cat(seen).double()
    mean = x.mean(0)
    x -= mean
    targets = torch.eye(task.n_classes, dtype=torch.float64)[torch.from_numpy(train.labels)]
    gram = x.T @ x
    ridge = 1e-2 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(gram + ridge, x.T @ (targets - targets.mean(0))).T
    bias = targets.mean(0) - weight @ mean
    return {f"{name}.weight": weight.float().numpy(), f"{name}.bias": bias.float().numpy()}


def store_task(
    root: Path, backbone: Backbone, task: TaskData, classifier: dict[str, NDArray[np.float32]]
) -> tuple[ArtifactStore, Artifact]:
    """A store with the backbone and a delta that changes nothing but the classifier."""
    store = ArtifactStore.create(root)
    frozen = {name: tensor.numpy() for name, tensor in backbone.tensors.items()}
    store.put_backbone(backbone.fingerprint, frozen, backbone.config())
    model = backbone.build(task.n_classes)
    layers = find_layers(model, kinds=("linear",), exclude=backbone.classifier)
    unknown = dict.fromkeys(TrainingRecord.model_fields)
    draft = ManifestDraft(
        backbone=backbone.record(),
        preprocessing=backbone.preprocessing_record(),
        labels=task.classes,
        layers={name: LayerRecord.of(shape, LayerForms()) for name, shape in layers.items()},
        training=TrainingRecord(**{**unknown, "method": "ridge", "versions": {}, "settings": {}}),
    )
    return store, store.put("benchmark", classifier, draft)


class Feed:
    """Calibration images as ONNX Runtime asks for them."""

    def __init__(self, images: Iterator[Batch]) -> None:
        self._images = images

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch; None after the last."""
        batch = next(self._images, None)
        return None if batch is None else {"image": batch.images}


def fastest_ms(
    before: OnnxSession, after: OnnxSession, images: NDArray[np.float32], limit_s: float = 10
) -> tuple[float, float]:
    """Fastest call of each, in turns: other programs on this machine only ever add to it."""
    best = [float("inf")] * 2
    start = time.perf_counter()
    while time.perf_counter() - start < limit_s:
        for index, session in enumerate((before, after)):
            begin = time.perf_counter()
            session.logits(images)
            best[index] = min(best[index], 1e3 * (time.perf_counter() - begin))
    return best[0], best[1]


class Emulated:
    """Stands in for a session: the model on a CPU that an emulator puts on."""

    def __init__(self, emulator: str, model: Path) -> None:
        self._emulator = shlex.split(emulator)
        self._model = model

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of all images, computed by a process of its own."""
        with tempfile.TemporaryDirectory() as folder:
            into, out = Path(folder) / "images.npy", Path(folder) / "logits.npy"
            np.save(into, images)
            command = [sys.executable, "-c", ELSEWHERE, str(self._model), str(into), str(out)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            done = subprocess.run(
                [*self._emulator, *command], env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            found: NDArray[np.float32] = np.load(out)
        return found


def as_unsigned(signed: Path, out: Path) -> None:
    """The same int8 model with 128 added to every weight and to its zero point."""
    model = onnx.load(signed)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            shifted = onnx.numpy_helper.to_array(tensor).astype(np.int16) + 128
            array = onnx.numpy_helper.from_array(shifted.astype(np.uint8), tensor.name)
            tensor.CopyFrom(array)
    onnx.save(model, out)


def elsewhere(emulator: str, before: OnnxSession, int8: Path, images: Iterator[Batch]) -> str:
    """Agreement with the float model and error of an int8 file on an emulated CPU, two columns."""
    whole = Batch(np.concatenate([batch.images for batch in images]), None)
    _, comparison, _ = compare_models(before, Emulated(emulator, int8), [whole])
    return f"{comparison.agreement:>10.2%}{comparison.error:>8.3f}"


def print_row(
    name: str,
    folder: Path,
    int8: Path,
    backbone: Backbone,
    task: TaskData,
    threads: int | None,
    emulator: str | None,
    n_emulated: int,
) -> None:
    """Compare one int8 file with the float model of a folder, on one line."""
    before = OnnxSession(folder / "model.onnx", threads=threads)
    after = OnnxSession(int8, threads=threads)
    accuracy, comparison, _ = compare_models(before, after, batches(task.test, backbone))
    assert accuracy is not None
    images = next(batches(task.test, backbone)).images
    one, many = (fastest_ms(before, after, images[:n]) for n in (1, BATCH))
    print(
        ROW.format(
            name,
            f"{accuracy.before:.2%}",
            f"{accuracy.after:.2%}",
            f"{accuracy.lost}/{accuracy.gained}",
            f"{comparison.agreement:.2%}",
            f"{comparison.error:.3f}",
            f"{int8.stat().st_size / 1e6:.1f}",
            f"{one[0] / one[1]:.2f}",
            f"{many[0] / many[1]:.2f}",
        )
        + f"   {one[0]:.2f} -> {one[1]:.2f}, {many[0]:.2f} -> {many[1]:.2f}",
        end="",
        flush=True,
    )
    few = itertools.islice(batches(task.test, backbone), -(-n_emulated // BATCH))
    print(elsewhere(emulator, before, int8, few) if emulator else "")


def quantize_as_onnx_runtime_does(
    folder: Path, out: Path, backbone: Backbone, task: TaskData, n_calibration: int
) -> None:
    """Quantise the exported file with every setting at ONNX Runtime's default."""
    model = onnx.load(folder / "model.onnx")
    calibration = task.val.select(np.arange(min(n_calibration, len(task.val))))
    quantize_static(model, str(out), Feed(batches(calibration, backbone)))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="demo-vit")
    parser.add_argument("--checkpoint", help="local weights of the backbone, or random:SEED")
    parser.add_argument("--input-size", type=int)
    parser.add_argument("--data", default="photos", help="a task, as training takes it")
    parser.add_argument("--train-images", type=int, default=1000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--calibration-images", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--emulator", help="command that runs a program on a CPU without VNNI")
    parser.add_argument("--emulated-images", type=int, default=48)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # ONNX Runtime's, about its own defaults
    backbone = load_backbone(
        arguments.backbone, checkpoint=arguments.checkpoint, input_size=arguments.input_size
    )
    task = load_task(arguments.data, seed=0)
    test = np.sort(np.random.default_rng(1).permutation(len(task.test))[: arguments.test_images])
    task = TaskData(
        **{name: getattr(task, name) for name in ("name", "spec", "seed", "classes")},
        train=task.train,
        val=task.val,
        test=task.test.select(test),
    )
    classifier = fit_classifier(backbone, task, arguments.train_images)
    with tempfile.TemporaryDirectory() as root:
        store, artifact = store_task(Path(root) / "store", backbone, task, classifier)
        folder = export(store, artifact, ExportConfig(formats=("onnx",), n_images=1)).folder
        size = sum((folder / f"model.{e}").stat().st_size for e in ("onnx", "safetensors"))
        print(
            f"{backbone.architecture} ({backbone.source}) at {backbone.input_size}, "
            f"{size / 1e6:.1f} MB in float, {len(task.test)} test images of {task.spec}\n"
        )
        head = ("float", "int8", "-/+", "agree", "error", "MB", "batch 1", "batch 8")
        print(ROW.format("", *head) + "   ms" + ("   elsewhere" if arguments.emulator else ""))

        def row(name: str, int8: Path) -> None:
            how = (arguments.threads, arguments.emulator, arguments.emulated_images)
            print_row(name, folder, int8, backbone, task, *how)

        naive, unsigned = (Path(root) / f"{name}.onnx" for name in ("naive", "unsigned"))
        count = arguments.calibration_images
        quantize_as_onnx_runtime_does(folder, naive, backbone, task, count)
        row("ONNX Runtime's defaults", naive)
        for name, changes in {
            "7 bits": {},
            "7 bits, blocks.*.mlp.fc2 in float": {"keep_float": ("blocks.*.mlp.fc2",)},
            "8 bits, --int8-target vnni": {"target": "vnni"},
        }.items():
            config = QuantizeConfig(
                max_loss=1, n_calibration=count, threads=arguments.threads, **changes
            )
            start = time.perf_counter()
            quantize(folder, artifact.manifest, task, config)
            seconds = time.perf_counter() - start
            out = folder / "model.int8.onnx"
            row(f"{name} ({seconds:.0f} s)", out)
        as_unsigned(folder / "model.int8.onnx", unsigned)
        row("8 bits, unsigned", unsigned)


if __name__ == "__main__":
    main()
