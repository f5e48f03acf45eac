"""The stages of one export, from the training graph to the last file, ready to be compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from glora_deploy.errors import NotRunnableError
from glora_deploy.merge.to_file import write_merged
from glora_deploy.precision import Precision
from glora_deploy.store.artifact import Artifact, read_artifact
from glora_deploy.store.export_record import DELTA_FOLDER, MODEL_FILE, WEIGHTS_FILE, Format
from glora_deploy.tensorrt_runtime.library import find_gpu

from ..onnx_model.ort_session import PROVIDERS, OnnxSession, has_cuda
from .batch_sizes import Logits, within

REFERENCE = "merged-fp64"
NO_BF16 = "ONNX Runtime has no bf16 arithmetic on the CPU"


class SkipStage(Exception):  # noqa: N818  # not an error: what it says is part of the report
    """A stage that cannot run here; the text says why."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One thing that computes logits, and how closely it must do so."""

    name: str
    precision: Precision
    load: Callable[[], Logits]
    """Makes it ready; called once, and the result dropped before the next stage is loaded.
    SkipStage or a MissingDependencyError leaves it out."""
    torch: bool = True
    """Whether it runs in torch, whose libraries stay in memory from then on."""
    provider: str = "torch on the CPU"
    """What computes it, for the report."""


@dataclass(frozen=True, slots=True)
class ExportStages:
    """Makes the stages of one export folder.

    The torch networks read their weights from files, which are written when a stage is loaded and
    unlinked at once: the mapping keeps the bytes until the stage is dropped. This module must not
    import torch, so that what needs none can run before it takes its half gigabyte.
    """

    artifact: Artifact
    backbone: Path
    """The backbone's safetensors file."""
    folder: Path
    """The export."""
    scratch: Path
    """A folder on a disk with room for the network in float64."""

    def reference(self) -> Logits:
        """The float64 merged network."""
        from .torch_networks import write_reference

        return self._of_file(lambda path: write_reference(path, self.artifact, self.backbone))

    def all(
        self, precision: Precision, formats: Collection[Format], overflow: Sequence[str] = ()
    ) -> list[Stage]:
        """What parity compares, in order from the training graph to the engine.

        Args:
            precision: Of the export.
            formats: What lies in the folder.
            overflow: Operations that the ONNX model computes in fp32, as half precision cannot.
        """
        stages = [Stage("supernet-fp32", "fp32", self._supernet)]
        if precision != "fp32":
            stages.append(Stage("merged-fp32", "fp32", lambda: self._merged(self.artifact)))
        if overflow:
            why = f"{overflow[0]} leaves fp16; the ONNX model computes it in fp32"
            stages.append(Stage(f"merged-{precision}", precision, partial(self._written_only, why)))
        else:
            stages.append(Stage(f"merged-{precision}", precision, self._written))
        if "delta" in formats and precision != "fp32":
            stages.append(Stage(f"delta-{precision}", precision, self._delta))
        if "onnx" in formats:
            no_bf16 = partial(_skip, NO_BF16)
            load = no_bf16 if precision == "bf16" else self._onnx
            cpu, cuda = (provider for provider, _ in PROVIDERS.values())
            if precision == "fp16":  # it converts every weight as it loads
                cpu += ", in fp32 where the CPU has no fp16"
            stages.append(Stage(f"onnx-{precision}", precision, load, torch=False, provider=cpu))
            if precision != "bf16" and has_cuda():
                # What the CPU may compute in fp32 is computed in fp16 there.
                name = f"onnx-{precision}-cuda"
                stages.append(Stage(name, precision, self._onnx_on_gpu, provider=cuda))
        if "trt" in formats:
            stages.append(Stage(f"trt-{precision}", precision, self._engine, provider="TensorRT"))
        return stages

    def _supernet(self) -> Logits:
        from .torch_networks import supernet, torch_logits

        return torch_logits(supernet(self.artifact, self.backbone))

    def _merged(self, artifact: Artifact) -> Logits:
        """The network merged in fp32."""
        layers = artifact.manifest.shapes()
        return self._of_file(
            lambda path: write_merged(path, self.backbone, artifact.tensors(), layers, metadata={})
        )

    def _delta(self) -> Logits:
        """The network merged in fp32 from the rounded delta."""
        return self._merged(read_artifact(self.folder / DELTA_FOLDER))

    def _written(self) -> Logits:
        """The network of config.json and model.safetensors, as timm loads it for anyone."""
        from .torch_networks import exported_network, torch_logits

        return torch_logits(exported_network(self.artifact.manifest, self.folder))

    def _written_only(self, why: str) -> NoReturn:
        """The same, loaded and described as it must be, but not run."""
        self._written()
        _skip(why)

    def _onnx(self) -> Logits:
        return OnnxSession(self.folder / MODEL_FILE, lean=True).logits

    def _onnx_on_gpu(self) -> Logits:
        if find_gpu() is None:
            _skip("no GPU here; run the verify command where the model shall run")
        return OnnxSession(self.folder / MODEL_FILE, device="cuda", lean=True).logits

    def _engine(self) -> Logits:
        if find_gpu() is None:
            _skip("no GPU here; run the verify command where the plan shall run")
        from glora_deploy.tensorrt_runtime.engine import Engine

        try:
            engine = Engine(self.folder)
        except NotRunnableError as error:
            _skip(f"{error} Run the verify command where the plan shall run.")
        least, _, most = engine.info.batch
        return within(engine.logits, least, most)

    def _of_file(self, write: Callable[[Path], None]) -> Logits:
        """The network whose weights ``write`` puts into a file."""
        from .torch_networks import merged_network, torch_logits

        path = self.scratch / WEIGHTS_FILE
        try:
            write(path)
            return torch_logits(merged_network(self.artifact.manifest, path))
        finally:
            path.unlink(missing_ok=True)


def _skip(reason: str) -> NoReturn:
    raise SkipStage(reason)
