"""What a TensorRT plan costs: from a skeleton and mapped weights, beside a complete ONNX file.

Each route runs in a process of its own, so its peak memory is its own. The second is what trtexec
and Polygraphy do: parse one ONNX file that holds the weights, build, write the plan. Making that
file is not counted. Everything printed comes from this one run, on this machine::

    python benchmarks/tensorrt_build.py --model vit_base_patch16_224 --precision fp32

Needs the ``rtx`` extra, or ``gpu`` and a GPU. The weights are random: neither times nor sizes
depend on them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from glora_deploy.export.tensorrt_plan.build import write_plan
from glora_deploy.export.tensorrt_plan.config import PlanConfig
from glora_deploy.precision import Precision
from glora_deploy.tensorrt_runtime.library import load_tensorrt, logger_of

BATCH = (1, 8, 32)


def build_from_skeleton(folder: Path, precision: Precision) -> Path:
    """Our route: plan and sidecar, the weights taken from the mapped safetensors file."""
    write_plan(folder, PlanConfig(precision=precision, batch=BATCH))
    return folder / "model.plan"


def build_from_full_file(folder: Path, precision: Precision) -> Path:
    """The usual route: the parser reads a file with the weights in it."""
    library, _ = load_tensorrt()
    logger = logger_of(library)
    builder = library.Builder(logger)
    flag = library.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parser = library.OnnxParser(network, logger)
    assert parser.parse_from_file(str(folder / "full.onnx")), logger.errors
    config = builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    image = network.get_input(0)
    profile.set_shape(image.name, *((n, *tuple(image.shape)[1:]) for n in BATCH))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, logger.errors
    path = folder / "full.plan"
    path.write_bytes(plan)
    return path


ROUTES = {
    "skeleton + mapped weights": build_from_skeleton,
    "complete ONNX file": build_from_full_file,
}


def peak_bytes() -> int:
    """Most resident memory of this process so far (Linux)."""
    # Not ru_maxrss: a child starts with its parent's.
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
    return int(kilobytes) * 1024


def run_route(name: str, folder: Path, precision: Precision) -> None:
    """Build once in this process and print what it took as JSON."""
    start = time.perf_counter()
    path = ROUTES[name](folder, precision)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    facts = {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": peak_bytes(),
        "plan_bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    print(json.dumps(facts))


def make_folder(folder: Path, model_name: str, precision: Precision) -> None:
    """Weights, the graph that points into them, and the same graph with the weights inside."""
    # Here, so that the processes that build need no torch.
    import timm
    import torch
    from safetensors.torch import save_file

    from glora_deploy.export.onnx_model.half_precision import to_precision
    from glora_deploy.export.onnx_model.trace import trace_graph
    from glora_deploy.export.onnx_model.write import write_onnx

    model = timm.create_model(model_name, num_classes=100).eval()
    size = model.pretrained_cfg["input_size"]
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    save_file({k: v.to(dtype) for k, v in model.state_dict().items()}, folder / "model.safetensors")
    skeleton = trace_graph(model, size)
    graph = skeleton if precision == "fp32" else to_precision(skeleton, precision)
    write_onnx(folder, graph, {}, single_file=True).rename(folder / "full.onnx")
    write_onnx(folder, graph, {})


def main() -> None:
    """Run both routes once and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], default="fp32")
    parser.add_argument("--route", choices=ROUTES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.route is not None:
        run_route(options.route, options.folder, options.precision)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder, options.model, options.precision)
        weights = (folder / "model.safetensors").stat().st_size
        print(f"{options.model} {options.precision}: {weights / 1e6:.0f} MB of weights")
        print(f"{'route':<28}{'s':>8}{'CPU s':>8}{'peak MB':>9}{'/ weights':>11}{'plan MB':>9}")
        plans = set()
        for route in ROUTES:
            command = [sys.executable, __file__, "--route", route, "--folder", str(folder)]
            command += ["--precision", options.precision]
            facts = json.loads(subprocess.check_output(command, text=True))
            plans.add(facts["sha256"])
            print(
                f"{route:<28}{facts['seconds']:>8.1f}{facts['cpu_seconds']:>8.1f}"
                f"{facts['peak_bytes'] / 1e6:>9.0f}{facts['peak_bytes'] / weights:>11.2f}"
                f"{facts['plan_bytes'] / 1e6:>9.0f}",
                flush=True,
            )
        print("the plans are the same" if len(plans) == 1 else "the plans differ")


if __name__ == "__main__":
    main()
