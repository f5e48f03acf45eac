"""What the export commands share: options, opening a task, progress, the parity table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from glora_deploy.artifact import Artifact
from glora_deploy.console import (
    INTERRUPTED,
    make_table,
    one_line_errors,
    progress_line,
    stderr,
    stdout,
)
from glora_deploy.parity import DEFAULT_LIMITS, Limits, Precision, Report
from glora_deploy.store import ArtifactStore

from .files import FILES, WEIGHTS_FILE
from .record import ExportRecord

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the artifact store.")]
VersionOption = Annotated[
    str | None,
    typer.Option("--version", help="Version of the task; the current one by default."),
]
ImagesOption = Annotated[
    int, typer.Option("--images", min=1, help="Test images that the parity check looks at.")
]
MaxErrorOption = Annotated[
    float | None,
    typer.Option(
        "--max-error",
        min=0,
        help="Largest logit error allowed in this precision, as a share of the logits' spread "
        f"(fp32 {DEFAULT_LIMITS['fp32'].max_error:g}, fp16 {DEFAULT_LIMITS['fp16'].max_error:g}, "
        f"bf16 {DEFAULT_LIMITS['bf16'].max_error:g}).",
        show_default=False,
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option("--backbone", help="timm name of the backbone, if the store does not keep it."),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="Local weights of that backbone (.safetensors, .npz)."),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no table; errors only.")
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar="HF_TOKEN",
        help="Access token for the Hub; the one that is logged in by default.",
        show_default=False,
        show_envvar=True,
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")
]

UNCHANGED = "interrupted; the store is as it was"


def for_each(tasks: list[str], act: Callable[[str], None]) -> None:
    """Do every task, saying on one line which failed.

    Raises:
        typer.Exit: With 1 if any failed, at once if the user interrupts.
    """
    failed = False
    for task in dict.fromkeys(tasks):
        try:
            with one_line_errors(UNCHANGED):
                act(task)
        except typer.Exit as stop:
            if stop.exit_code == INTERRUPTED:
                raise
            failed = True
    if failed:
        raise typer.Exit(1)


def open_task(
    root: Path, task: str, version: str | None, backbone: str | None, checkpoint: Path | None
) -> tuple[ArtifactStore, Artifact]:
    """The store and the artifact; a backbone given by hand is checked and kept."""
    store = ArtifactStore.open(root)
    artifact = store.get(task, version)
    if backbone or checkpoint:
        from glora_deploy.backbone import load_backbone

        from .stored_backbone import provide_backbone

        recorded = artifact.manifest.backbone
        loaded = load_backbone(
            backbone or recorded.name,
            checkpoint=checkpoint,
            input_size=recorded.input_size[1:],
            model_args=recorded.model_args,
        )
        provide_backbone(store, artifact.manifest, loaded)
    return store, artifact


def limits_with(precision: Precision, max_error: float | None) -> dict[Precision, Limits]:
    """The default limits, with another ``max_error`` for one precision."""
    limits = dict(DEFAULT_LIMITS)
    if max_error is not None:
        limits[precision] = limits[precision].model_copy(update={"max_error": max_error})
    return limits


@contextmanager
def steps(title: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done and for how long."""
    with progress_line(quiet=quiet) as line:
        job = line.add_task(title, total=None, note="")
        yield lambda step: line.update(job, note=step)


def hub_steps(quiet: bool) -> Callable[[str], None]:
    """Lines on stderr between the Hub client's own progress bars, which a live line would break."""
    if not quiet:
        return lambda step: stderr.print(step, soft_wrap=True)
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    return lambda _: None


def print_report(report: Report) -> None:
    """One row a stage, the worst of its inputs; parity.json has every number."""
    rows = []
    for stage in dict.fromkeys(step.stage for step in report.steps):
        of_stage = [step for step in report.steps if step.stage == stage]
        outcome = next((s.outcome for s in of_stage if s.outcome != "pass"), "pass")
        against = [step.comparisons[0] for step in of_stage if step.comparisons]
        numbers = ("", "", "", "")
        if against:
            numbers = (
                f"{max(c.max_abs for c in against):.1e}",
                f"{max(c.error for c in against):.1e}",
                f"{min(c.min_cosine for c in against):.6f}",
                f"{min(c.agreement for c in against):.0%}",
            )
        rows.append((stage, str(sum(s.n_images for s in of_stage)), outcome, *numbers))
    columns = ("stage", "images", "outcome", "max abs", "of spread", "cosine", "top-1")
    title = f"{report.task}/{report.version} {report.precision} against the float64 merge"
    stdout.print(make_table(title, columns, rows, right=columns[1:2] + columns[3:]))
    stdout.print(f"inputs: {report.data}; zeros, one colour, extreme scales", soft_wrap=True)
    for step in report.steps:
        if step.outcome == "skipped":
            stdout.print(f"{step.stage} skipped: {step.reason}", soft_wrap=True)
    for kept in report.overflow:
        stdout.print(f"kept in fp32: {kept}", soft_wrap=True)


def print_int8(folder: Path) -> None:
    """What quantising cost and brought."""
    from .int8_report import QuantizeReport

    report = QuantizeReport.read(folder)
    accuracy = report.accuracy
    cost = "no labels at hand"
    if accuracy is not None:
        cost = f"test accuracy {accuracy.before:.1%} -> {accuracy.after:.1%}"
    speed = ", ".join(f"{t.speedup:.2f} times as fast at batch {t.batch}" for t in report.latency)
    size = report.int8_bytes / report.float_bytes
    stdout.print(f"int8: {cost}; {speed}; {size:.0%} of the bytes", soft_wrap=True)


def print_sizes(record: ExportRecord) -> None:
    """What the delta takes beside the merged weights that it stands for."""
    adapter, _ = FILES["delta"]
    delta, merged = (record.files[name].size_bytes for name in (adapter, WEIGHTS_FILE))
    stdout.print(
        f"delta: {delta / 1e6:.2f} MB in {record.precision}, {delta / merged:.1%} of the "
        f"{merged / 1e6:.2f} MB of merged weights",
        soft_wrap=True,
    )
