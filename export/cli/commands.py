"""``python -m glora_deploy.export``: parse, call the library, print."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from glora_deploy.console import one_line_errors, stderr, stdout, wrong_usage_of
from glora_deploy.precision import Precision
from glora_deploy.quiet import only_errors
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import PLAN_FILE, Format
from glora_deploy.store.store import ArtifactStore

from ..int8.saturation import Target
from ..out_folder import require_no_export, require_replaceable
from ..tensorrt_plan.plan_json import Backend, HardwareCompatibility, PlanConfig
from ..triton_repository.model_folder import read_versions
from .bring import import_adapter, pull
from .common import (
    BackboneOption,
    CheckpointOption,
    ImagesOption,
    MaxErrorOption,
    Proof,
    QuietOption,
    RevisionOption,
    StoreOption,
    TokenOption,
    VersionOption,
    for_each,
    hub_steps,
    limits_with,
    open_task,
    print_proof,
    print_sizes,
    steps,
)
from .usage import require_export, require_none_given, require_triton

if TYPE_CHECKING:
    from ..triton_repository.write import TritonModel

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("pull")(pull)
app.command("import")(import_adapter)


class FormatName(Enum):
    """What ``--fmt`` takes: the files of an export folder, and a Triton repository of them."""

    merged = "merged"
    delta = "delta"
    onnx = "onnx"
    trt = "trt"
    triton = "triton"


INT8, TRT, TRITON, HUB = "int8", "TensorRT", "Triton", "Hugging Face Hub"

EPILOG = """
**Examples**

`python -m glora_deploy.export --task digits --fmt onnx` merge, prove, write model.onnx

`python -m glora_deploy.export --task digits --fmt onnx --precision fp16 --single-file`

`python -m glora_deploy.export --task digits --quantize int8 --keep-float 'blocks.*.mlp.fc2'`

`python -m glora_deploy.export --task svhn --fmt trt --precision fp16 --batch 1,8,64`

`python -m glora_deploy.export --task svhn --task dtd --fmt triton --out model_repository`

`python -m glora_deploy.export --task svhn --fmt onnx --push user/vit-svhn --private`

`python -m glora_deploy.export verify --task digits` measure an existing export again

`python -m glora_deploy.export pull user/vit-svhn` bring a delta into the store
"""


@app.callback(invoke_without_command=True, epilog=EPILOG)
def export_command(
    context: typer.Context,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task to export; may be given several times.", show_default=False),
    ] = None,
    fmt: Annotated[
        list[FormatName] | None,
        typer.Option(help="What to write; may be given several times.", show_default="merged"),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of every weight in the export.")] = "fp32",
    store: StoreOption = Path("artifacts"),
    version: VersionOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also copy the files to this folder, whose earlier export they replace; with "
            "triton, the model repository.",
            show_default=False,
        ),
    ] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Put the weights into model.onnx itself.")
    ] = False,
    quantize: Annotated[
        Literal["int8"] | None,
        typer.Option(
            help="Also write model.int8.onnx for ONNX Runtime on CPU, calibrated on the task's "
            "validation images and measured on its test images; with triton, what is served.",
            rich_help_panel=INT8,
            show_default=False,
        ),
    ] = None,
    max_loss: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of test accuracy that int8 may cost at most.",
            rich_help_panel=INT8,
        ),
    ] = 0.01,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Layers that stay float, such as 'blocks.*.mlp.fc2'; may be given several times.",
            rich_help_panel=INT8,
            show_default=False,
        ),
    ] = None,
    calibration_images: Annotated[
        int,
        typer.Option(
            min=1,
            help="Validation images to take the ranges of activations from.",
            rich_help_panel=INT8,
        ),
    ] = 128,
    int8_target: Annotated[
        Target,
        typer.Option(
            help="CPUs that shall serve. any takes 7 bits of each weight, which are right on all; "
            "vnni (x86: Cascade Lake, Zen 4 and newer) and arm take 8.",
            rich_help_panel=INT8,
        ),
    ] = "any",
    images: ImagesOption = 32,
    max_error: MaxErrorOption = None,
    backbone: BackboneOption = None,
    checkpoint: CheckpointOption = None,
    batch: Annotated[
        str,
        typer.Option(
            help="Least, best and most images per call; Triton is told the most.",
            rich_help_panel=TRT,
        ),
    ] = "1,8,32",
    backend: Annotated[
        Backend, typer.Option(help="Library that builds the plan.", rich_help_panel=TRT)
    ] = "auto",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="GPU to build for, such as 8.9, with RTX; may be given several times.",
            rich_help_panel=TRT,
            show_default=False,
        ),
    ] = None,
    hardware_compatibility: Annotated[
        HardwareCompatibility | None,
        typer.Option(help="Let a plan of tensorrt run on other GPUs.", rich_help_panel=TRT),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="File of kernel timings to reuse, with tensorrt.", rich_help_panel=TRT),
    ] = None,
    refit: Annotated[
        bool,
        typer.Option("--refit", help="Let the plan take other weights.", rich_help_panel=TRT),
    ] = False,
    strip: Annotated[
        bool,
        typer.Option("--strip", help="Leave the weights out of the plan.", rich_help_panel=TRT),
    ] = False,
    keep_versions: Annotated[
        int,
        typer.Option(
            min=1,
            help="Versions of a task that stay in the repository and are served.",
            rich_help_panel=TRITON,
        ),
    ] = 1,
    push: Annotated[
        str | None,
        typer.Option(help="user/name to push the export and its delta to.", rich_help_panel=HUB),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.", rich_help_panel=HUB)
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(help="Licence of the model; the backbone's if known.", rich_help_panel=HUB),
    ] = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    quiet: QuietOption = False,
) -> None:
    """Merge a task's delta into its backbone, prove the result equal, and write it out.

    Files go to STORE/TASK/VERSION/exports/PRECISION, with parity.json beside them. The exit status
    is 1 if the parity check fails; the export is then marked unusable.
    """
    if context.invoked_subcommand is not None:
        require_none_given(context, context.invoked_subcommand)
        return
    wanted = [name.value for name in fmt or [FormatName.merged]]
    wanted += [quantize] if quantize else []
    require_export(
        context, task or [], wanted, precision=precision, store=store, out=out, push=push
    )
    assert task is not None
    formats = _files_of(wanted)
    plan = PlanConfig(
        backend=backend,
        hardware_compatibility=hardware_compatibility,
        timing_cache=timing_cache,
        refit=refit,
        strip=strip,
    )
    with wrong_usage_of("--batch"):
        plan = replace(plan, batch=_batch(batch))
    with wrong_usage_of("--compute-capability"):
        plan = replace(plan, compute_capabilities=tuple(compute_capability or ()) or None)
    if "triton" in wanted:
        require_triton(wanted, plan)
        if "trt" in wanted:
            with one_line_errors():
                _require_triton_library(plan)

    if out is not None:
        # Before minutes go into what could not be written.
        with one_line_errors():
            if "triton" in wanted:
                require_no_export(out)
                for name in task:
                    read_versions(out / name)
            else:
                require_replaceable(out)

    def export_one(name: str) -> None:
        opened, artifact = open_task(store, name, version, backbone, checkpoint, quiet=quiet)
        if push:
            from ..hub.push_pull import require_pushable

            told = hub_steps(quiet)
            with only_errors(quiet):
                require_pushable(push, revision, token=token, on_step=told)
        # ONNX takes a second to import: after the cheap mistakes are found.
        from ..int8.quantize import QuantizeConfig
        from ..pipeline import ExportConfig, copy_out, export

        config = ExportConfig(
            formats=formats,
            precision=precision,
            single_file=single_file,
            n_images=images,
            limits=limits_with(precision, max_error),
            quantize=QuantizeConfig(
                max_loss=max_loss,
                n_calibration=calibration_images,
                keep_float=tuple(keep_float or ()),
                target=int8_target,
            ),
            plan=plan,
        )
        with steps(f"{name} {precision}", quiet) as on_step:
            done = export(opened, artifact, config, on_step=on_step)
        if not quiet:
            int8 = Proof.of(done.folder).int8 if quantize else None
            print_proof(Proof(done.report, int8))
            if "delta" in formats:
                print_sizes(done.record)
            stdout.print(f"{done.folder}: {', '.join(sorted(done.record.files))}", soft_wrap=True)
        if precision == "fp16" and "onnx" not in done.record.formats and not done.report.passed:
            stderr.print("fp16: an ONNX model keeps in fp32 what fp16 cannot hold; add --fmt onnx")
        done.report.require_passed()
        if out and "triton" not in wanted:
            for path in copy_out(done, out, formats):
                stdout.print(str(path), soft_wrap=True)
        if push:
            from ..hub.push_pull import push as push_export

            on_step = hub_steps(quiet)
            with only_errors(quiet):
                address = push_export(
                    opened,
                    artifact,
                    precision,
                    push,
                    private=private,
                    revision=revision,
                    license=license,
                    token=token,
                    on_step=on_step,
                )
            stdout.print(address, soft_wrap=True)

    for_each(task, export_one)
    if "triton" in wanted:
        assert out is not None
        with one_line_errors("interrupted; the model repository is whole"):
            models = _write_triton(
                store, task, version, precision, out, plan, wanted, keep_versions, quiet=quiet
            )
            for model in models:
                state = "written" if model.changed else "unchanged"
                stdout.print(
                    f"{model.folder}: {model.name} {model.version} {state}", soft_wrap=True
                )


@app.command()
def verify(
    task: Annotated[
        list[str], typer.Option(help="Task whose export to measure; may be given several times.")
    ],
    precision: Annotated[Precision, typer.Option(help="Which export of it.")] = "fp32",
    store: StoreOption = Path("artifacts"),
    version: VersionOption = None,
    images: ImagesOption = 32,
    max_error: MaxErrorOption = None,
    quiet: QuietOption = False,
) -> None:
    """Check an export's files against their checksums and measure it again, on this machine.

    The new reports take the place of parity.json and int8.json; where this machine computes in
    another way than the one of the old reports, both are shown. The exit status is 1 if anything
    fails.
    """

    def verify_one(name: str) -> None:
        opened, artifact = open_task(store, name, version, None, None, quiet=quiet)
        from ..pipeline import ExportConfig, verify_export

        config = ExportConfig(
            precision=precision, n_images=images, limits=limits_with(precision, max_error)
        )
        folder = opened.export_dir(artifact, precision)
        before = Proof.of(folder)
        with steps(f"{name} {precision}", quiet) as on_step:
            report = verify_export(opened, artifact, config, on_step=on_step)
        if not quiet:
            print_proof(Proof.of(folder), before)
        report.require_passed()

    for_each(task, verify_one)


def _files_of(wanted: list[str]) -> tuple[Format, ...]:
    """The formats of the export folder; a Triton repository is made from the ONNX model or plan."""
    if "triton" in wanted and "trt" not in wanted:
        wanted = [*wanted, "onnx"]
    names: list[Format] = ["merged", "delta", "onnx", "int8", "trt"]
    return tuple(name for name in names if name in wanted)


def _batch(text: str) -> tuple[int, int, int]:
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
        raise ValueError(f"must be min,opt,max such as 1,8,32, got {text!r}")
    least, best, most = (int(number) for number in numbers)
    return least, best, most


def _require_triton_library(plan: PlanConfig) -> None:
    """Before minutes go into a plan that Triton refuses; imports the library."""
    from ..tensorrt_plan.library import load_tensorrt
    from ..triton_repository.write import require_library

    require_library(load_tensorrt(plan.backend)[1], PLAN_FILE)


def _write_triton(
    root: Path,
    tasks: list[str],
    version: str | None,
    precision: Precision,
    repository: Path,
    plan: PlanConfig,
    wanted: list[str],
    keep_versions: int,
    *,
    quiet: bool,
) -> list[TritonModel]:
    from ..triton_repository.config_pbtxt import Kind, TritonConfig
    from ..triton_repository.write import TaskExport, write_triton

    store = ArtifactStore.open(root)
    artifacts: list[Artifact] = [store.get(task, version) for task in dict.fromkeys(tasks)]
    exports = [
        TaskExport(manifest=artifact.manifest, folder=store.export_dir(artifact, precision))
        for artifact in artifacts
    ]
    kind: Kind = "plan" if "trt" in wanted else "int8" if "int8" in wanted else "onnx"
    config = TritonConfig(kind=kind, max_batch_size=plan.batch[2], versions_kept=keep_versions)
    with only_errors(quiet):
        return write_triton(repository, exports, config)


def main() -> None:
    """Entry point of ``glora-export``."""
    app(prog_name="glora-export")
