"""How long the ONNX files of one more task take, beside a full torch.onnx.export of that task.

Everything printed comes from this one run, on this machine::

    python benchmarks/onnx_export.py --model vit_base_patch16_224 --threads 2

The weights are random: times and file sizes do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from glora_deploy.export.onnx_model.fp16_overflow import find_overflow
from glora_deploy.export.onnx_model.graph_cache import GraphCache, GraphSpec
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.onnx_model.trace import trace_graph
from glora_deploy.export.onnx_model.write import write_onnx

METADATA = {"task": "benchmark"}

NEXT_TASK = """
# What the command line does for a task whose graph is in the cache: no torch in the process.
import json, sys, time
from pathlib import Path
from glora_deploy.export.onnx_model.half_precision import to_precision
from glora_deploy.export.onnx_model.graph_cache import GraphCache, GraphSpec
from glora_deploy.export.onnx_model.write import write_onnx
folder, precision, single = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "single"
spec = GraphSpec(**json.loads(sys.argv[4]))
start, start_cpu = time.perf_counter(), time.process_time()
skeleton = GraphCache(folder.parent / "skeletons").get(spec, lambda: sys.exit("not cached"))
if precision != "fp32":
    skeleton = to_precision(skeleton, precision)
write_onnx(folder, skeleton, {"task": "benchmark"}, single_file=single)
print(json.dumps([time.perf_counter() - start, time.process_time() - start_cpu]))
"""


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a step took, by the clock and in processor time (for a busy machine)."""
    start, start_cpu = time.perf_counter(), time.process_time()
    yield
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    print(f"{what:<58}{wall_s:8.2f} s {cpu_s:8.2f} s of CPU", flush=True)


def write_weights(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """The merged weights, which every way of exporting starts from."""
    folder.mkdir()
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")


def names_kept(path: Path, model: nn.Module) -> str:
    """How many initializers of a file carry the name of a parameter."""
    graph = onnx.load_model(path, load_external_data=False).graph
    parameters = {name for name, _ in model.named_parameters()}
    kept = parameters & {tensor.name for tensor in graph.initializer}
    return f"{len(kept)} of {len(parameters)} parameter names, {len(graph.node)} nodes"


def skeleton_route(model: nn.Module, spec: GraphSpec, root: Path) -> dict[str, Path]:
    """Three tasks, the first with an empty cache; gives the files to compare."""
    write_weights(model, root / "fp32", torch.float32)
    write_weights(model, root / "fp16", torch.float16)
    write_weights(model, root / "single", torch.float32)

    def get() -> onnx.ModelProto:
        cache = GraphCache(root / "skeletons")
        return cache.get(spec, lambda: trace_graph(model, spec.input_size))

    with timed("first task: trace, keep the skeleton, attach, write, check"):
        write_onnx(root / "fp32", get(), METADATA)
    for what, name, precision, files in (
        ("next task, fp32: read the skeleton, attach, write, check", "fp32", "fp32", "two"),
        ("next task, fp16: the same, and convert the graph", "fp16", "fp16", "two"),
        ("next task, single file: the same, and copy the weights", "single", "fp32", "single"),
    ):
        command = [sys.executable, "-c", NEXT_TASK, str(root / name), precision, files]
        facts = subprocess.check_output([*command, json.dumps(asdict(spec))], text=True)
        wall_s, cpu_s = json.loads(facts)
        print(f"{what:<58}{wall_s:8.2f} s {cpu_s:8.2f} s of CPU", flush=True)
    fp32, fp16, single = (root / name / "model.onnx" for name in ("fp32", "fp16", "single"))
    return {"skeleton, fp32": fp32, "skeleton, fp16": fp16, "single file, fp32": single}


def torch_route(model: nn.Module, spec: GraphSpec, root: Path) -> Path:
    """What a user does without this project, for every task anew."""
    (root / "torch").mkdir()
    path = root / "torch" / "model.onnx"
    example = torch.zeros(2, *spec.input_size)
    with timed("torch.onnx.export of one task, as the manual shows it"):
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    return path


def compare(files: dict[str, Path], model: nn.Module, spec: GraphSpec, threads: int) -> None:
    """Run every file on the same images."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, *spec.input_size), dtype=np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    print(f"\nlogits of torch: standard deviation {expected.std():.3f}")
    for name, path in files.items():
        start = time.perf_counter()
        session = OnnxSession(path, threads)
        load_s = time.perf_counter() - start
        session.logits(images)
        start = time.perf_counter()
        found = session.logits(images)
        run_s = time.perf_counter() - start
        print(
            f"{name:<18} {path.stat().st_size / 1e6:7.2f} MB, {names_kept(path, model)}; "
            f"session {load_s:.2f} s, {len(images)} images {1e3 * run_s:.0f} ms, "
            f"max abs error {np.abs(found - expected).max():.1e}"
        )
        del session


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = timm.create_model(arguments.model, num_classes=100).eval()
    spec = GraphSpec(
        architecture=arguments.model,
        model_args={},
        n_classes=100,
        input_size=tuple(model.pretrained_cfg["input_size"]),
    )
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    print(f"{arguments.model}: {size / 1e6:.0f} MB of weights, {arguments.threads} threads\n")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = skeleton_route(model, spec, root)
        files["torch.onnx.export"] = torch_route(model, spec, root)
        images = np.random.default_rng(1).standard_normal((8, *spec.input_size), dtype=np.float32)
        with timed("range pass over 8 images (fp16 only)"):
            find_overflow(files["skeleton, fp32"], images)
        (skeleton,) = (root / "skeletons").glob("*.onnx")
        print(f"\nskeleton: {skeleton.stat().st_size / 1e6:.2f} MB")
        compare(files, model, spec, arguments.threads)


if __name__ == "__main__":
    main()
