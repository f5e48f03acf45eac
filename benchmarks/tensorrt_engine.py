"""One TensorRT engine that serves two tasks: what a refit costs, and what a forward pass takes.

Builds a refittable plan of a timm network with random weights, runs it beside torch on the same
GPU, and gives it the weights of a second network and back::

    python benchmarks/tensorrt_engine.py --model vit_base_patch16_224 --precision fp16

Needs a GPU and the ``rtx`` or ``gpu`` extra. The ratios are of this one run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from glora_deploy.export.onnx_model.half_precision import to_precision
from glora_deploy.export.onnx_model.trace import trace_graph
from glora_deploy.export.onnx_model.write import write_onnx
from glora_deploy.export.tensorrt_plan.build import write_plan
from glora_deploy.export.tensorrt_plan.config import PlanConfig
from glora_deploy.store.mapped_safetensors import map_tensors
from glora_deploy.tensorrt_runtime.engine import Engine

BATCHES = (1, 8, 32)
REPEATS = 50
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def make_network(name: str, seed: int) -> torch.nn.Module:
    """The network with weights of this seed."""
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=100).eval()


def write_folder(folder: Path, network: torch.nn.Module, precision: str) -> None:
    """Weights and the graph that points into them."""
    folder.mkdir()
    state = {name: value.to(DTYPES[precision]) for name, value in network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    skeleton = trace_graph(network, network.pretrained_cfg["input_size"])
    write_onnx(folder, to_precision(skeleton, "fp16") if precision == "fp16" else skeleton, {})


def torch_ms(network: torch.nn.Module, images: torch.Tensor) -> float:
    """Median GPU milliseconds of a captured CUDA graph: torch without its launch overhead."""
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            network(images)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            network(images)
        times = []
        for _ in range(REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            times.append(start.elapsed_time(end))
    return median(times)


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Build, run, refit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--precision", choices=[*DTYPES], default="fp16")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    networks = [make_network(options.model, seed) for seed in (0, 1)]
    with tempfile.TemporaryDirectory() as name:
        a, b = (Path(name) / task for task in "ab")
        for folder, network in zip((a, b), networks, strict=True):
            write_folder(folder, network, options.precision)
        plain = PlanConfig(precision=options.precision, batch=(1, 8, 32))
        plain_s = seconds(lambda: write_plan(b, plain))
        refit = PlanConfig(precision=options.precision, batch=(1, 8, 32), refit=True)
        build_s = seconds(lambda: write_plan(a, refit))
        fixed, engine = Engine(b), Engine(a)
        info = engine.info
        print(f"{torch.cuda.get_device_name()}, {info.library} {info.version}, {options.model}")
        print(f"{options.precision}: build {plain_s:.1f} s, refittable {build_s:.1f} s")
        print(f"{'batch':>5}{'engine ms':>11}{'refittable':>11}{'torch ms':>10}{'ratio':>7}")
        network = networks[0].to("cuda", DTYPES[options.precision])
        size = network.pretrained_cfg["input_size"]
        for n in BATCHES:
            images = torch.rand(n, *size, device="cuda", dtype=DTYPES[options.precision])
            ours, other = fixed.time_ms(n, REPEATS), engine.time_ms(n, REPEATS)
            theirs = torch_ms(network, images)
            print(f"{n:>5}{ours:>11.2f}{other:>11.2f}{theirs:>10.2f}{other / theirs:>7.2f}")
        images = np.random.default_rng(0).standard_normal((8, *size)).astype(np.float32)
        tensors = [map_tensors(folder / "model.safetensors") for folder in (a, b)]
        first = engine.logits(images)
        times = [
            seconds(lambda: engine.refit(tensors[1]))
            if turn % 2 == 0
            else seconds(lambda: engine.refit(tensors[0]))
            for turn in range(9)
        ]
        swapped = engine.logits(images)
        back_s = seconds(lambda: engine.refit(tensors[0]))
        again = engine.logits(images)
        spread = float(first.std())
        exact = "bit-equal" if again.tobytes() == first.tobytes() else "NOT equal"
        off = np.abs(swapped - fixed.logits(images)).max() / spread
        forward = engine.time_ms(1, REPEATS)
        print(
            f"refit {1e3 * median([*times, back_s]):.0f} ms, {median(times) * 1e3 / forward:.0f} "
            f"forward passes of batch 1, {build_s / median(times):.0f} times faster than a build"
        )
        print(
            f"back to the first task: {exact}; the second differs from its own engine by "
            f"{off:.1e} of the spread"
        )


if __name__ == "__main__":
    main()
