"""A TensorRT plan of an export folder: what to ask of the builder, the build, the files."""

from __future__ import annotations

import io
import mmap
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from glora_deploy.errors import ExportError
from glora_deploy.store.atomic_files import whole_file
from glora_deploy.store.export_record import MODEL_FILE, PLAN_FILE, SIDECAR_FILE, WEIGHTS_FILE
from glora_deploy.store.manifest_fields import FileRecord
from glora_deploy.tensorrt_runtime.library import (
    Builder,
    BuilderConfig,
    BuilderFlags,
    find_gpu,
    listed,
    load_tensorrt,
    logger_of,
    make_monitor,
    make_writer,
)
from glora_deploy.tensorrt_runtime.plan_json import Library, PlanInfo

from .config import PlanConfig
from .network import Network, parse_network

OnStep = Callable[[str], None]

PROGRESS_AFTER_S = 2.0
"""Builds shorter than this report nothing."""

_POLL_S = 0.02


def build_plan(
    onnx_path: Path,
    weights_path: Path,
    config: PlanConfig,
    *,
    on_step: OnStep = lambda _: None,
) -> bytes:
    """Build a plan in memory.

    One build at a time in a process: TensorRT has one log. Ctrl-C cancels the build.

    Args:
        onnx_path: A graph from ``image (batch, c, h, w)`` to logits, any batch size.
        weights_path: The safetensors file that its external data lie in.
        config: How to build it.
        on_step: Told what TensorRT is at, once a build takes longer than ``PROGRESS_AFTER_S``.

    Raises:
        MissingDependencyError: If neither library is installed.
        ExportError: If the graph or an option is refused, or the build fails; says what
            TensorRT said.
        ArtifactError: If the weights cannot be read.
    """
    buffer = io.BytesIO()
    _build(onnx_path, weights_path, config, buffer, on_step)
    return buffer.getvalue()


def write_plan(folder: Path, config: PlanConfig, *, on_step: OnStep = lambda _: None) -> PlanInfo:
    """Build ``model.plan`` from the ONNX model of an export folder, and ``plan.json`` beside it.

    The plan goes to the disk as it is made. On any failure the folder is as it was.

    Args:
        folder: Holds ``model.onnx`` and ``model.safetensors``.
        config: How to build it.
        on_step: As for :func:`build_plan`.

    Returns:
        The content of plan.json.

    Raises:
        MissingDependencyError, ArtifactError: As :func:`build_plan`.
        ExportError: As :func:`build_plan`, or if a file is missing or there is no space.
    """
    graph, weights = folder / MODEL_FILE, folder / WEIGHTS_FILE
    for path in (graph, weights):
        if not path.is_file():
            raise ExportError(f"{path}: must be a file, none is here. Export the ONNX model first.")
    # No plan is smaller than the weights in it.
    _require_space(folder, 0 if config.strip else weights.stat().st_size)
    plan, started = folder / PLAN_FILE, time.perf_counter()
    try:
        with whole_file(plan) as file, whole_file(folder / SIDECAR_FILE) as sidecar:
            built = _build(graph, weights, config, file, on_step)
            build_seconds = time.perf_counter() - started
            file.flush()
            info = PlanInfo(
                library=built.library,
                version=built.version,
                gpu=built.gpu,
                compute_capabilities=built.compute_capabilities,
                hardware_compatibility=config.hardware_compatibility,
                inputs=built.network.inputs(),
                outputs=built.network.outputs(),
                batch=config.batch,
                precision=config.precision,
                tf32=built.tf32,
                refittable=config.refit,
                stripped=config.strip,
                parameters=built.network.parameters,
                graph=FileRecord.of_file(graph),
                weights=FileRecord.of_file(weights),
                plan=FileRecord.of_file(Path(file.name)),
                build_seconds=round(build_seconds, 3),
            )
            sidecar.write(info.to_json())
    except OSError as error:
        raise ExportError(f"{plan}: must be written whole, got: {error.strerror}.") from error
    return info


def _require_space(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise ExportError(
            f"{folder}: a plan needs {size_bytes / 1e6:.1f} MB of free space, "
            f"got {free / 1e6:.1f} MB."
        )


@dataclass(frozen=True, slots=True)
class _Built:
    """What became of a build, apart from the plan's bytes."""

    library: Library
    version: str
    network: Network
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    tf32: bool


def _build(
    onnx_path: Path, weights_path: Path, config: PlanConfig, file: BinaryIO, on_step: OnStep
) -> _Built:
    library, name = load_tensorrt(config.backend)
    # Before the library tries: it would write what it thinks of it straight to stderr.
    if (config.refit or config.strip) and find_gpu() is None:
        raise ExportError(
            f"{PLAN_FILE}: a refittable or stripped plan must be built on a GPU, also with {name}, "
            "got none. Leave out --refit and --strip."
        )
    logger = logger_of(library)
    logger.errors.clear()
    builder: Builder = library.Builder(logger)
    network = parse_network(library, logger, builder, onnx_path, weights_path, config.precision)
    settings = _settings(library, name, builder, network, config)
    if not _serialize(library, builder, network, settings, file, on_step):
        raise ExportError(_why_no_plan(onnx_path, name, logger.errors))
    if config.timing_cache is not None:
        timings: Any = settings.get_timing_cache().serialize()
        with whole_file(config.timing_cache) as cache:
            cache.write(memoryview(timings))
    gpu = find_gpu() if name == "tensorrt" else None
    return _Built(
        library=name,
        version=library.__version__,
        network=network,
        gpu=gpu.name if gpu else None,
        compute_capabilities=(gpu.capability,) if gpu else config.compute_capabilities or (),
        tf32=settings.get_flag(library.BuilderFlag.TF32),
    )


def _settings(
    library: ModuleType, name: Library, builder: Builder, network: Network, config: PlanConfig
) -> BuilderConfig:
    settings = builder.create_builder_config()
    flags: BuilderFlags = library.BuilderFlag
    # On by default, it would round the inputs of every float32 product to 10 bits. A half-precision
    # plan has float32 products only where a layer needs them exact.
    settings.clear_flag(flags.TF32)
    if config.refit:
        settings.set_flag(flags.REFIT)
    if config.strip:
        settings.set_flag(flags.STRIP_PLAN)
    profile = builder.create_optimization_profile()
    for image in network.inputs():
        _, *size = image.shape
        least, best, most = (library.Dims((n, *size)) for n in config.batch)
        profile.set_shape(image.name, least, best, most)
    settings.add_optimization_profile(profile)
    if config.hardware_compatibility is not None:
        _set_hardware_compatibility(library, name, settings, config.hardware_compatibility)
    if config.compute_capabilities is not None:
        _set_compute_capabilities(library, name, settings, config.compute_capabilities)
    if config.timing_cache is not None:
        _set_timing_cache(name, settings, config.timing_cache)
    return settings


def _set_hardware_compatibility(
    library: ModuleType, name: Library, settings: BuilderConfig, level: str
) -> None:
    levels = library.HardwareCompatibilityLevel.__members__
    # TensorRT-RTX has the levels, and warns that it does not support them.
    if name != "tensorrt" or level.upper() not in levels:
        raise ExportError(
            f"--hardware-compatibility must be left out with {name} {library.__version__}, "
            f"which does not offer {level}."
        )
    settings.hardware_compatibility_level = levels[level.upper()]


def _set_compute_capabilities(
    library: ModuleType, name: Library, settings: Any, wanted: tuple[str, ...]
) -> None:
    if not hasattr(settings, "set_compute_capability"):
        raise ExportError(
            f"--compute-capability must be left out with {name} {library.__version__}, which "
            "builds for the GPU of this machine. Use --hardware-compatibility, or --backend rtx."
        )
    offered = {
        f"{member[2:-1]}.{member[-1]}": value
        for member, value in library.ComputeCapability.__members__.items()
        if member.startswith("SM")
    }
    settings.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        if capability not in offered:
            raise ExportError(
                f"--compute-capability must be of {', '.join(offered)} with {name} "
                f"{library.__version__}, got {capability}."
            )
        settings.set_compute_capability(offered[capability], index)


def _set_timing_cache(name: Library, settings: BuilderConfig, path: Path) -> None:
    if name != "tensorrt":
        raise ExportError(
            f"--timing-cache must be left out with {name}, which times nothing when it builds."
        )
    saved = path.read_bytes() if path.exists() else b""
    if not settings.set_timing_cache(settings.create_timing_cache(saved), False):
        raise ExportError(f"{path}: must be a timing cache of this library and GPU. Delete it.")


def _serialize(
    library: ModuleType,
    builder: Builder,
    network: Network,
    settings: BuilderConfig,
    file: BinaryIO,
    on_step: OnStep,
) -> bool:
    """Build the plan into a file; False if the library gives none.

    The build has a thread of its own: while this one waits it can hear Ctrl-C, which the library's
    callbacks into Python would swallow.
    """
    monitor = make_monitor(library)
    settings.progress_monitor = monitor
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(_serialize_now, library, builder, network, settings, file)
        try:
            _watch(job, network.weights, lambda: str(monitor.text), on_step)
        except BaseException:
            monitor.cancelled = True
            raise
    return job.result()


def _serialize_now(
    library: ModuleType,
    builder: Builder,
    network: Network,
    settings: BuilderConfig,
    file: BinaryIO,
) -> bool:
    if not hasattr(builder, "build_serialized_network_to_stream"):
        plan: Any = builder.build_serialized_network(network.definition, settings)
        if plan is None:
            return False
        file.write(memoryview(plan))
        return True
    writer = make_writer(library, file)
    done = builder.build_serialized_network_to_stream(network.definition, settings, writer)
    # The library does not look at what the writer returns.
    if writer.error is not None:
        raise writer.error
    return bool(done)


def _watch(job: Future[bool], weights: mmap.mmap, text: Callable[[], str], on_step: OnStep) -> None:
    """Wait for a build; report its steps, and keep the mapped weights out of resident memory."""
    started, told = time.monotonic(), ""
    while wait([job], _POLL_S).not_done:
        if sys.platform == "linux":
            # The builder copies each weight once and holds on to the mapping: let the pages go.
            weights.madvise(mmap.MADV_DONTNEED)
        if time.monotonic() - started > PROGRESS_AFTER_S and (now := text()) != told:
            on_step(f"building the plan: {now}")
            told = now


def _why_no_plan(path: Path, name: Library, errors: list[str]) -> str:
    # Without a driver, whatever failed is followed by the library's failure to clean up.
    reasons = [error for error in errors if "catchCudaError" not in error]
    return f"{path.name}: {name} must build a plan, got {listed(reasons)}"
