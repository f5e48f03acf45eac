"""What a swap costs a server on a GPU: ViT-B/16 of random weights, float32, batch 1.

::

    python benchmarks/serving_swap_gpu.py --backend torch
    python benchmarks/serving_swap_gpu.py --backend onnxruntime

In PyTorch the network is captured once, and a swap overwrites its weights in place; in ONNX Runtime
weights are inputs bound on the GPU. Either takes them from the GPU's own memory if the task is in
the cache; else they are merged on the CPU and sent there. Beside them, in the same rounds: timm's
network as anyone runs it, and the merge of one task's 48 layers by PEFT on the GPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from serving_store import export_first, fill_store, make_backbone
from serving_swap import peft_swap

from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import Backend, EngineSettings

SAME = "answer, same task as before"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "artifacts"
        backbone = make_backbone()
        store = fill_store(root, backbone, 3)
        if arguments.backend == "onnxruntime":
            export_first(store)
        report(root, backbone.build(10, seed=0), arguments.backend, arguments.rounds)


def report(root: Path, model: torch.nn.Module, backend: Backend, n_rounds: int) -> None:
    """Measure over one store and print."""
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    model.eval().cuda()

    def plain() -> None:
        model(torch.from_numpy(image).cuda()).cpu()

    def engine(budget_bytes: int) -> StoreEngine:
        return StoreEngine(
            root,
            EngineSettings(
                backend=backend, device="cuda", watch_s=None, memory_budget_bytes=budget_bytes
            ),
        )

    def answer(engine: StoreEngine, *tasks: str) -> Callable[[], None]:
        order = list(tasks)

        def run() -> None:
            order.append(order.pop(0))
            engine.submit(InferRequest(task=order[0], images=image)).result()

        return run

    def settled(run: Callable[[], object]) -> Callable[[], None]:
        def both() -> None:
            run()
            torch.cuda.synchronize()

        return both

    with engine(8 * 2**30) as large, engine(500 * 2**20) as small:
        variants = {
            "timm's network, image sent and logits fetched": plain,
            SAME: answer(large, "t0"),
            "answer after a swap to a cached task": answer(large, "t1", "t2"),
            "answer after a swap to a task not in memory": answer(small, "t1", "t2"),
            "PEFT's unmerge and merge, without an answer": settled(peft_swap("cuda")),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        for n in range(3 + n_rounds):
            for name, run in variants.items():
                if name == SAME:
                    run()  # the variant before may have left another task's weights
                start = time.perf_counter()
                run()
                if n >= 3:
                    times[name].append(1e3 * (time.perf_counter() - start))
    print(f"{backend} on {torch.cuda.get_device_name()}, medians of {n_rounds} rounds")
    base = median(times[SAME])
    for name, values in times.items():
        print(f"{name:<48}{median(values):8.2f} ms{median(values) / base:8.2f}")


if __name__ == "__main__":
    main()
