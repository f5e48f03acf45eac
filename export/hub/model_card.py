"""README.md of a pushed task: what it is, how it was trained and proven, how to load it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod

from huggingface_hub import ModelCardData

from glora_deploy.glora.forms import SUPPORTS
from glora_deploy.parity import Report, Step
from glora_deploy.precision import Precision
from glora_deploy.store.manifest import Manifest

MARK = "<!-- Written by glora-deploy. Remove this line to keep your own text at the next push. -->"
"""A README.md with this line is replaced by the next push, any other is left alone."""
MAX_LABELS = 40
"""Class names that the text lists; config.json has all."""


def is_ours(readme: str) -> bool:
    """Whether a README.md was written here and not edited for keeps."""
    return MARK in readme


def model_card(
    manifest: Manifest,
    report: Report,
    *,
    repo: str,
    revision: str | None,
    license: str,
    merged_bytes: int,
    onnx: bool,
    pixels: bool,
    self_contained: bool,
) -> str:
    """The whole README.md of one pushed task.

    Args:
        manifest: Of the delta.
        report: The parity report of the export that is pushed; passed.
        repo: ``user/name``.
        revision: Branch it is pushed to; None for the default one.
        license: Identifier that the Hub knows, such as ``apache-2.0``.
        merged_bytes: Size of model.safetensors.
        onnx: Whether model.onnx lies beside it.
        pixels: Whether model.pixels.onnx does.
        self_contained: Whether model.onnx holds the weights once more, instead of reading them.
    """
    timm_way, *others = _ways(manifest, repo, revision)
    onnx_way = _onnx_way(manifest, report.precision, repo, revision, self_contained)
    parts = [
        f"---\n{_front_matter(manifest, license, onnx)}\n---",
        MARK,
        *_about(manifest),
        "## How to load it",
        timm_way,
        *([onnx_way] if onnx else []),
        *([_PIXELS_WAY] if pixels else []),
        *others,
        "## How it was trained",
        _table(("", ""), _training(manifest)),
        "## What is stored",
        _sizes(manifest, report, merged_bytes),
        _table(("support", "forms (layers)", "numbers"), _supports(manifest)),
        "## Proof of equality",
        *_proof(report),
    ]
    return "\n\n".join(parts) + "\n"


_PIXELS_WAY = """\
`model.pixels.onnx` resizes, crops and normalises by itself: input `pixels`, decoded RGB images \
`(n, h, w, 3)` uint8 of any size, one size a batch; output `probabilities`. The class names are in \
its metadata, `labels`."""


def _front_matter(manifest: Manifest, license: str, onnx: bool) -> str:
    kind, _, name = manifest.backbone.source.partition(":")
    # Without its tag a timm name may stand for any of several repositories.
    base = f"timm/{name}" if kind == "timm" and "." in name else None
    known = manifest.training.test_accuracy is not None
    return ModelCardData(
        license=license,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["glora", "onnx"] if onnx else ["glora"],
        base_model=base,
        base_model_relation="finetune" if base else None,
        metrics=["accuracy"] if known else None,
    ).to_yaml()


def _about(manifest: Manifest) -> list[str]:
    b, p, t = manifest.backbone, manifest.preprocessing, manifest.training
    _, height, width = b.input_size
    listed = ", ".join(map(_text, manifest.labels[:MAX_LABELS]))
    if len(manifest.labels) > MAX_LABELS:
        listed += ", ... (all of them in `config.json`)"
    accuracy = [
        f"{value:.2%} on the {split} images"
        for split, value in (("test", t.test_accuracy), ("validation", t.val_accuracy))
        if value is not None
    ]
    return [
        f"# {manifest.task}",
        f"`{b.name}` classifying images into {len(manifest.labels)} classes. A GLoRA fine-tune "
        "([arXiv:2306.07967](https://arxiv.org/abs/2306.07967)), merged: an ordinary timm model "
        "without any extra layer.",
        f"- Classes: {listed}\n"
        f"- Top-1 accuracy: {', '.join(accuracy) or 'not recorded'}\n"
        f"- Backbone: {_text(b.source)}, tensors with sha256 `{b.fingerprint[:16]}..`\n"
        f"- Input: RGB, {height} x {width}, {p.interpolation}, crop {p.crop_mode} "
        f"{p.crop_pct:g}, mean {_numbers(p.mean)}, std {_numbers(p.std)}",
    ]


def _ways(manifest: Manifest, repo: str, revision: str | None) -> list[str]:
    b = manifest.backbone
    at = f"@{revision}" if revision else ""
    pin = f', revision="{revision}"' if revision else ""
    flag = f" --revision {revision}" if revision else ""
    args = "".join(f", {name}={value!r}" for name, value in sorted(b.model_args.items()))
    timm_way = f"""\
With timm:

```python
import timm
import torch
from PIL import Image

model = timm.create_model("hf-hub:{repo}{at}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    logits = model(transform(Image.open("image.jpg").convert("RGB")).unsqueeze(0))
print(model.pretrained_cfg["label_names"][logits.argmax()])
```"""
    glora_way = f"""\
With glora-deploy, which fetches only the delta ({_bytes(manifest.adapter.size_bytes)}) and merges \
it into the backbone it has:

```bash
glora pull {repo}{flag} --store artifacts
glora export --task {manifest.task} --fmt merged --store artifacts
```"""
    plain_way = f"""\
As a plain state dict:

```python
import timm
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

model = timm.create_model("{b.name}", num_classes={len(manifest.labels)}{args})
model.load_state_dict(load_file(hf_hub_download("{repo}", "model.safetensors"{pin})))
```"""
    return [timm_way, glora_way, plain_way]


def _onnx_way(
    manifest: Manifest,
    precision: Precision,
    repo: str,
    revision: str | None,
    self_contained: bool,
) -> str:
    if precision == "bf16":
        return (
            "`model.onnx` is for TensorRT: it computes in bf16, for which ONNX Runtime has no "
            "arithmetic on a CPU."
        )
    pin = f', revision="{revision}"' if revision else ""
    _, height, width = manifest.backbone.input_size
    if self_contained:
        weights = "holds its weights"
        function = "hf_hub_download"
        fetch = f'model = hf_hub_download("{repo}", "model.onnx"{pin})'
    else:
        weights = "reads its weights from `model.safetensors`"
        function = "snapshot_download"
        fetch = f"""\
# Into a folder of real files: ONNX refuses weights behind the links of the download cache.
folder = snapshot_download("{repo}"{pin}, local_dir="{manifest.task}", allow_patterns="model.*")
model = f"{{folder}}/model.onnx\""""
    return f"""\
With ONNX Runtime, no torch needed; `model.onnx` {weights}:

```python
import numpy as np
import onnxruntime
from huggingface_hub import {function}

{fetch}
session = onnxruntime.InferenceSession(model)
images = np.zeros((1, 3, {height}, {width}), np.float32)  # yours, prepared as listed above
(logits,) = session.run(["logits"], {{"image": images}})
```"""


def _training(manifest: Manifest) -> Iterable[tuple[str, str]]:
    t = manifest.training
    rows = {
        "method": t.method,
        "schedule": t.schedule,
        "data": t.data,
        "splits (sha256)": t.splits_sha256,
        "seed": t.seed,
        "epochs": t.epochs,
        "seconds": None if t.seconds is None else f"{t.seconds:.0f}",
        "device": t.device,
        "versions": ", ".join(f"{name} {version}" for name, version in t.versions.items()) or None,
    }
    settings = {name: value for name, value in t.settings.items() if value is not None}
    return [
        (name, _text(str(value))) for name, value in (rows | settings).items() if value is not None
    ]


def _sizes(manifest: Manifest, report: Report, merged_bytes: int) -> str:
    return (
        f"The delta in `glora/` holds {manifest.n_parameters:,} numbers of supports and "
        f"{manifest.n_head_parameters:,} of the classifier in "
        f"{_bytes(manifest.adapter.size_bytes)} ({manifest.dtype}); the merged weights in "
        f"`model.safetensors` take {_bytes(merged_bytes)} ({report.precision})."
    )


def _supports(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    subnet = manifest.subnet()
    shapes = manifest.shapes()
    for support in SUPPORTS:
        forms = Counter(str(paths[support]) for paths in subnet.values())
        numbers = sum(
            prod(shape)
            for layer, paths in subnet.items()
            for shape in shapes[layer].tensor_shapes(support, paths[support]).values()
        )
        listed = ", ".join(f"{form} ({count})" for form, count in sorted(forms.items()))
        yield support, listed, f"{numbers:,}"


def _proof(report: Report) -> list[str]:
    columns = ("stage", "inputs", "images", "outcome", "max abs", "of spread", "cosine", "top-1")
    int8 = ", int8 against `onnx-fp32`" if any(s.stage == "int8" for s in report.steps) else ""
    parts = [
        f"Logits of each stage against the float64 merge of the same delta{int8}; *of spread* is "
        "the largest error as a share of the reference's standard deviation. All of it is in "
        "`parity.json`.",
        _table(columns, map(_step, report.steps)),
    ]
    if report.overflow:
        kept = ", ".join(map(_text, report.overflow))
        parts.append(f"Kept in fp32 because of their range: {kept}.")
    return parts


def _step(step: Step) -> tuple[str, ...]:
    numbers: tuple[str, ...] = ("",) * 4
    if step.comparisons:
        c = step.comparisons[0]
        numbers = (
            f"{c.max_abs:.1e}",
            f"{c.error:.1e}",
            f"{c.min_cosine:.7f}",
            f"{c.agreement:.0%}",
        )
    outcome = f"{step.outcome}: {_text(step.reason)}" if step.reason else step.outcome
    return step.stage, _text(step.inputs), str(step.n_images), outcome, *numbers


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: str) -> str:
    """Text whose marks mean nothing in Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)


def _numbers(values: Iterable[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
