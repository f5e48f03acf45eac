r"""What another library's resize does to pixels and answers, beside the graph that resizes itself.

Everything printed comes from this one run, on this machine::

    python benchmarks/preprocessing.py --data photos
    python benchmarks/preprocessing.py --data folder:images --backbone vit_small_patch14_dinov2 \
        --checkpoint dino.safetensors --input-size 98 --scale 4

Each row resizes the same test images in one way, to the size that the store's own preprocessing
resizes them to, and goes on alike: the middle, normalised, into one ONNX model. The network is a
backbone with a classifier fitted to Pillow's pixels of the training images, as in ``quantize.py``.
``--scale`` enlarges every image first, as if it came from a camera with more pixels.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from PIL import Image
from quantize import fit_classifier, store_task
from torchvision.transforms import InterpolationMode, v2

from glora_deploy.backbones.load import load_backbone
from glora_deploy.data.image_set import ImageSet, TaskData
from glora_deploy.data.load import load_task
from glora_deploy.data.preprocess import Preprocessing, normalise, to_pixels
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.onnx_model.preprocessing_graph import LEVELS, PIXELS
from glora_deploy.export.onnx_model.with_preprocessing import only_preprocessing
from glora_deploy.export.pipeline import ExportConfig, export

Pixels = NDArray[np.uint8]
Resize = Callable[[Pixels, tuple[int, int]], Pixels]
"""An image ``(h, w, 3)`` and another height and width, to the image of that size."""

ROW = "{:<46}{:>10}{:>8}{:>8}{:>9}{:>9}{:>9}"
SIZES = ((480, 640), (1080, 1920), (3000, 4000))


def onnx_resize(**attributes: str | float) -> Resize:
    """ONNX's ``Resize`` in ONNX Runtime, on float pixels, rounded."""
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
    axes = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, None, None]) for n in "xy"
    ]
    sizes = helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, [4])
    graph = helper.make_graph([node], "resize", [axes[0], sizes], [axes[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = OnnxSession(model)

    def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
        x = np.moveaxis(pixels, -1, 0)[None].astype(np.float32)
        y = session.run("y", {"x": x, "sizes": np.array((1, 3, *size))})
        return np.moveaxis(y[0].round().clip(0, 255).astype(np.uint8), 0, -1)

    return resize


def torchvision_resize(mode: str, antialias: bool) -> Resize:
    """The resize of torchvision on uint8 tensors; without antialiasing OpenCV's is the same."""
    interpolation = InterpolationMode(mode)

    def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
        x = torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())
        y = v2.functional.resize(x, list(size), interpolation, antialias=antialias)
        return np.moveaxis(y.numpy(), 0, -1)

    return resize


WAYS: dict[str, Resize] = {
    "ONNX Resize, cubic, antialias, a = -0.5": onnx_resize(
        mode="cubic", antialias=1, cubic_coeff_a=-0.5
    ),
    "ONNX Resize, cubic, antialias, default a": onnx_resize(mode="cubic", antialias=1),
    "ONNX Resize, cubic, defaults": onnx_resize(mode="cubic"),
    "ONNX Resize, linear, defaults": onnx_resize(mode="linear"),
    "torchvision tensor, bicubic, antialias": torchvision_resize("bicubic", True),
    "torchvision tensor, bicubic, no antialias": torchvision_resize("bicubic", False),
    "bilinear, no antialias, as cv2.INTER_LINEAR": torchvision_resize("bilinear", False),
}


def resized_size(p: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """As the store has it, for ``crop_mode`` center and a square network."""
    short = math.floor(p.size[0] / p.crop_pct)
    if width <= height:
        return int(short * height / width), short
    return short, int(short * width / height)


def in_this_way(resize: Resize, p: Preprocessing) -> Callable[[Pixels], Pixels]:
    """Resize, then let the store's own code cut out the middle: it has no more to resize."""

    def pixels(image: Pixels) -> Pixels:
        return to_pixels(Image.fromarray(resize(image, resized_size(p, *image.shape[:2]))), p)

    return pixels


def graph(path: Path) -> Callable[[Pixels], Pixels]:
    """The preprocessing of an exported ``model.pixels.onnx``."""
    model = only_preprocessing(onnx.load(path, load_external_data=False))
    session = OnnxSession(model)

    def pixels(image: Pixels) -> Pixels:
        levels = session.run(LEVELS, {PIXELS: image[None]})
        return np.moveaxis(levels[0], 0, -1).astype(np.uint8)

    return pixels


def originals(images: ImageSet, scale: float) -> Iterator[Pixels]:
    """Decoded images, enlarged."""
    for index in range(len(images)):
        image = images.image(index)
        if scale != 1:
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.BICUBIC)
        yield np.asarray(image)


def print_rows(
    ways: dict[str, Callable[[Pixels], Pixels]],
    network: OnnxSession,
    p: Preprocessing,
    task: TaskData,
    scale: float,
) -> None:
    """One row a way, the first of which the others are held against."""
    seen: dict[str, list[Pixels]] = {name: [] for name in ways}
    for image in originals(task.test, scale):
        for name, way in ways.items():
            seen[name].append(way(image))
    answers = {
        name: np.concatenate([network.logits(normalise(one[None], p)) for one in images])
        for name, images in seen.items()
    }
    (pillow, *_) = ways
    truth, reference = np.stack(seen[pillow]).astype(int), answers[pillow]
    print(ROW.format("", "differ", "mean", "most", "top-1", "agree", "prob"))
    for name, images in seen.items():
        off = np.abs(np.stack(images) - truth)
        chosen = answers[name].argmax(1)
        print(
            ROW.format(
                name,
                f"{(off > 0).mean():.2%}",
                f"{off.mean():.2f}",
                off.max(),
                f"{(chosen == task.test.labels).mean():.2%}",
                f"{(chosen == reference.argmax(1)).mean():.2%}",
                f"{np.abs(softmax(answers[name]) - softmax(reference)).max():.3f}",
            ),
            flush=True,
        )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities ``(n, n_classes)``."""
    shares = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))


def print_times(ways: dict[str, Callable[[Pixels], Pixels]], rounds: int = 5) -> None:
    """How long the graph takes beside Pillow, the fastest of a few turns each."""
    for height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        best = dict.fromkeys(ways, math.inf)
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way(image)
                best[name] = min(best[name], time.perf_counter() - start)
        listed = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in best.items())
        print(f"{width} x {height}: {listed}")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="demo-vit")
    parser.add_argument("--checkpoint", help="local weights of the backbone, or random:SEED")
    parser.add_argument("--input-size", type=int)
    parser.add_argument("--data", default="photos", help="a task, as training takes it")
    parser.add_argument("--train-images", type=int, default=600)
    parser.add_argument("--test-images", type=int, default=200)
    parser.add_argument("--scale", type=float, default=1)
    arguments = parser.parse_args()
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
    p = backbone.preprocessing
    classifier = fit_classifier(backbone, task, arguments.train_images)
    with tempfile.TemporaryDirectory() as root:
        store, artifact = store_task(Path(root) / "store", backbone, task, classifier)
        config = ExportConfig(formats=("onnx", "pixels"), n_images=1)
        folder = export(store, artifact, config).folder
        ways = {
            "Pillow, as in training": lambda image: to_pixels(Image.fromarray(image), p),
            "model.pixels.onnx": graph(folder / "model.pixels.onnx"),
        }
        others = {name: in_this_way(resize, p) for name, resize in WAYS.items()}
        height, width = next(originals(task.test, arguments.scale)).shape[:2]
        print(
            f"{backbone.architecture} ({backbone.source}), {len(task.test)} test images of "
            f"{task.spec}, {width} x {height}, to {p.size} by {p.interpolation} {p.crop_pct}\n"
        )
        network = OnnxSession(folder / "model.onnx")
        print_rows({**ways, **others}, network, p, task, arguments.scale)
        print()
        print_times(ways)


if __name__ == "__main__":
    main()
