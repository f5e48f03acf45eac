"""One call of the export program, its options parsed: each task exported, shown, copied, pushed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from glora_deploy.console import one_line_errors, stderr, stdout
from glora_deploy.parity import limits_with
from glora_deploy.precision import Precision
from glora_deploy.quiet import only_errors
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import PLAN_FILE, Format
from glora_deploy.store.store import ArtifactStore

from ..int8.saturation import Target
from ..out_folder import require_no_export, require_replaceable
from ..tensorrt_plan.config import PlanConfig
from ..triton_repository.model_folder import read_versions
from .each_task import for_each, open_task
from .progress import hub_steps, steps
from .proof import Proof, print_proof, print_sizes

if TYPE_CHECKING:
    from ..pipeline import ExportConfig, Exported
    from ..triton_repository.write import TritonModel

Wanted = Format | Literal["triton"]
"""What can be asked for: the formats of an export folder, and a Triton repository of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRequest:
    """Where on the Hub an export goes."""

    repo: str
    """``user/name``."""
    private: bool
    license: str | None
    revision: str | None
    token: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What one call asks for."""

    tasks: tuple[str, ...]
    wanted: tuple[Wanted, ...]
    precision: Precision
    store: Path
    version: str | None
    """None stands for the current one of each task."""
    out: Path | None
    """Folder for a copy or, with triton, the model repository."""
    single_file: bool
    n_images: int
    max_error: float | None
    backbone: str | None
    checkpoint: Path | None
    max_loss: float
    n_calibration: int
    keep_float: tuple[str, ...]
    int8_target: Target
    plan: PlanConfig
    keep_versions: int
    push: PushRequest | None
    quiet: bool

    @property
    def formats(self) -> tuple[Format, ...]:
        """Those of the export folder; a Triton repository is made from the ONNX model or plan."""
        needed = {*self.wanted}
        if "triton" in needed and "trt" not in needed:
            needed.add("onnx")
        return tuple(name for name in get_args(Format) if name in needed)

    def config(self) -> ExportConfig:
        """How each task is exported."""
        # ONNX takes a second to import: after the cheap mistakes are found.
        from ..int8.quantize import QuantizeConfig
        from ..pipeline import ExportConfig

        return ExportConfig(
            formats=self.formats,
            precision=self.precision,
            single_file=self.single_file,
            n_images=self.n_images,
            limits=limits_with(self.precision, self.max_error),
            quantize=QuantizeConfig(
                max_loss=self.max_loss,
                n_calibration=self.n_calibration,
                keep_float=self.keep_float,
                target=self.int8_target,
            ),
            plan=self.plan,
        )


def run_export(request: ExportRequest) -> None:
    """Do what was asked for, task by task, and then the Triton repository of all of them.

    Raises:
        typer.Exit: With 1 if anything failed, which is then on stderr.
    """
    _require_outcome(request)
    for_each([*request.tasks], lambda task: _export_one(request, task))
    if "triton" in request.wanted:
        with one_line_errors("interrupted; the model repository is whole"):
            for model in _write_triton(request):
                state = "written" if model.changed else "unchanged"
                stdout.print(
                    f"{model.folder}: {model.name} {model.version} {state}", soft_wrap=True
                )


def _require_outcome(request: ExportRequest) -> None:
    """Before minutes go into what Triton would refuse or could not be written."""
    triton, out = "triton" in request.wanted, request.out
    if triton and "trt" in request.wanted:
        with one_line_errors():
            _require_triton_library(request.plan)
    if out is not None:
        with one_line_errors():
            if not triton:
                require_replaceable(out)
                return
            require_no_export(out)
            for task in request.tasks:
                read_versions(out / task)


def _require_triton_library(plan: PlanConfig) -> None:
    """Refuse a plan of a library that Triton does not have; imports the library."""
    from glora_deploy.tensorrt_runtime.library import load_tensorrt

    from ..triton_repository.write import require_library

    require_library(load_tensorrt(plan.backend)[1], PLAN_FILE)


def _export_one(request: ExportRequest, task: str) -> None:
    store, artifact = open_task(
        request.store,
        task,
        request.version,
        request.backbone,
        request.checkpoint,
        quiet=request.quiet,
    )
    if request.push:
        _require_pushable(request.push, quiet=request.quiet)
    config = request.config()
    from ..pipeline import copy_out, export

    with steps(f"{task} {request.precision}", request.quiet) as on_step:
        done = export(store, artifact, config, on_step=on_step)
    _show(request, done)
    done.report.require_passed()
    if request.out and "triton" not in request.wanted:
        for path in copy_out(done, request.out, request.formats):
            stdout.print(str(path), soft_wrap=True)
    if request.push:
        address = _push(request.push, store, artifact, request.precision, quiet=request.quiet)
        stdout.print(address, soft_wrap=True)


def _show(request: ExportRequest, done: Exported) -> None:
    if not request.quiet:
        int8 = Proof.of(done.folder).int8 if "int8" in request.wanted else None
        print_proof(Proof(done.report, int8))
        if "delta" in request.formats:
            print_sizes(done.record)
        stdout.print(f"{done.folder}: {', '.join(sorted(done.record.files))}", soft_wrap=True)
    onnx = "onnx" in done.record.formats
    if request.precision == "fp16" and not onnx and not done.report.passed:
        stderr.print("fp16: an ONNX model keeps in fp32 what fp16 cannot hold; add --fmt onnx")


def _require_pushable(push: PushRequest, *, quiet: bool) -> None:
    from ..hub.push_pull import require_pushable

    on_step = hub_steps(quiet)
    with only_errors(quiet):
        require_pushable(push.repo, push.revision, token=push.token, on_step=on_step)


def _push(
    push: PushRequest,
    store: ArtifactStore,
    artifact: Artifact,
    precision: Precision,
    *,
    quiet: bool,
) -> str:
    """Push the export and give the address of the repository."""
    from ..hub.push_pull import push as push_export

    on_step = hub_steps(quiet)
    with only_errors(quiet):
        return push_export(
            store,
            artifact,
            precision,
            push.repo,
            private=push.private,
            revision=push.revision,
            license=push.license,
            token=push.token,
            on_step=on_step,
        )


def _write_triton(request: ExportRequest) -> list[TritonModel]:
    from ..triton_repository.config_pbtxt import Kind, TritonConfig
    from ..triton_repository.write import TaskExport, write_triton

    assert request.out is not None
    store = ArtifactStore.open(request.store)
    artifacts = [store.get(task, request.version) for task in dict.fromkeys(request.tasks)]
    exports = [
        TaskExport(manifest=artifact.manifest, folder=store.export_dir(artifact, request.precision))
        for artifact in artifacts
    ]
    kind: Kind = (
        "plan" if "trt" in request.wanted else "int8" if "int8" in request.wanted else "onnx"
    )
    config = TritonConfig(
        kind=kind, max_batch_size=request.plan.batch[2], versions_kept=request.keep_versions
    )
    with only_errors(request.quiet):
        return write_triton(request.out, exports, config)
