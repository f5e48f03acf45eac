"""What merging one task into ViT-B/16 costs, beside copying the same bytes.

All 48 linear layers, A and B both lora of rank 4, into buffers that exist already. Every variant is
timed once per round, in turn, so that a busy machine slows all of them alike::

    python benchmarks/fused_merge.py
    python benchmarks/fused_merge.py --layers 8 --rounds 5

The ratio is to the fastest of the copies. "serving" is the fused merge with sums in float32. The
column "units off" counts the numbers between a result and the float64 merge rounded to its format,
at most, over the first block. Where the terms of a weight cancel one another that may be many, so
the last column has the largest error in units of the terms: the spacing of the format's numbers at
the sum of their magnitudes.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glora_deploy.merge.cpu import N_THREADS, MergeJob, fused_merge_layers

SHAPES = [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12
"""``(d_out, d_in)`` of qkv, proj, fc1 and fc2, block by block."""
RANK = 4
LIMIT_S = 35.0
REST_S = 0.05  # torch's threads spin for a while after their work, on others' time


@dataclass(frozen=True)
class Layer:
    """One layer in NumPy's and torch's eyes; the arrays share their memory."""

    w0: Tensor
    b0: Tensor
    supports: dict[str, Tensor]
    out: Tensor
    """Room for the merged weight, flat, from a cache line on."""
    shifted: Tensor
    """As much room, 16 bytes behind a cache line, as NumPy's own buffers lie."""
    out_b: Tensor

    def job(
        self,
        dtype: torch.dtype,
        *,
        transposed: bool = False,
        off: bool = False,
        exact: bool = True,
    ) -> MergeJob:
        """The fused merge into one of the rooms."""
        d_out, d_in = self.w0.shape
        room = (self.shifted if off else self.out).view(dtype)[: d_out * d_in]
        out = room.view(d_in, d_out) if transposed else room.view(d_out, d_in)
        return MergeJob(
            self.w0.numpy(),
            self.b0.numpy(),
            {name: support.numpy() for name, support in self.supports.items()},
            out.numpy(),
            self.out_b.view(dtype)[:d_out].numpy(),
            transposed,
            exact,
        )

    def plain(self) -> Tensor:
        """The merge as the formula is written, with fresh tensors."""
        s = self.supports
        return self.w0 + self.w0 * (s["A_d"] @ s["A_u"]) + s["B_d"] @ s["B_u"]

    def in_place(self) -> Tensor:
        """The merge with as few passes as tensor operations allow, and no fresh tensor."""
        s, out = self.supports, self.out.view(self.w0.shape)
        torch.mm(s["A_d"], s["A_u"], out=out)
        return out.add_(1).mul_(self.w0).addmm_(s["B_d"], s["B_u"])

    def terms(self) -> NDArray[np.float64]:
        """The sum of the magnitudes of all that is summed, in float64."""
        w0 = self.w0.double().abs()
        s = {name: support.double().abs() for name, support in self.supports.items()}
        return (w0 + w0 * (s["A_d"] @ s["A_u"]) + s["B_d"] @ s["B_u"]).cpu().numpy()

    def exact(self) -> NDArray[np.float64]:
        """The merge in float64."""
        w0 = self.w0.double()
        s = {name: support.double() for name, support in self.supports.items()}
        return (w0 + w0 * (s["A_d"] @ s["A_u"]) + s["B_d"] @ s["B_u"]).cpu().numpy()


def make_layer(d_out: int, d_in: int, generator: torch.Generator) -> Layer:
    """Weights and supports of usual sizes."""

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator) * 0.02

    supports = {"A_d": normal(d_out, RANK), "A_u": normal(RANK, d_in)}
    supports |= {"B_d": normal(d_out, RANK), "B_u": normal(RANK, d_in)}
    room = torch.zeros(d_out * d_in + 4)
    out = torch.zeros(d_out * d_in)
    return Layer(normal(d_out, d_in), normal(d_out), supports, out, room[4:], torch.zeros(d_out))


def copies(layers: list[Layer], pool: ThreadPoolExecutor) -> dict[str, Callable[[], object]]:
    """Ways of copying the weights; the fastest is the yardstick."""
    pairs = [(layer.out.view(layer.w0.shape), layer.w0) for layer in layers]
    arrays = [(out.numpy(), w0.numpy()) for out, w0 in pairs]

    def some(start: int, step: int) -> None:
        for out, w0 in arrays[start::step]:
            np.copyto(out, w0)

    def threads() -> None:
        list(pool.map(some, range(N_THREADS), [N_THREADS] * N_THREADS))

    def tensors() -> None:
        for out, w0 in pairs:
            out.copy_(w0)

    return {
        "copy: NumPy, one thread": lambda: some(0, 1),
        f"copy: NumPy, {N_THREADS} threads": threads,
        f"copy: torch, {N_THREADS} threads": tensors,
    }


FUSED: dict[str, dict[str, Any]] = {
    "fused, float32": {"dtype": torch.float32},
    "fused, float32, off the cache line": {"dtype": torch.float32, "off": True},
    "fused, float32, transposed": {"dtype": torch.float32, "transposed": True},
    "fused, float16": {"dtype": torch.float16},
    "fused, float16, transposed": {"dtype": torch.float16, "transposed": True},
    "serving, float32": {"dtype": torch.float32, "exact": False},
    "serving, float32, transposed": {"dtype": torch.float32, "transposed": True, "exact": False},
    "serving, float16": {"dtype": torch.float16, "exact": False},
}
TENSORS: dict[str, Callable[[Layer], Tensor]] = {
    "torch, in place": Layer.in_place,
    "torch, as the formula is written": Layer.plain,
}


def merges(layers: list[Layer]) -> dict[str, Callable[[], object]]:
    """Every way of merging these layers."""

    def fused(jobs: dict[str, MergeJob]) -> None:
        assert not fused_merge_layers(jobs)

    def alone(jobs: dict[str, MergeJob]) -> None:
        assert all(job.run() for job in jobs.values())

    def tensors(merge: Callable[[Layer], Tensor]) -> None:
        for layer in layers:
            merge(layer)

    jobs = {
        name: {str(n): layer.job(**options) for n, layer in enumerate(layers)}
        for name, options in FUSED.items()
    }
    found: dict[str, Callable[[], object]] = {
        "fused, float32, one thread": partial(alone, jobs["fused, float32"])
    }
    found |= {name: partial(fused, jobs[name]) for name in FUSED}
    found |= {name: partial(tensors, merge) for name, merge in TENSORS.items()}
    if importlib.util.find_spec("peft"):
        found["PEFT's merge"] = merge_with_peft(layers)
    return found


def merge_with_peft(layers: list[Layer]) -> Callable[[], object]:
    """PEFT's own merge of the same supports; it always makes fresh weights."""
    from peft.tuners.glora.config import GloraConfig
    from peft.tuners.glora.layer import GloraLinear

    config = GloraConfig(r=RANK, config_A_B="lora", config_C="none", config_D_E="none")
    adapted = []
    for layer in layers:
        d_out, d_in = layer.w0.shape
        base = torch.nn.Linear(d_in, d_out, device="meta").to_empty(device=layer.w0.device)
        base.weight.data, base.bias.data = layer.w0, layer.b0
        adapted.append(GloraLinear(base, "task", config))
        for support in "AB":
            path = getattr(adapted[-1], f"glora_{support}")["task"]
            path.Xd.data, path.Xu.data = (layer.supports[f"{support}_{end}"] for end in "du")

    def run() -> None:
        for layer, glora in zip(layers, adapted, strict=True):
            glora.merge()
            # Its unmerge divides by 1 + A, which is neither exact nor what is timed here.
            glora.merged_adapters.clear()
            glora.get_base_layer().weight.data = layer.w0
            glora.get_base_layer().bias.data = layer.b0

    return run


def units_off(got: NDArray[Any], exact: NDArray[np.float64]) -> int:
    """Numbers of got's format between it and the rounded exact values, at most."""
    n_bits = 8 * got.itemsize
    ordered = []
    for array in (np.ascontiguousarray(got), exact.astype(got.dtype)):
        bits = array.view(f"int{n_bits}").astype(np.int64)
        ordered.append(np.where(bits < 0, -(2 ** (n_bits - 1)) - bits, bits))
    return int(np.abs(ordered[0] - ordered[1]).max())


def share_of_terms(
    got: NDArray[Any], exact: NDArray[np.float64], terms: NDArray[np.float64]
) -> float:
    """The largest error against the exact values, in units of the terms."""
    digits = {2: 10, 4: 23}[got.itemsize]
    units = np.exp2(np.floor(np.log2(terms)) - digits)
    return float((np.abs(got.astype(np.float64) - exact) / units).max())


def accuracy(layers: list[Layer]) -> dict[str, tuple[int, float]]:
    """The largest error of each merge over these layers: units off, and units of the terms."""
    worst: dict[str, tuple[int, float]] = dict.fromkeys((*FUSED, *TENSORS), (0, 0.0))

    def judge(name: str, got: NDArray[Any]) -> None:
        off, share = units_off(got, exact), share_of_terms(got, exact, terms)
        worst[name] = (max(worst[name][0], off), max(worst[name][1], share))

    for layer in layers:
        exact, terms = layer.exact(), layer.terms()
        for name, options in FUSED.items():
            job = layer.job(**options)
            job.run()
            judge(name, job.out_w.T if job.transposed else job.out_w)
        for name, merge in TENSORS.items():
            judge(name, merge(layer).numpy())
    return worst


def measure(variants: dict[str, Callable[[], object]], n_rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each variant in each round; ends early, mid-round, when time is up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    end = time.perf_counter() + LIMIT_S
    for _ in range(1 + n_rounds):
        for name, run in variants.items():
            if time.perf_counter() < end:
                time.sleep(REST_S)
                start = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - start))
    # The first round compiles and touches every page.
    return {name: values[1:] for name, values in times.items() if len(values) > 1}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=48, help="merge only the first so many")
    parser.add_argument("--rounds", type=int, default=15, help="times each variant is run")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(N_THREADS)
    generator = torch.Generator().manual_seed(0)
    layers = [make_layer(*shape, generator) for shape in SHAPES[: arguments.layers]]
    with ThreadPoolExecutor(N_THREADS) as pool:
        yardsticks = copies(layers, pool)
        times = measure({**yardsticks, **merges(layers)}, arguments.rounds)
    errors = accuracy(layers[:4])
    n_bytes = sum(layer.w0.nbytes for layer in layers)
    n_rounds = min(len(values) for values in times.values())
    print(f"{len(layers)} layers, {n_bytes / 1e6:.0f} MB, {N_THREADS} threads, {n_rounds} rounds")
    print(f"{'':<40}{'median ms':>10}{'ratio':>8}{'least ms':>10}{'ratio':>8}", end="")
    print(f"{'units off':>11}{'of terms':>10}")
    typical = min(median(times[name]) for name in yardsticks)
    least = min(min(times[name]) for name in yardsticks)
    for name, values in times.items():
        middle, low = median(values), min(values)
        off, share = errors.get(name, ("", ""))
        shown = f"{share:.2f}" if isinstance(share, float) else share
        print(
            f"{name:<40}{middle:10.1f}{middle / typical:8.2f}{low:10.1f}{low / least:8.2f}"
            f"{off:>11}{shown:>10}"
        )


if __name__ == "__main__":
    main()
