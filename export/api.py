"""Exporting from Python: what the command line takes as options, taken as keywords."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from glora_deploy.parity import limits_with
from glora_deploy.precision import Precision
from glora_deploy.store.export_record import Format
from glora_deploy.store.store import ArtifactStore
from glora_deploy.tensorrt_runtime.plan_json import Backend, HardwareCompatibility

from .int8.saturation import Target
from .out_folder import require_replaceable
from .tensorrt_plan.config import PlanConfig

if TYPE_CHECKING:  # it brings ONNX, which takes a second to import
    from .pipeline import Exported

FileFormat = Literal["merged", "delta", "onnx", "trt"]

NEEDS: tuple[tuple[tuple[str, ...], frozenset[Format]], ...] = (
    (("single_file",), frozenset({"onnx", "trt", "int8"})),
    (("with_preprocessing",), frozenset({"onnx"})),
    (
        ("max_loss", "keep_float", "calibration_images", "int8_target"),
        frozenset({"int8"}),
    ),
    (("batch",), frozenset({"trt"})),
    (
        (
            "backend",
            "compute_capability",
            "hardware_compatibility",
            "timing_cache",
            "refit",
            "strip",
        ),
        frozenset({"trt"}),
    ),
)
"""Settings, and the formats of which one at least must be asked for to give them an effect."""


def export(
    task: str,
    *,
    fmt: FileFormat | Sequence[FileFormat] = ("merged",),
    precision: Precision = "fp32",
    store: Path | str = "artifacts",
    version: str | None = None,
    out: Path | str | None = None,
    single_file: bool = False,
    with_preprocessing: bool = False,
    quantize: Literal["int8"] | None = None,
    max_loss: float = 0.01,
    keep_float: Sequence[str] = (),
    calibration_images: int = 128,
    int8_target: Target = "any",
    images: int = 32,
    max_error: float | None = None,
    backbone: str | None = None,
    checkpoint: Path | str | None = None,
    batch: tuple[int, int, int] = (1, 8, 32),
    backend: Backend = "auto",
    compute_capability: Sequence[str] = (),
    hardware_compatibility: HardwareCompatibility | None = None,
    timing_cache: Path | str | None = None,
    refit: bool = False,
    strip: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> Exported:
    """Merge a task's delta into its backbone, prove the result equal, and write it into the store.

    As ``python -m glora_deploy.export`` does for one task, without its Triton repositories and
    pushes: those are ``export.triton_repository.write.write_triton`` and
    ``export.hub.push_pull.push``. Nothing is printed.

    Args:
        task: What to export.
        fmt: What to write.
        precision: Of every weight in the export.
        store: Folder of the store.
        version: Of the task; the current one by default.
        out: Also copy the files to this folder, whose earlier export they replace.
        single_file: Put the weights into model.onnx itself.
        with_preprocessing: Also write model.pixels.onnx, which takes decoded pixels of any size and
            gives probabilities.
        quantize: ``int8`` also writes model.int8.onnx for ONNX Runtime on CPU.
        max_loss: Share of test accuracy, 0 to 1, that int8 may cost at most.
        keep_float: Layers that int8 leaves alone, such as ``blocks.*.mlp.fc2``.
        calibration_images: Validation images to take the ranges of activations from.
        int8_target: CPUs that shall serve the int8 model.
        images: Test images that the parity check looks at.
        max_error: Largest logit error allowed, as a share of the logits' spread; that of the
            precision by default.
        backbone: timm name of the backbone, if the store does not keep it.
        checkpoint: Local weights of that backbone.
        batch: Least, best and most images per call of a TensorRT plan.
        backend: Library that builds the plan.
        compute_capability: GPUs to build for, such as ``8.9``, with RTX.
        hardware_compatibility: Let a plan of tensorrt run on other GPUs.
        timing_cache: File of kernel timings to reuse, with tensorrt.
        refit: Let the plan take other weights.
        strip: Leave the weights out of the plan.
        on_step: Called with what happens next.

    Returns:
        The folder in the store, its parity report, which passed, and its record.

    Raises:
        ValueError: If a setting cannot be meant, or would have no effect; names it.
        ParityError: If the parity check fails; the export is stored, marked unusable, and not
            copied out.
        GloraDeployError: As the steps do; the store is then as it was.
        OSError: If there is no space; likewise.
    """
    asked = locals()
    formats = _formats(fmt, quantize, with_preprocessing)
    _require_effect({name: asked[name] for names, _ in NEEDS for name in names}, formats)
    plan = PlanConfig(
        batch=batch,
        backend=backend,
        compute_capabilities=tuple(compute_capability) or None,
        hardware_compatibility=hardware_compatibility,
        timing_cache=None if timing_cache is None else Path(timing_cache),
        refit=refit,
        strip=strip,
    )
    folder = None if out is None else Path(out)
    if folder is not None:
        if folder.resolve().is_relative_to(Path(store).resolve()):
            raise ValueError(
                f"out must lie outside the artifact store {store}, got {folder}. The store keeps "
                "the export without it."
            )
        require_replaceable(folder)
    # ONNX takes a second to import: after the cheap mistakes are found.
    from .int8.quantize import QuantizeConfig
    from .pipeline import ExportConfig, copy_out, export as run

    config = ExportConfig(
        formats=formats,
        precision=precision,
        single_file=single_file,
        n_images=images,
        limits=limits_with(precision, max_error),
        quantize=QuantizeConfig(
            max_loss=max_loss,
            n_calibration=calibration_images,
            keep_float=tuple(keep_float),
            target=int8_target,
        ),
        plan=plan,
    )
    opened = ArtifactStore.open(store)
    artifact = opened.get(task, version)
    if backbone or checkpoint:
        from .stored_backbone import provide_named_backbone

        provide_named_backbone(opened, artifact.manifest, backbone, checkpoint)
    done = run(opened, artifact, config, on_step=on_step)
    done.report.require_passed()
    if folder is not None:
        copy_out(done, folder, formats)
    return done


def _formats(
    fmt: str | Sequence[str], quantize: str | None, with_preprocessing: bool
) -> tuple[Format, ...]:
    """In the order they are made."""
    wanted = {fmt} if isinstance(fmt, str) else {*fmt}
    if unknown := sorted(wanted - {*get_args(FileFormat)}):
        raise ValueError(f"fmt must be of {get_args(FileFormat)}, got {unknown[0]!r}")
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize must be 'int8' or None, got {quantize!r}")
    wanted |= {quantize} if quantize else set()
    wanted |= {"pixels"} if with_preprocessing else set()
    return tuple(name for name in get_args(Format) if name in wanted)


def _require_effect(settings: Mapping[str, Any], formats: Collection[Format]) -> None:
    """Refuse settings that are not as by default and would be ignored."""
    defaults = export.__kwdefaults__ or {}
    for names, either in NEEDS:
        given = [name for name in names if _plain(settings[name]) != defaults[name]]
        if given and not either & {*formats}:
            raise ValueError(
                f"{' and '.join(given)}: no effect without the format {' or '.join(sorted(either))}"
            )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
