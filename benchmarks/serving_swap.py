"""What a swap costs a server, beside one inference and beside PEFT's way of swapping.

ViT-B/16 of random weights, float32, all 48 linear layers adapted with A and B lora of rank 4. Every
variant is timed once per round, in turn, so that a busy machine slows all of them alike; the
figures are ratios of medians of this one run::

    python benchmarks/serving_swap.py --threads 2

The store is made first, which takes a minute or two.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from fused_merge import RANK, SHAPES, make_layer
from serving_store import export_first, fill_store, make_backbone

from glora_deploy.serving.onnx_session import OnnxSession
from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings

REST_S = 0.05  # threads spin for a while after their work, on others' time


def peft_swap(device: str = "cpu") -> Callable[[], object]:
    """PEFT's unmerge of one GLoRA adapter and merge of another, over the same layers."""
    from peft.tuners.glora.config import GloraConfig
    from peft.tuners.glora.layer import GloraLinear

    config = GloraConfig(r=RANK, config_A_B="lora", config_C="none", config_D_E="none")
    generator = torch.Generator().manual_seed(0)
    adapted = []
    for shape in SHAPES:
        layer = make_layer(*shape, generator)
        d_out, d_in = shape
        base = torch.nn.Linear(d_in, d_out, device="meta").to_empty(device="cpu")
        base.weight.data, base.bias.data = layer.w0, layer.b0
        glora = GloraLinear(base, "one", config)
        glora.update_layer("two", RANK, config)
        for adapter in ("one", "two"):
            for support in "AB":
                path = getattr(glora, f"glora_{support}")[adapter]
                path.Xd.data = layer.supports[f"{support}_d"].clone()
                path.Xu.data = layer.supports[f"{support}_u"].clone()
        glora.to(device).merge(adapter_names=["one"])
        adapted.append(glora)
    names = ["two", "one"]

    def run() -> None:
        for glora in adapted:
            glora.unmerge()
            glora.merge(adapter_names=names[:1])
        names.reverse()

    return run


def swap_between(engine: StoreEngine, *tasks: str) -> Callable[[], object]:
    """Having the weights of one task after another."""
    order = list(tasks)

    def run() -> None:
        engine.prefetch(order[0])
        order.append(order.pop(0))

    return run


def measure(variants: dict[str, Callable[[], object]], n_rounds: int) -> dict[str, float]:
    """Median milliseconds of each variant, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for n in range(1 + n_rounds):
        for name, run in variants.items():
            time.sleep(REST_S)
            start = time.perf_counter()
            run()
            if n:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--store", type=Path, help="made here, or used if it is there")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.store or Path(scratch) / "artifacts"
        if not root.exists():
            export_first(fill_store(root, make_backbone(), 3))
        report(root, arguments.threads, arguments.rounds)


def report(root: Path, threads: int, n_rounds: int) -> None:
    """Measure over one store and print."""
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)

    def settings(**changes: Any) -> EngineSettings:
        return EngineSettings(threads=threads, watch_s=None, hot_after=None, **changes)

    with StoreEngine(root, settings()) as engine:
        engine.prefetch("t0")
        one_task = engine.describe("t0").size_bytes
    # Room for one task and its delta; for two; for one as constants too.
    small = StoreEngine(root, settings(memory_budget_bytes=one_task * 3 // 2))
    large = StoreEngine(root, settings(memory_budget_bytes=one_task * 4))
    exported = OnnxSession(root / "t0" / "v1" / "exports" / "fp32" / "model.onnx", threads)
    version, _ = large._live.find("t0", None)
    lease, _ = large._weights.lease(version)
    weights = lease.value
    assert large._weights.fix(version)

    def answer(engine: StoreEngine, task: str) -> Callable[[], object]:
        request = InferRequest(task=task, images=images)
        return lambda: engine.submit(request).result()

    variants: dict[str, Callable[[], object]] = {
        "inference: session of the exported ONNX": lambda: exported.logits(images),
        "inference: weights as inputs": lambda: weights.network.run(weights.bound, images),
        "inference: weights as constants": lambda: weights.network.run(weights.fixed, images),
        "answer of the engine, hot task": answer(large, "t0"),
        "swap to a task not in memory, delta in memory": swap_between(small, "t1", "t2"),
        "swap to a task in memory": swap_between(large, "t0", "t1"),
        "swap by PEFT: unmerge and merge": peft_swap(),
    }
    times = measure(variants, n_rounds)
    base = times["inference: session of the exported ONNX"]
    load = os.getloadavg()[0]
    print(f"{threads} threads, medians of {n_rounds} rounds, load average {load:.1f}")
    print(f"{'':<50}{'ms':>10}{'inferences':>12}")
    for name, middle in times.items():
        print(f"{name:<50}{middle:10.2f}{middle / base:12.3f}")
    swap = times["swap to a task not in memory, delta in memory"]
    print(f"PEFT's swap / ours: {times['swap by PEFT: unmerge and merge'] / swap:.1f}")
    for engine in (small, large):
        engine.close()


if __name__ == "__main__":
    main()
