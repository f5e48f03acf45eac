"""``python -m glora_deploy.export``: parse, call the library, print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from glora_deploy.artifact import Artifact
from glora_deploy.console import INTERRUPTED, make_table, one_line_errors, progress_bars, stdout
from glora_deploy.parity import DEFAULT_LIMITS, Limits, Precision, Report
from glora_deploy.store import ArtifactStore

from .record import Format

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class FormatName(Enum):
    """``Format`` as Typer needs it for an option that may be given several times."""

    merged = "merged"
    delta = "delta"
    onnx = "onnx"


Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", help="Task to export; may be given several times.", show_default=False),
]
Version = Annotated[
    str | None, typer.Option(help="Version of the task; the current one by default.")
]
Store = Annotated[Path, typer.Option(help="Folder of the artifact store.")]
Images = Annotated[int, typer.Option(min=1, help="Test images that the parity check looks at.")]
MaxError = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Largest logit error allowed in this precision, as a share of the logits' spread "
        f"(fp32 {DEFAULT_LIMITS['fp32'].max_error:g}, fp16 {DEFAULT_LIMITS['fp16'].max_error:g}, "
        f"bf16 {DEFAULT_LIMITS['bf16'].max_error:g}).",
        show_default=False,
    ),
]

EPILOG = """
**Examples**

`python -m glora_deploy.export --task digits --fmt onnx` merge, prove, write model.onnx

`python -m glora_deploy.export --task digits --fmt onnx --precision fp16 --single-file`

`python -m glora_deploy.export --task digits --fmt merged --out build/digits` also copy it out

`python -m glora_deploy.export verify --task digits` measure an existing export again
"""


@app.callback(invoke_without_command=True, epilog=EPILOG)
def export_command(
    context: typer.Context,
    task: Tasks = None,
    fmt: Annotated[
        list[FormatName] | None,
        typer.Option(help="What to write; may be given several times.", show_default="merged"),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of every weight in the export.")] = "fp32",
    store: Store = Path("artifacts"),
    version: Version = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Also copy the files to this folder.", show_default=False),
    ] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Put the weights into model.onnx itself.")
    ] = False,
    images: Images = 32,
    max_error: MaxError = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Backbone to merge into, if the store does not keep it."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Local weights of that backbone (.safetensors, .npz).")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Merge a task's delta into its backbone, prove the result equal, and write it out.

    Files go to STORE/TASK/VERSION/exports/PRECISION, with parity.json beside them. The exit status
    is 1 if the parity check fails; the export is then marked unusable.
    """
    if context.invoked_subcommand is not None:
        return
    if not task:
        raise typer.BadParameter("name a task: --task NAME", param_hint="--task")
    if out and len(task) > 1:
        raise typer.BadParameter("takes one --task at a time", param_hint="--out")
    formats: tuple[Format, ...] = tuple(dict.fromkeys(f.value for f in fmt or [FormatName.merged]))

    def export_one(name: str) -> None:
        opened, artifact = _open(store, name, version, backbone, checkpoint)
        # torch and ONNX take seconds to import: after the cheap mistakes are found.
        from .build import ExportConfig, copy_out, export

        config = ExportConfig(
            formats=formats,
            precision=precision,
            single_file=single_file,
            n_images=images,
            limits=_limits(precision, max_error),
        )
        with _steps(f"{name} {precision}", quiet) as on_step:
            done = export(opened, artifact, config, on_step=on_step)
        copied = copy_out(done, out, formats) if out else []
        if not quiet:
            _print(done.report)
            stdout.print(f"{done.folder}: {', '.join(sorted(done.record.files))}", soft_wrap=True)
            for path in copied:
                stdout.print(str(path), soft_wrap=True)
        done.report.require_passed()

    _for_each(task, export_one)


@app.command()
def verify(
    task: Annotated[
        list[str], typer.Option(help="Task whose export to measure; may be given several times.")
    ],
    precision: Annotated[Precision, typer.Option(help="Which export of it.")] = "fp32",
    store: Store = Path("artifacts"),
    version: Version = None,
    images: Images = 32,
    max_error: MaxError = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the exit status.")] = False,
) -> None:
    """Check an export's files against their checksums and measure its parity again.

    The new report takes the place of parity.json. The exit status is 1 if anything fails.
    """

    def verify_one(name: str) -> None:
        opened, artifact = _open(store, name, version, None, None)
        from .build import ExportConfig, verify_export

        config = ExportConfig(
            precision=precision, n_images=images, limits=_limits(precision, max_error)
        )
        with _steps(f"{name} {precision}", quiet) as on_step:
            report = verify_export(opened, artifact, config, on_step=on_step)
        if not quiet:
            _print(report)
        report.require_passed()

    _for_each(task, verify_one)


def _for_each(tasks: list[str], act: Callable[[str], None]) -> None:
    """Do every task, saying on one line which failed; the exit status is 1 if any did."""
    failed = False
    for task in dict.fromkeys(tasks):
        try:
            with one_line_errors("interrupted; the store is as it was"):
                act(task)
        except typer.Exit as stop:
            if stop.exit_code == INTERRUPTED:
                raise
            failed = True
    if failed:
        raise typer.Exit(1)


def _open(
    root: Path, task: str, version: str | None, backbone: str | None, checkpoint: Path | None
) -> tuple[ArtifactStore, Artifact]:
    """The store and the artifact; a backbone given by hand is checked and kept."""
    store = ArtifactStore.open(root)
    artifact = store.get(task, version)
    if backbone or checkpoint:
        from glora_deploy.backbone import load_backbone

        from .build import provide_backbone

        recorded = artifact.manifest.backbone
        side = recorded.input_size[-1] if "img_size" in recorded.model_args else None
        loaded = load_backbone(backbone or recorded.name, checkpoint=checkpoint, input_size=side)
        provide_backbone(store, artifact.manifest, loaded)
    return store, artifact


def _limits(precision: Precision, max_error: float | None) -> dict[Precision, Limits]:
    limits = dict(DEFAULT_LIMITS)
    if max_error is not None:
        own = limits[precision]
        limits[precision] = own.model_copy(update={"max_error": max_error})
    return limits


@contextmanager
def _steps(title: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done and for how long."""
    with progress_bars(quiet=quiet) as bars:
        bar = bars.add_task(title, total=None, note="")
        yield lambda step: bars.update(bar, advance=1, note=step)


def _print(report: Report) -> None:
    """One row a stage, the worst of its inputs; parity.json has every number."""
    rows = []
    for stage in dict.fromkeys(step.stage for step in report.steps):
        steps = [step for step in report.steps if step.stage == stage]
        outcome = next((s.outcome for s in steps if s.outcome != "pass"), "pass")
        against = [step.comparisons[0] for step in steps if step.comparisons]
        numbers = ("", "", "", "")
        if against:
            numbers = (
                f"{max(c.max_abs for c in against):.1e}",
                f"{max(c.error for c in against):.1e}",
                f"{min(c.min_cosine for c in against):.6f}",
                f"{min(c.agreement for c in against):.0%}",
            )
        rows.append((stage, str(sum(s.n_images for s in steps)), outcome, *numbers))
    columns = ("stage", "images", "outcome", "max abs", "of spread", "cosine", "top-1")
    title = f"{report.task}/{report.version} {report.precision} against the float64 merge"
    stdout.print(make_table(title, columns, rows, right=columns[1:2] + columns[3:]))
    stdout.print(f"inputs: {report.data}; zeros, one colour, extreme scales", soft_wrap=True)
    for step in report.steps:
        if step.outcome == "skipped":
            stdout.print(f"{step.stage} skipped: {step.reason}", soft_wrap=True)
    for kept in report.overflow:
        stdout.print(f"kept in fp32: {kept}", soft_wrap=True)


def main() -> None:
    """Entry point of ``glora-export``."""
    app(prog_name="glora-export")
