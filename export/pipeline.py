"""One export from end to end: merge, convert, compare, and only then into the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx

from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.errors import StoreError
from glora_deploy.parity import DEFAULT_LIMITS, PARITY_FILE, Limits, Report, Step
from glora_deploy.precision import PRECISIONS, Precision
from glora_deploy.release_memory import release_memory
from glora_deploy.store.artifact import Artifact, write_artifact
from glora_deploy.store.audit import store_option
from glora_deploy.store.backbone_config import require_agreement
from glora_deploy.store.export_record import (
    DELTA_FOLDER,
    FILES,
    INT8_FILE,
    INT8_REPORT_FILE,
    MODEL_FILE,
    PIXELS_FILE,
    PLAN_FILE,
    WEIGHTS_FILE,
    ExportRecord,
    Format,
)
from glora_deploy.store.reader import BACKBONE_WEIGHTS, EXPORT_RECORD
from glora_deploy.store.redact import redacted
from glora_deploy.store.store import ArtifactStore
from glora_deploy.tensorrt_runtime.plan_json import read_plan_info

from .int8.quantize import QuantizeConfig, measure_again, quantize
from .int8.report import QuantizeReport
from .onnx_model.fp16_overflow import Overflow, find_overflow
from .onnx_model.graph_cache import OPSET, GraphCache, GraphSpec
from .onnx_model.half_precision import to_precision
from .onnx_model.with_preprocessing import PILLOW, pillow_version, with_preprocessing
from .onnx_model.write import is_self_contained, write_onnx
from .out_folder import write_out
from .parity_check.inputs import ParityInputs, parity_inputs, task_data
from .parity_check.pixels import check_pixels
from .parity_check.run import check_parity
from .parity_check.stages import ExportStages
from .require_format import describe_artifact, require_format
from .reuse_previous import drop_stale, reuse_formats
from .stored_backbone import backbone_of
from .tensorrt_plan.build import write_plan
from .tensorrt_plan.config import PlanConfig
from .timm_folder import write_merged_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """What to export and how closely it must agree."""

    formats: tuple[Format, ...] = ("merged",)
    precision: Precision = "fp32"
    single_file: bool = False
    """Put the weights into model.onnx instead of beside it."""
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    """How to quantise, for the format int8."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """How to build a TensorRT plan; its precision is set to that of the export."""
    n_images: int = 32
    """Ordinary images that parity looks at."""
    limits: Mapping[Precision, Limits] = field(default_factory=lambda: DEFAULT_LIMITS)

    def __post_init__(self) -> None:
        if not self.formats:
            raise ValueError("name at least one format to export")
        if "int8" in self.formats and self.precision != "fp32":
            raise ValueError(f"int8 is quantised from fp32, got precision {self.precision}")
        if self.n_images < 1:
            raise ValueError(f"parity needs at least 1 image, got {self.n_images}")


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    folder: Path
    report: Report
    record: ExportRecord


def export(
    store: ArtifactStore,
    artifact: Artifact,
    config: ExportConfig,
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write the formats asked for into the artifact's export folder, with their parity report.

    Formats already there from the same delta stay. The folder appears, or replaces the old one,
    in one step after everything in it was written and compared; a failing comparison is stored
    too and marks the export unusable, so look at ``report.passed``.

    Args:
        store: Holds the artifact and its backbone.
        artifact: What to export.
        config: How.
        on_step: Told what happens next.

    Raises:
        GloraDeployError: As the steps do; the store is then as it was.
        OSError: If there is no space; likewise.
    """
    on_step("reading the backbone and the delta")
    backbone = backbone_of(store, artifact.manifest)
    require_agreement(artifact, backbone)
    inputs = parity_inputs(artifact.manifest, config.precision, config.n_images)
    old = store.export_dir(artifact, config.precision)
    with store.replace_export(artifact, config.precision) as folder:
        remade = {*config.formats, *(("onnx",) if config.single_file else ())}
        if "pixels" in remade:  # both are written from one graph
            remade.add("onnx")
        reused = reuse_formats(old, folder, artifact, config.precision, backbone, remade)
        builder = _Builder(
            store, artifact, backbone, config, folder, inputs, on_step, reused.overflow
        )
        formats = {"merged", *reused.formats, *config.formats}
        if "int8" in reused.formats and drop_stale(folder, "int8"):
            formats.remove("int8")
        if {"pixels", "int8", "trt"} & formats:  # made from the ONNX model beside them
            formats.add("onnx")
        builder.build(formats)
        if "trt" in reused.formats and drop_stale(folder, "trt"):
            formats.remove("trt")
        done = builder.finish(tuple(name for name in get_args(Format) if name in formats))
    return replace(done, folder=old)


def prove_again(
    store: ArtifactStore,
    artifact: Artifact,
    config: ExportConfig,
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> Report:
    """Check an export's files and measure again, on this machine; the new reports replace the old.

    What an int8 model loses is measured again too, on all test images, and is a step of the report.

    Args:
        store: Holds the artifact, its backbone and the export.
        artifact: Whose export.
        config: Precision, images and limits; the formats are those that are there.
        on_step: Told what happens next.

    Raises:
        StoreError: If there is no export in this precision.
        ArtifactError: If a file is missing or altered.
    """
    present = store.export_dir(artifact, config.precision)
    with store.replace_export(artifact, config.precision) as folder:
        # Read in here, where no other exporter replaces it.
        record = ExportRecord.read(present)
        if record is None:
            raise StoreError(
                f"{present}: no export is here. Make one: glora export --task {artifact.task} "
                f"--version {artifact.version} --precision {config.precision}"
                f"{store_option(store.root)}"
            )
        backbone = backbone_of(store, artifact.manifest)
        require_agreement(artifact, backbone)
        record.require_of(present, artifact.manifest, config.precision)
        on_step("checking checksums")
        for name in record.files:
            record.require_intact(present, name)
        before = record.report(present)
        for format_name in record.formats:
            require_format(present, format_name, artifact, config.precision, backbone)
        again = replace(config, formats=record.formats)
        overflow = before.overflow if before else ()
        inputs = parity_inputs(artifact.manifest, config.precision, config.n_images)
        builder = _Builder(store, artifact, backbone, again, folder, inputs, on_step, overflow)
        for name in record.files.keys() - {PARITY_FILE}:
            (folder / name).parent.mkdir(exist_ok=True)
            os.link(present / name, folder / name)
        if "int8" in record.formats:
            _measure_int8_again(folder, artifact, on_step)
        return builder.finish(record.formats).report


def _measure_int8_again(folder: Path, artifact: Artifact, on_step: Callable[[str], None]) -> None:
    """Write the report of this machine in the place of the one that lies there, a link."""
    task, _ = task_data(artifact.manifest)
    report = measure_again(folder, artifact.manifest, task, on_step=on_step)
    (folder / INT8_REPORT_FILE).unlink()
    (folder / INT8_REPORT_FILE).write_bytes(report.to_json())


@dataclass(slots=True)
class _Builder:
    """The files of one export folder while they are being made."""

    store: ArtifactStore
    artifact: Artifact
    backbone: Path
    """Its folder in the store."""
    config: ExportConfig
    folder: Path
    inputs: ParityInputs
    on_step: Callable[[str], None]
    overflow: tuple[str, ...] = ()

    def build(self, formats: Collection[Format]) -> None:
        """Make every file of these formats that was not carried over."""
        if not (self.folder / WEIGHTS_FILE).exists():
            self.on_step("merging")
            self._merge(self.folder, self.config.precision)
        if "delta" in formats and not (self.folder / DELTA_FOLDER).exists():
            self.on_step("writing the delta")
            self._write_delta()
        if "onnx" in formats and not (self.folder / MODEL_FILE).exists():
            self._write_onnx(pixels="pixels" in formats)
        if "int8" in formats and not (self.folder / INT8_FILE).exists():
            task, _ = task_data(self.artifact.manifest)
            manifest = self.artifact.manifest
            quantize(self.folder, manifest, task, self.config.quantize, on_step=self.on_step)
        if "trt" in formats and not (self.folder / PLAN_FILE).exists():
            self.on_step("building the TensorRT plan")
            plan = replace(self.config.plan, precision=self.config.precision)
            write_plan(self.folder, plan, on_step=self.on_step)
            release_memory()

    def finish(self, formats: tuple[Format, ...]) -> Exported:
        """Measure every stage from the training graph to the last file, and record it all."""
        weights = self.backbone / BACKBONE_WEIGHTS
        # These need no torch, so they run before it is in memory.
        own = self._pixel_steps() if "pixels" in formats else []
        with self.store.scratch(self.artifact.task) as scratch:
            stages = ExportStages(self.artifact, weights, self.folder, scratch)
            report = check_parity(
                self.artifact.manifest,
                self.inputs,
                self.config.precision,
                stages.reference,
                stages.all(self.config.precision, formats, self.overflow),
                limits=self.config.limits,
                overflow=self.overflow,
                on_step=lambda stage: self.on_step(f"comparing {stage}"),
            )
        steps = [*report.steps, *own]
        if "int8" in formats:
            steps.append(QuantizeReport.read(self.folder).step())
        report = report.model_copy(update={"steps": tuple(steps)})
        (self.folder / PARITY_FILE).write_bytes(report.to_json())
        self.on_step("recording checksums")
        manifest, precision = self.artifact.manifest, self.config.precision
        record = ExportRecord.of_folder(self.folder, manifest, precision, usable=report.passed)
        record.write(self.folder)
        return Exported(self.folder, report, record)

    def _pixel_steps(self) -> list[Step]:
        self.on_step("comparing pixels and probabilities")
        precision = self.config.precision
        limits = self.config.limits[precision]
        steps = check_pixels(self.folder, self._preprocessing(), self.inputs, precision, limits)
        release_memory()
        return steps

    def _merge(self, folder: Path, precision: Precision) -> None:
        write_merged_folder(folder, self.artifact, self.backbone, precision)

    def _write_delta(self) -> None:
        folder = self.folder / DELTA_FOLDER
        folder.mkdir()
        dtype = PRECISIONS[self.config.precision]
        manifest = redacted(self.artifact.manifest)  # it is made to be given away
        with np.errstate(over="ignore"):  # the writer refuses what is not finite, by name
            tensors = {k: v.astype(dtype) for k, v in self.artifact.stored_tensors().items()}
        write_artifact(
            folder,
            manifest,
            tensors,
            task=manifest.task,
            version=manifest.version,
            created=manifest.created,
        )

    def _write_onnx(self, *, pixels: bool) -> None:
        skeleton = self._skeleton()
        if self.config.precision == "bf16":  # it has the range of float32
            skeleton = to_precision(skeleton, "bf16")
        elif self.config.precision == "fp16":
            self.on_step("looking for values that leave fp16")
            found = self._overflow(skeleton)
            self.overflow = tuple(f"{o.layer or 'network'} {o.op}: {o.max_abs:.3g}" for o in found)
            skeleton = to_precision(skeleton, "fp16", [o.node for o in found])
        self.on_step("writing the ONNX model")
        metadata = describe_artifact(self.artifact.manifest, self.config.precision)
        single_file = self.config.single_file
        write_onnx(self.folder, skeleton, metadata, single_file=single_file)
        if pixels:
            self.on_step("writing the ONNX model with its preprocessing")
            whole = with_preprocessing(skeleton, self._preprocessing())
            metadata[PILLOW] = pillow_version()
            write_onnx(self.folder, whole, metadata, single_file=single_file, name=PIXELS_FILE)

    def _preprocessing(self) -> Preprocessing:
        return Preprocessing(**self.artifact.manifest.preprocessing.model_dump())

    def _skeleton(self) -> onnx.ModelProto:
        manifest = self.artifact.manifest
        spec = GraphSpec(
            architecture=manifest.backbone.name,
            model_args=manifest.backbone.model_args,
            n_classes=len(manifest.labels),
            input_size=manifest.backbone.input_size,
            opset=OPSET,
        )

        def build() -> onnx.ModelProto:
            self.on_step("tracing the architecture (once per backbone and class count)")
            # Seconds to import and half a gigabyte, for a graph that is nearly always in the cache.
            from .onnx_model.trace import trace_graph
            from .parity_check.torch_networks import frozen_network

            network = frozen_network(self.artifact, self.backbone / BACKBONE_WEIGHTS)
            return trace_graph(network, spec.input_size, opset=spec.opset)

        return GraphCache(self.store.skeletons).get(spec, build)

    def _overflow(self, skeleton: onnx.ModelProto) -> list[Overflow]:
        """Run the fp32 graph with this task's fp32 weights over the inputs of the parity check."""
        with self.store.scratch(self.artifact.task) as scratch:
            self._merge(scratch, "fp32")
            model = write_onnx(scratch, skeleton, {})
            images = np.concatenate([self.inputs.ordinary, self.inputs.flat, self.inputs.wild])
            found = find_overflow(model, images)
        release_memory()
        return found


def copy_out(exported: Exported, out: Path, formats: Sequence[Format]) -> list[Path]:
    """Make a folder of the user's hold the files of some formats, and say which.

    What it held of an earlier export is gone: all of it is exchanged in one step.

    Raises:
        StoreError: If it holds anything else, or cannot be replaced whole.
        OSError: If it cannot be written; it is then as it was.
    """
    names = {PARITY_FILE, *(file for name in formats for file in FILES[name])}
    if "trt" in formats and read_plan_info(exported.folder).stripped:
        names.add(MODEL_FILE)  # which fills the plan
    if MODEL_FILE in names and not is_self_contained(exported.folder / MODEL_FILE):
        names.add(WEIGHTS_FILE)
    record = exported.record.of_copies({name: Path(name).name for name in names})
    files = {Path(name).name: exported.folder / name for name in sorted(names)}
    return write_out(files, out, {EXPORT_RECORD: record.to_json()})
