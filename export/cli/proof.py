"""What was measured of an export, and its tables on stdout."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glora_deploy.console import print_table, stdout
from glora_deploy.errors import ArtifactError
from glora_deploy.parity import PARITY_FILE, Report
from glora_deploy.store.export_record import FILES, WEIGHTS_FILE, ExportRecord

if TYPE_CHECKING:
    from ..int8.report import QuantizeReport


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
    print_table(title, columns, rows, right=columns[1:2] + columns[3:])
    stdout.print(f"inputs: {report.data}; zeros, one colour, extreme scales", soft_wrap=True)
    for step in report.steps:
        if step.outcome == "skipped":
            stdout.print(f"{step.stage} skipped: {step.reason}", soft_wrap=True)
    for step in report.steps:
        if step.pixels is not None:
            stdout.print(
                f"{step.stage} on {step.inputs}: {step.pixels.share:.2%} of the pixels differ from "
                f"Pillow's, by up to {step.pixels.max_levels:g} of 255 levels",
                soft_wrap=True,
            )
    for kept in report.overflow:
        stdout.print(f"kept in fp32: {kept}", soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Proof:
    """What was measured of an export: parity.json and int8.json, None where there is none."""

    report: Report | None
    int8: QuantizeReport | None

    @classmethod
    def of(cls, folder: Path) -> Proof:
        """What the reports in an export folder say; one that cannot be read counts as missing."""
        from ..int8.report import QuantizeReport

        report = int8 = None
        with suppress(ArtifactError, FileNotFoundError):
            report = Report.from_json((folder / PARITY_FILE).read_bytes(), str(folder))
        with suppress(ArtifactError):
            int8 = QuantizeReport.read(folder)
        return cls(report, int8)


def print_proof(now: Proof, before: Proof | None = None) -> None:
    """The parity table, what int8 cost and brought, and the machine that all of it holds for.

    Args:
        now: What was just measured.
        before: What was measured earlier, and is shown if that machine computes in another way.
    """
    assert now.report is not None
    print_report(now.report)
    if now.int8 is not None:
        print_int8(now.int8)
    machine = now.report.machine
    earlier = before.report.machine if before and before.report else None
    if machine is None:
        return
    stdout.print(f"measured on {machine}", soft_wrap=True)
    if before is None or earlier is None or machine.computes_like(earlier):
        return
    stdout.print(f"proven before on {earlier}, which computes otherwise:", soft_wrap=True)
    assert before.report is not None
    for stage, error in _worst(before.report).items():
        was = _worst(now.report).get(stage)
        here = "not measured here" if was is None else f"{was:.1e} here"
        stdout.print(f"{stage}: {error:.1e} of the spread there, {here}", soft_wrap=True)
    if before.int8 is not None:
        stdout.print(f"there {_int8_line(before.int8)}", soft_wrap=True)


def _worst(report: Report) -> dict[str, float]:
    """The largest error of each stage that was measured, as a share of the spread."""
    errors: dict[str, float] = {}
    for step in report.steps:
        if step.comparisons:
            errors[step.stage] = max(errors.get(step.stage, 0.0), step.comparisons[0].error)
    return errors


def print_int8(report: QuantizeReport) -> None:
    """What quantising cost and brought."""
    stdout.print(_int8_line(report), soft_wrap=True)
    if not report.holds_here:
        stdout.print(
            f"int8 for {report.target}: {report.machine} saturates its 8-bit products. "
            "Serve it elsewhere, or quantise without --int8-target",
            soft_wrap=True,
        )


def _int8_line(report: QuantizeReport) -> str:
    accuracy = report.accuracy
    cost = "no labels at hand"
    if accuracy is not None:
        cost = f"test accuracy {accuracy.before:.1%} -> {accuracy.after:.1%}"
    speed = ", ".join(f"{t.speedup:.2f} times as fast at batch {t.batch}" for t in report.latency)
    size = report.int8_bytes / report.float_bytes
    cpus = "any CPU" if report.target == "any" else f"CPUs with {report.target}"
    against = report.comparison.against
    return f"int8 for {cpus}, against {against}: {cost}; {speed}; {size:.0%} of the bytes"


def print_sizes(record: ExportRecord) -> None:
    """What the delta takes beside the merged weights that it stands for."""
    adapter, _ = FILES["delta"]
    delta, merged = (record.files[name].size_bytes for name in (adapter, WEIGHTS_FILE))
    stdout.print(
        f"delta: {delta / 1e6:.2f} MB in {record.precision}, {delta / merged:.1%} of the "
        f"{merged / 1e6:.2f} MB of merged weights",
        soft_wrap=True,
    )
