"""What int8 costs in accuracy and brings in speed on one CPU, beside ONNX Runtime's own defaults.

Everything printed comes from this one run, on this machine::

    python benchmarks/quantize.py --data photos --threads 2

The network is a backbone with a classifier fitted to its features on the training images (ridge
regression, in closed form); a merged GLoRA network has the same layers. Ranges are calibrated on
validation images, and all figures are of test images.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import quantize_static

from glora_deploy.artifact import Artifact
from glora_deploy.backbone import Backbone, load_backbone
from glora_deploy.data import ImageSet, TaskData, load_task
from glora_deploy.export.build import ExportConfig, export
from glora_deploy.export.int8_report import Batch, compare_models
from glora_deploy.export.quantize import QuantizeConfig, quantize
from glora_deploy.export.runtime import OnnxSession
from glora_deploy.inject import find_layers
from glora_deploy.manifest import LayerRecord, ManifestDraft
from glora_deploy.paths import LayerPaths
from glora_deploy.preprocess import preprocess_batch
from glora_deploy.records import TrainingRecord
from glora_deploy.store import ArtifactStore

BATCH = 8
ROW = "{:<34}{:>8}{:>8}{:>7}{:>9}{:>8}{:>9}{:>9}{:>8}"


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
        layers={name: LayerRecord.of(shape, LayerPaths()) for name, shape in layers.items()},
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


def print_row(
    name: str, folder: Path, int8: Path, backbone: Backbone, task: TaskData, threads: int | None
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
        flush=True,
    )


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
        print(ROW.format("", *head) + "   ms")
        naive = Path(root) / "naive.onnx"
        count = arguments.calibration_images
        quantize_as_onnx_runtime_does(folder, naive, backbone, task, count)
        print_row("ONNX Runtime's defaults", folder, naive, backbone, task, arguments.threads)
        for name, changes in {
            "int8": {},
            "int8, 7 bits of each weight": {"seven_bit": True},
            "int8, blocks.*.mlp.fc2 in float": {"keep_float": ("blocks.*.mlp.fc2",)},
        }.items():
            config = QuantizeConfig(
                max_loss=1, n_calibration=count, threads=arguments.threads, **changes
            )
            start = time.perf_counter()
            quantize(folder, artifact.manifest, task, config)
            seconds = time.perf_counter() - start
            out = folder / "model.int8.onnx"
            print_row(f"{name} ({seconds:.0f} s)", folder, out, backbone, task, arguments.threads)


if __name__ == "__main__":
    main()
