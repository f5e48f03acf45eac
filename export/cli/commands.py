"""``glora export``, a program of its own too: its options, and what they ask for."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from glora_deploy.console import wrong_usage_of
from glora_deploy.options import QuietOption, StoreOption, VersionOption, complete_task, named
from glora_deploy.parity import limits_with
from glora_deploy.precision import Precision
from glora_deploy.program import HELP_OPTIONS, Command, Program, examples
from glora_deploy.store.default_place import DEFAULT_STORE
from glora_deploy.tensorrt_runtime.plan_json import Backend, HardwareCompatibility

from ..int8.saturation import Target
from ..tensorrt_plan.config import PlanConfig
from .each_task import for_each, open_task
from .extract import extract
from .import_adapter import import_adapter
from .options import (
    BackboneOption,
    CheckpointOption,
    ImagesOption,
    MaxErrorOption,
    RevisionOption,
    TokenOption,
)
from .progress import steps
from .proof import Proof, print_proof
from .pull import pull
from .run_export import ExportRequest, PushRequest, Wanted, run_export
from .usage import require_export, require_none_given, require_triton

app = typer.Typer(
    cls=Program,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    context_settings=HELP_OPTIONS,
)
app.command("pull", cls=Command)(pull)
app.command("import", cls=Command)(import_adapter)
app.command("extract", cls=Command)(extract)


class _Fmt(Enum):
    """Values of ``--fmt``: what is wanted, int8 apart; typer takes a list of no Literal."""

    merged = "merged"
    delta = "delta"
    onnx = "onnx"
    trt = "trt"
    triton = "triton"


INT8, TRT, TRITON, HUB = "int8", "TensorRT", "Triton", "Hugging Face Hub"


@app.callback(invoke_without_command=True)
@examples(
    "--task digits --fmt onnx  # merge, prove, write model.onnx",
    "--task digits --fmt onnx --precision fp16 --single-file",
    "--task digits --fmt onnx --with-preprocessing  # and model.pixels.onnx",
    "--task digits --quantize int8 --keep-float 'blocks.*.mlp.fc2'",
    "--task svhn --fmt trt --precision fp16 --batch 1,8,64",
    "--task svhn --task dtd --fmt triton --out model_repository",
    "--task svhn --fmt onnx --push user/vit-svhn --private",
    "verify --task digits  # measure an existing export again",
    "pull user/vit-svhn  # bring a delta into the store",
)
def export_command(
    context: typer.Context,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Task to export; may be given several times.",
            show_default=False,
            autocompletion=complete_task,
            callback=named("task"),
        ),
    ] = None,
    fmt: Annotated[
        list[_Fmt] | None,
        typer.Option(help="What to write; may be given several times.", show_default="merged"),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of every weight in the export.")] = "fp32",
    store: StoreOption = DEFAULT_STORE,
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
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="Also write model.pixels.onnx, which takes decoded pixels of any size and gives "
            "probabilities.",
        ),
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
        Backend,
        typer.Option(
            metavar="LIBRARY",
            help="What builds the plan: auto, tensorrt or rtx.",
            rich_help_panel=TRT,
        ),
    ] = "auto",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="8.9",
            help="GPU to build for, with RTX; may be given several times.",
            rich_help_panel=TRT,
            show_default=False,
        ),
    ] = None,
    hardware_compatibility: Annotated[
        HardwareCompatibility | None,
        typer.Option(
            metavar="WHICH",
            help="Other GPUs that a plan of tensorrt shall run on: ampere_plus or "
            "same_compute_capability.",
            rich_help_panel=TRT,
        ),
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
    names = [name.value for name in fmt or [_Fmt.merged]] + ([quantize] if quantize else [])
    names += ["pixels"] if with_preprocessing else []
    wanted = cast(tuple[Wanted, ...], tuple(names))
    require_export(
        context, task or [], wanted, precision=precision, store=store, out=out, push=push
    )
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
    where = None
    if push:
        where = PushRequest(
            repo=push, private=private, license=license, revision=revision, token=token
        )
    request = ExportRequest(
        tasks=tuple(task or ()),
        wanted=wanted,
        precision=precision,
        store=store,
        version=version,
        out=out,
        single_file=single_file,
        n_images=images,
        max_error=max_error,
        backbone=backbone,
        checkpoint=checkpoint,
        max_loss=max_loss,
        n_calibration=calibration_images,
        keep_float=tuple(keep_float or ()),
        int8_target=int8_target,
        plan=plan,
        keep_versions=keep_versions,
        push=where,
        quiet=quiet,
    )
    run_export(request)


@app.command("verify", cls=Command)
@examples("--task digits", "--task digits --precision fp16")
def verify_command(
    task: Annotated[
        list[str],
        typer.Option(
            help="Task whose export to measure; may be given several times.",
            autocompletion=complete_task,
            callback=named("task"),
        ),
    ],
    precision: Annotated[Precision, typer.Option(help="Which export of it.")] = "fp32",
    store: StoreOption = DEFAULT_STORE,
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
        from ..pipeline import ExportConfig, prove_again

        config = ExportConfig(
            precision=precision, n_images=images, limits=limits_with(precision, max_error)
        )
        folder = opened.export_dir(artifact, precision)
        before = Proof.of(folder)
        with steps(f"{name} {precision}", quiet) as on_step:
            report = prove_again(opened, artifact, config, on_step=on_step)
        if not quiet:
            print_proof(Proof.of(folder), before)
        report.require_passed()

    for_each(task, verify_one)


def _batch(text: str) -> tuple[int, int, int]:
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
        raise ValueError(f"must be min,opt,max such as 1,8,32, got {text!r}")
    least, best, most = (int(number) for number in numbers)
    return least, best, most


def main() -> None:
    """Entry point of ``glora-export``."""
    app()
