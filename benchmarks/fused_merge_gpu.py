"""What merging one task into ViT-B/16 costs on a GPU, beside copying the same bytes there.

All 48 linear layers, A and B both lora of rank 4, into buffers that exist already. Every variant
runs once per round, in turn; the time is the host's from call to a finished GPU, so launches and
the question "is every number finite" are part of it::

    python benchmarks/fused_merge_gpu.py

The ratio is to the copy. The last column counts the numbers between a result and the float64 merge
rounded to its format, at most, over the first block.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from fused_merge import SHAPES, Layer, make_layer, merge_with_peft, units_off

from glora_deploy.merge.cuda import CudaMergeJob, fused_merge_layers_cuda, fused_merge_torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def to_gpu(layer: Layer) -> Layer:
    """The same layer with every tensor on the GPU."""
    supports = {name: support.cuda() for name, support in layer.supports.items()}
    rooms = (layer.out.cuda(), layer.shifted.cuda(), layer.out_b.cuda())
    return Layer(layer.w0.cuda(), layer.b0.cuda(), supports, *rooms)


VARIANTS = {
    f"fused, {name}{', transposed' if transposed else ''}": (dtype, transposed)
    for name, dtype in DTYPES.items()
    for transposed in (False, True)
}


def job(layer: Layer, dtype: torch.dtype = torch.float32, transposed: bool = False) -> CudaMergeJob:
    """The merge into the layer's own room."""
    d_out, d_in = layer.w0.shape
    room = layer.out.view(dtype)[: d_out * d_in]
    out = room.view(d_in, d_out) if transposed else room.view(d_out, d_in)
    out_b = layer.out_b.view(dtype)[:d_out]
    return CudaMergeJob(layer.w0, layer.b0, layer.supports, out, out_b, transposed)


def merge(jobs: dict[str, CudaMergeJob]) -> None:
    """All of them, waiting once."""
    assert not fused_merge_layers_cuda(jobs)


def merge_by_tensors(layer: Layer) -> None:
    """The same numbers by ordinary float64 tensors."""
    one = job(layer)
    assert fused_merge_torch(one.w0, one.b0, one.supports, out_w=one.out_w, out_b=one.out_b)


def variants(layers: list[Layer]) -> dict[str, Callable[[], object]]:
    """Every way of merging these layers, the copy first."""

    def copy() -> None:
        for layer in layers:
            layer.out.view(layer.w0.shape).copy_(layer.w0)

    def every(one: Callable[[Layer], object]) -> Callable[[], None]:
        def run() -> None:
            for layer in layers:
                one(layer)

        return run

    found: dict[str, Callable[[], object]] = {"copy on the GPU": copy}
    for name, options in VARIANTS.items():
        jobs = {str(n): job(layer, *options) for n, layer in enumerate(layers)}
        found[name] = partial(merge, jobs)
    found["float64 tensors, rounded once"] = every(merge_by_tensors)
    found["torch, in place, float32"] = every(Layer.in_place)
    found["torch, as the formula is written, float32"] = every(Layer.plain)
    if importlib.util.find_spec("peft"):
        found["PEFT's merge"] = merge_with_peft(layers)
    return found


def accuracy(layers: list[Layer]) -> dict[str, int]:
    """The largest error of each fused merge over these layers, in units of its format."""
    worst: dict[str, int] = {}
    for layer in layers:
        exact = layer.exact()
        for name, (dtype, transposed) in VARIANTS.items():
            one = job(layer, dtype, transposed)
            merge({name: one})
            if dtype != torch.bfloat16:  # NumPy has none
                got = one.out_w.T if transposed else one.out_w
                worst[name] = max(worst.get(name, 0), units_off(got.cpu().numpy(), exact))
        for name, plain in (("torch, in place, float32", Layer.in_place),):
            worst[name] = max(worst.get(name, 0), units_off(plain(layer).cpu().numpy(), exact))
    return worst


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="times each variant is run")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(0)
    layers = [to_gpu(make_layer(*shape, generator)) for shape in SHAPES]
    runs = variants(layers)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(2 + arguments.rounds):  # the first rounds compile
        for name, run in runs.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - start))
    errors = accuracy(layers[:4])
    n_bytes = sum(layer.w0.nbytes for layer in layers)
    print(f"{torch.cuda.get_device_name()}: 48 layers, {n_bytes / 1e6:.0f} MB")
    print(f"{'':<44}{'median ms':>10}{'ratio':>8}{'units off':>11}")
    typical = median(times["copy on the GPU"][2:])
    for name, values in times.items():
        middle = median(values[2:])
        print(f"{name:<44}{middle:10.2f}{middle / typical:8.2f}{errors.get(name, ''):>11}")


if __name__ == "__main__":
    main()
