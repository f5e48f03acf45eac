"""config.pbtxt: how Triton shall serve one task, in protobuf's text format.

The fields are those of NVIDIA's published ``model_config.proto``. Triton reads the text; nothing
here needs protobuf or Triton's client, which the tests use to parse every file that is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from glora_deploy.precision import Precision
from glora_deploy.record_file import read_record
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.manifest_fields import (
    FileRecord,
    Label,
    Pixels,
    PreprocessingRecord,
    Sha256,
    TaskName,
    VersionName,
)
from glora_deploy.strict_record import Line, Record

Kind = Literal["onnx", "int8", "plan"]
Instances = Literal["auto", "cpu", "gpu"]

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
WARMUP_FOLDER = "warmup"
WARMUP_IMAGE = "image"
VERSION_RECORD = "source.json"

HEADER = "# Written by glora-deploy, which replaces this whole folder at the next export.\n"
"""First line of every config.pbtxt; how a folder is known to be ours."""

_BACKENDS: dict[Kind, tuple[str, str]] = {
    "onnx": ("onnxruntime_onnx", "onnxruntime"),
    "int8": ("onnxruntime_onnx", "onnxruntime"),
    "plan": ("tensorrt_plan", "tensorrt"),
}
# Where "auto" runs: int8 was made for the CPU, and a plan runs nowhere but on a GPU.
_AUTO: dict[Kind, str] = {"onnx": "KIND_AUTO", "int8": "KIND_CPU", "plan": "KIND_GPU"}


Field: TypeAlias = "tuple[str, str | int | Message]"
Message: TypeAlias = "Sequence[Field]"
"""Fields in order; a repeated field is named once for each value."""

# On GPUs ONNX Runtime rounds the inputs of float32 products to TF32 unless told otherwise (since
# its 1.18, of Triton 24.06): parity was measured without. Ignored where the model runs on a CPU.
_FULL_FLOAT32: Message = [
    (
        "execution_accelerators",
        [
            (
                "gpu_execution_accelerator",
                [("name", "cuda"), ("parameters", [("key", "use_tf32"), ("value", "0")])],
            )
        ],
    )
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonConfig:
    """How Triton shall serve every task of one call."""

    kind: Kind = "onnx"
    """What to serve: the ONNX model, its quantised copy, or the TensorRT plan."""
    max_batch_size: int = 8
    """Most images Triton puts into one call."""
    instances: Instances = "auto"
    """Where it runs; ``auto`` is a GPU for a plan, the CPU for int8, and for ONNX a GPU if any."""
    instance_count: int = 1
    """Copies of the model, per GPU where there are GPUs."""
    max_queue_delay_us: int = 0
    """Longest an image waits for others to fill a batch, in microseconds."""
    warmup: bool = True
    """Run the smallest and the largest batch before the model counts as ready."""
    checksums: bool = False
    """Let Triton's checksum agent compare the MD5 of every model file before it loads them."""
    versions_kept: int = 1
    """Versions of a task that stay and are served; an older one of other classes never stays."""

    def __post_init__(self) -> None:
        for field in ("max_batch_size", "instance_count", "versions_kept"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.max_queue_delay_us < 0:
            raise ValueError(f"max_queue_delay_us must be 0 or more, got {self.max_queue_delay_us}")
        if (self.kind, self.instances) == ("plan", "cpu"):
            raise ValueError("instances must be gpu or auto for a TensorRT plan, got cpu")


class VersionRecord(Record):
    """All of source.json, beside the model of each version: what answers under this number."""

    task: TaskName
    version: VersionName
    """Of the artifact."""
    precision: Precision
    adapter_sha256: Sha256
    kind: Kind
    input_size: tuple[Pixels, Pixels, Pixels]
    """Channels, height, width of one image."""
    preprocessing: PreprocessingRecord
    labels: tuple[Label, ...]
    compute_capabilities: tuple[Line, ...] = ()
    """GPUs a plan is tied to, such as ``8.6``; empty where it is not tied to any."""
    files: dict[str, FileRecord]
    """Path below the version's folder, ``/`` between parts, to size and sha256."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        precision: Precision,
        kind: Kind,
        files: Mapping[str, FileRecord],
        compute_capabilities: tuple[str, ...] = (),
    ) -> VersionRecord:
        """Describe one version of a task by its manifest and its files."""
        return cls(
            task=manifest.task,
            version=manifest.version,
            precision=precision,
            adapter_sha256=manifest.adapter.sha256,
            kind=kind,
            input_size=manifest.backbone.input_size,
            preprocessing=manifest.preprocessing,
            labels=manifest.labels,
            compute_capabilities=compute_capabilities,
            files=dict(files),
        )

    @classmethod
    def read(cls, folder: Path) -> VersionRecord:
        """The record of a version's folder.

        Raises:
            ArtifactError: If it is missing or damaged.
        """
        return read_record(cls, folder / VERSION_RECORD, f"Move {folder} away.")

    def answers_like(self, other: VersionRecord) -> bool:
        """Whether one config.pbtxt and one labels.txt can describe both."""
        return all(
            getattr(self, field) == getattr(other, field)
            for field in ("kind", "input_size", "preprocessing", "labels", "compute_capabilities")
        )


class Name(str):
    """A value of an enumeration, which protobuf's text format leaves unquoted."""

    __slots__ = ()


def to_text(message: Message, indent: str = "") -> str:
    r"""Render a message in protobuf's text format.

    >>> to_text([("name", "a"), ("input", [("data_type", Name("TYPE_FP32"))])])
    'name: "a"\ninput {\n  data_type: TYPE_FP32\n}\n'
    """
    lines = []
    for field, value in message:
        match value:
            case Name():
                lines.append(f"{indent}{field}: {value}\n")
            case str():
                # JSON's escapes of quotes, backslashes and controls are protobuf's too.
                lines.append(f"{indent}{field}: {json.dumps(value, ensure_ascii=False)}\n")
            case int():
                lines.append(f"{indent}{field}: {value}\n")
            case _:
                inner = to_text(value, indent + "  ")
                lines.append(f"{indent}{field} {{\n{inner}{indent}}}\n")
    return "".join(lines)


def config_text(
    versions: Mapping[int, VersionRecord], config: TritonConfig, md5: Mapping[str, str]
) -> str:
    """The whole config.pbtxt of a task.

    Args:
        versions: By number; the newest is described, and what each of them is.
        config: How to serve it.
        md5: Path below the model's folder to MD5, for the checksum agent; may be empty.
    """
    record = versions[max(versions)]
    platform, backend = _BACKENDS[record.kind]
    image: list[Field] = [("data_type", Name("TYPE_FP32"))]
    image += [("dims", size) for size in record.input_size]
    message: list[Field] = [
        ("name", record.task),
        ("platform", platform),
        ("backend", backend),
        ("max_batch_size", config.max_batch_size),
        ("input", [("name", "image"), *image]),
        (
            "output",
            [
                ("name", "logits"),
                ("data_type", Name("TYPE_FP32")),
                ("dims", len(record.labels)),
                ("label_filename", LABELS),
            ],
        ),
        ("version_policy", [("latest", [("num_versions", config.versions_kept)])]),
        ("instance_group", _instance_group(record.kind, config)),
    ]
    if record.kind == "onnx" and config.instances != "cpu":
        message.append(("optimization", _FULL_FLOAT32))
    if config.max_batch_size > 1:
        delay = ("max_queue_delay_microseconds", config.max_queue_delay_us)
        message.append(("dynamic_batching", [delay]))
    message += [
        ("cc_model_filenames", _entry(capability, "model.plan"))
        for capability in record.compute_capabilities
    ]
    message += [
        ("parameters", _entry(key, [("string_value", value)]))
        for key, value in _provenance(record, versions).items()
    ]
    if config.warmup:
        message += [
            ("model_warmup", _warmup(size, image)) for size in sorted({1, config.max_batch_size})
        ]
    if md5:
        sums = [("parameters", _entry(f"MD5:{path}", value)) for path, value in md5.items()]
        message.append(("model_repository_agents", [("agents", [("name", "checksum"), *sums])]))
    return HEADER + to_text(message)


def _instance_group(kind: Kind, config: TritonConfig) -> Message:
    where = _AUTO[kind] if config.instances == "auto" else f"KIND_{config.instances.upper()}"
    return [("count", config.instance_count), ("kind", Name(where))]


def _provenance(record: VersionRecord, versions: Mapping[int, VersionRecord]) -> dict[str, str]:
    """What answers by default, and what answers under each number: Triton tells clients both."""
    each = {
        str(number): {"version": one.version, "adapter_sha256": one.adapter_sha256}
        for number, one in sorted(versions.items())
    }
    return {
        "task": record.task,
        "version": record.version,
        "precision": record.precision,
        "adapter_sha256": record.adapter_sha256,
        "preprocessing": record.preprocessing.model_dump_json(),
        "versions": json.dumps(each),
    }


def _warmup(batch_size: int, image: Message) -> Message:
    # Not random_data: Triton fills floats with random bytes, NaN among them.
    value = [*image, ("input_data_file", WARMUP_IMAGE)]
    name = f"batch of {batch_size}"
    return [("name", name), ("batch_size", batch_size), ("inputs", _entry("image", value))]


def _entry(key: str, value: str | Message) -> Message:
    """One entry of a map field."""
    return [("key", key), ("value", value)]
