"""What the command line of an export refuses as wrong usage, before anything is read or made."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import typer

from glora_deploy.console import wrong_usage_of
from glora_deploy.precision import Precision

from ..tensorrt_plan.config import PlanConfig

_NEEDS = (
    (
        ("single_file",),
        {"onnx", "trt", "triton", "int8"},
        "--fmt onnx, trt or triton, or --quantize int8",
    ),
    (("with_preprocessing",), {"onnx"}, "--fmt onnx"),
    (("max_loss", "keep_float", "calibration_images", "int8_target"), {"int8"}, "--quantize int8"),
    (("batch",), {"trt", "triton"}, "--fmt trt or triton"),
    (
        (
            "backend",
            "compute_capability",
            "hardware_compatibility",
            "timing_cache",
            "refit",
            "strip",
        ),
        {"trt"},
        "--fmt trt",
    ),
    (("keep_versions",), {"triton"}, "--fmt triton"),
    (("private", "license", "revision", "token"), {"push"}, "--push"),
)
"""Parameters, what they bear on, of which at least one must be wanted, and how to ask for it."""


def require_export(
    context: typer.Context,
    tasks: Collection[str],
    wanted: Collection[str],
    *,
    precision: Precision,
    store: Path,
    out: Path | None,
    push: str | None,
) -> None:
    """Refuse an export that cannot be meant.

    Args:
        context: Of the command, which knows what stands on the command line.
        tasks: Names.
        wanted: What is to be written: values of ``--fmt`` and ``--quantize``, and ``pixels``.
        precision: Of the weights.
        store: Folder of the artifact store.
        out: Folder for a copy or for a Triton repository.
        push: Repository on the Hub.

    Raises:
        typer.BadParameter: Names the option.
    """
    if not tasks:
        raise typer.BadParameter("name a task: --task NAME", param_hint="--task")
    if "triton" in wanted and out is None:
        raise typer.BadParameter("name the model repository: --out DIR", param_hint="--out")
    if len(tasks) > 1 and out and "triton" not in wanted:
        raise typer.BadParameter("takes one --task at a time", param_hint="--out")
    if out is not None and out.resolve().is_relative_to(store.resolve()):
        raise typer.BadParameter(
            f"must lie outside the artifact store {store}, where 'glora verify' would report the "
            f"files, got {out}. The store keeps the export without --out",
            param_hint="--out",
        )
    if "int8" in wanted and precision != "fp32":
        raise typer.BadParameter(
            f"int8 is quantised from fp32. Leave out --precision {precision}",
            param_hint="--quantize",
        )
    if push is not None:
        _require_push(tasks, push, context.params.get("revision"))
    _require_effect(context, {*wanted, "push"} if push else {*wanted})


def require_triton(wanted: Collection[str], plan: PlanConfig) -> None:
    """Refuse what Triton could not serve.

    Args:
        wanted: As for :func:`require_export`.
        plan: How to build a plan; Triton is told the most images of its batch for any model.

    Raises:
        typer.BadParameter: Names the option.
    """
    if plan.batch[0] > 1:
        raise typer.BadParameter(
            "must begin with 1 for --fmt triton: single images come too", param_hint="--batch"
        )
    if "trt" not in wanted:
        return
    if "int8" in wanted:
        raise typer.BadParameter(
            "Triton serves one model of a task. Leave out --fmt trt or --quantize int8",
            param_hint="--quantize",
        )
    if plan.backend == "rtx":
        raise typer.BadParameter(
            "Triton loads no plan of rtx. Build it with tensorrt, or leave out --fmt trt",
            param_hint="--backend",
        )
    if plan.strip:
        raise typer.BadParameter("Triton cannot put the weights into a plan", param_hint="--strip")


def _require_effect(context: typer.Context, wanted: set[str]) -> None:
    """Refuse options that would be ignored."""
    for names, either, fix in _NEEDS:
        given = given_options(context, names)
        if given and not wanted & either:
            raise typer.BadParameter(f"has no effect without {fix}", param_hint=given)


def _require_push(tasks: Collection[str], push: str, revision: str | None) -> None:
    if len(tasks) > 1:
        raise typer.BadParameter("takes one --task at a time", param_hint="--push")
    from ..hub.client import require_branch, require_model_repo  # they bring the Hub's client

    with wrong_usage_of("--push"):
        require_model_repo(push)
    if revision is not None:
        with wrong_usage_of("--revision"):
            require_branch(push, revision)


def require_none_given(context: typer.Context, command: str) -> None:
    """Refuse options between the program and a subcommand, which takes its own after its name.

    Raises:
        typer.BadParameter: If there is one; names them all.
    """
    given = given_options(context, context.params)
    if given:
        raise typer.BadParameter(
            f"must come after the subcommand, as in {command} {given[0]}", context, param_hint=given
        )


def given_options(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Those of these parameters that stand on the command line, as options such as ``--fmt``.

    A value from the environment does not count: whoever sets HF_TOKEN asks for nothing.
    """
    spelled = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    return [spelled[name] for name in names if _is_given(context, name)]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    # By name: typer brings its own copy of click, older releases of it used click itself.
    return source is not None and source.name == "COMMANDLINE"
