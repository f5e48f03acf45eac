from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from fused_cases import Case, cases, make_case, require_merged
from glora_deploy.merge.cuda import (
    CudaMergeJob,
    fused_merge_layers_cuda,
    fused_merge_torch,
)
from reference import FORMATS, reference_merge, reference_round

Merge = Callable[..., bool]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FORMS = (
    "A=none",
    "A=lora:4 B=lora:4",
    "A=vector B=scalar C=vector D=scalar E=vector",
    "A=scalar B=vector C=lora:3 D=vector E=scalar",
    "A=lora:17 B=none C=none D=none E=scalar",
)

TRITON = importlib.util.find_spec("triton") is not None
needs_interpreter = pytest.mark.skipif(
    not TRITON or torch.cuda.is_available(),
    reason="needs Triton, and no GPU, which is tested itself",
)
directions = pytest.mark.parametrize("transposed", [False, True], ids=["upright", "transposed"])


def fused_merge_cuda(
    w0: Tensor,
    b0: Tensor | None,
    supports: Mapping[str, Tensor],
    *,
    out_w: Tensor,
    out_b: Tensor | None,
    transposed: bool = False,
) -> bool:
    """One layer as many are merged; whether it is finite."""
    job = CudaMergeJob(w0, b0, supports, out_w, out_b, transposed)
    return not fused_merge_layers_cuda({"layer": job})


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Merge]:
    """The Triton kernel run by Triton's interpreter, on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # read while the kernel is defined
        yield fused_merge_cuda


def merged(
    merge: Merge,
    case: Case,
    dtype: str = "float32",
    *,
    transposed: bool = False,
    device: str = "cpu",
) -> tuple[Any, Any, bool]:
    """Merge into fresh buffers; the weight comes back upright, numbers as NumPy's."""
    d_out, d_in = case.w0.shape
    out_w = torch.full((d_in, d_out) if transposed else (d_out, d_in), 7.0)
    out_w = out_w.to(device, DTYPES[dtype])
    out_b = None if case.b0 is None else out_w.new_full((d_out,), 7)
    finite = merge(
        torch.from_numpy(case.w0).to(device),
        None if case.b0 is None else torch.from_numpy(case.b0).to(device),
        {name: torch.from_numpy(value).to(device) for name, value in case.supports.items()},
        out_w=out_w,
        out_b=out_b,
        transposed=transposed,
    )
    w = to_numpy(out_w)
    return w.T if transposed else w, None if out_b is None else to_numpy(out_b), finite


def to_numpy(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.cpu().numpy()


@settings(max_examples=150, deadline=None)
@given(case=cases(), dtype=st.sampled_from(list(DTYPES)), transposed=st.booleans())
def test_plain_pytorch_gives_the_float64_merge_rounded_once(
    case: Case, dtype: str, transposed: bool
) -> None:
    w, b, finite = merged(fused_merge_torch, case, dtype, transposed=transposed)
    require_merged(case, w, b)
    assert finite == (np.isfinite(w).all() and (b is None or np.isfinite(b).all()))


@needs_interpreter
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=cases(), dtype=st.sampled_from(["float32", "float16"]), transposed=st.booleans())
def test_the_kernel_gives_the_float64_merge_rounded_once(
    interpreted: Merge, case: Case, dtype: str, transposed: bool
) -> None:
    with np.errstate(all="ignore"):  # the interpreter computes with NumPy
        w, b, finite = merged(interpreted, case, dtype, transposed=transposed)
    require_merged(case, w, b)
    assert finite == (np.isfinite(w).all() and (b is None or np.isfinite(b).all()))


@needs_interpreter
@directions
@pytest.mark.parametrize("paths", FORMS)
def test_the_kernel_agrees_with_plain_pytorch_beyond_one_block(
    interpreted: Merge, paths: str, transposed: bool
) -> None:
    case = make_case(*((35, 70) if transposed else (11, 260)), paths)
    for dtype in ("float32", "float16"):
        w, b, finite = merged(interpreted, case, dtype, transposed=transposed)
        want_w, want_b, _ = merged(fused_merge_torch, case, dtype, transposed=transposed)
        assert finite
        require_merged(case, w, b)
        np.testing.assert_allclose(
            w.astype(np.float64), want_w.astype(np.float64), rtol=2.0 ** (2 - FORMATS[dtype][0])
        )
        np.testing.assert_allclose(b, want_b, rtol=2.0 ** (2 - FORMATS[dtype][0]))


@needs_interpreter
def test_a_layer_without_bias_gets_none(interpreted: Merge) -> None:
    case = make_case(9, 7, "A=lora:2 B=vector", bias=False)
    w, b, finite = merged(interpreted, case)
    assert finite
    require_merged(case, w, b)


@needs_interpreter
@pytest.mark.parametrize("merge", [fused_merge_cuda, fused_merge_torch])
@pytest.mark.parametrize("where", ["w0", "b0", "A_d", "B_u", "C_d", "D", "E"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_number_that_is_not_finite_is_reported(
    interpreted: Merge, merge: Merge, where: str, bad: float
) -> None:
    case = make_case(13, 11, "A=lora:2 B=lora:3 C=lora:2 D=vector E=scalar")
    tensors = {"w0": case.w0, "b0": case.b0, **case.supports}
    assert merged(merge, case)[2]
    tensors[where].flat[-1] = bad  # type: ignore[union-attr]
    with np.errstate(all="ignore"):
        assert not merged(merge, case)[2]


@needs_interpreter
@pytest.mark.parametrize("merge", [fused_merge_cuda, fused_merge_torch])
@pytest.mark.parametrize("of_the_bias", [False, True])
def test_an_overflow_of_half_precision_is_reported(
    interpreted: Merge, merge: Merge, of_the_bias: bool
) -> None:
    for number, finite in ((65519.996, True), (65520.0, False), (-65520.0, False)):
        case = make_case(6, 5, "A=none")
        (case.b0 if of_the_bias else case.w0).flat[-1] = number  # type: ignore[union-attr]
        with np.errstate(all="ignore"):
            assert merged(merge, case, "float16")[2] == finite
            assert merged(merge, case, "float32")[2]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_plain_pytorch_rounds_to_sixteen_bits_once(dtype: str) -> None:
    bits, least, _ = FORMATS[dtype]
    rng = np.random.default_rng(0)
    w0 = np.concatenate(
        [
            rng.integers(0, 2**32, 50_000, np.uint32).view(np.float32),
            # A tie of the 16-bit format, which the tiny B below moves off the tie.
            np.full(1, 1 + 2.0**-bits, np.float32),
            np.ldexp(np.arange(1, 64, dtype=np.float32), least - 2),
        ]
    )
    w0[~np.isfinite(w0)] = 0
    case = Case(w0[:, None], None, {"B": np.full((1, 1), 2.0**-100, np.float32)})
    want, _ = reference_merge(case.w0, None, case.supports)
    case.supports["B"][0, 0] = 2.0**-40
    shifted, _ = reference_merge(case.w0, None, case.supports)
    with np.errstate(over="ignore"):
        w, _, _ = merged(fused_merge_torch, case, dtype)
    assert (w.astype(np.float64) == reference_round(shifted, dtype)).all()
    assert (reference_round(want, dtype) != reference_round(shifted, dtype)).any()


def test_inputs_stay_as_they_were() -> None:
    case = make_case(6, 5)
    copies = [array.copy() for array in (case.w0, case.b0, *case.supports.values())]  # type: ignore[union-attr]
    merged(fused_merge_torch, case, transposed=True)
    for array, copy in zip((case.w0, case.b0, *case.supports.values()), copies, strict=True):
        np.testing.assert_array_equal(array, copy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("w0", torch.zeros(5, 4).double(), "w0 must be of float32, got float64"),
        ("w0", torch.zeros(4, 5).T, "w0 must be contiguous, got strides (1, 5)"),
        ("b0", torch.zeros(4), "b0 must have shape (5,) where w0 is (5, 4), got (4,)"),
        (
            "out_w",
            torch.zeros(5, 4).int(),
            "out_w must be of float32 or float16 or bfloat16, got int32",
        ),
        ("out_b", torch.zeros(5).half(), "out_b must be of float32, got float16"),
        ("out_b", torch.zeros(5, device="meta"), "out_b must be on w0's cpu, got meta"),
        ("out_w", torch.zeros(4, 5), "out_w must have shape (5, 4) where w0 is (5, 4), got (4, 5)"),
    ],
)
@pytest.mark.parametrize("merge", [fused_merge_cuda, fused_merge_torch])
def test_what_does_not_fit_is_refused_by_name(
    merge: Merge, name: str, value: Tensor, message: str
) -> None:
    arguments: dict[str, Any] = {
        "w0": torch.zeros(5, 4),
        "b0": torch.zeros(5),
        "supports": {},
        "out_w": torch.zeros(5, 4),
        "out_b": torch.zeros(5),
    }
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
        merge(**{**arguments, name: value})
    assert str(error.value).removeprefix("layer: ") == message


def test_the_frozen_weight_is_never_overwritten() -> None:
    w0 = torch.ones(4, 4)
    with pytest.raises(ValueError, match="out_w must not overlap w0"):
        fused_merge_torch(w0, None, {}, out_w=w0.view(4, 4), out_b=None)


def make_job(case: Case, device: str = "cpu") -> CudaMergeJob:
    w0 = torch.from_numpy(case.w0).to(device)
    b0 = None if case.b0 is None else torch.from_numpy(case.b0).to(device)
    supports = {name: torch.from_numpy(value).to(device) for name, value in case.supports.items()}
    out_b = None if b0 is None else torch.full_like(b0, 7)
    return CudaMergeJob(w0, b0, supports, torch.full_like(w0, 7), out_b)


def require_layers_merged(device: str) -> None:
    """Three layers at once, the second of them not finite."""
    cases = {name: make_case(9, 7, FORMS[i]) for i, name in enumerate(("a", "b", "c"))}
    cases["b"].w0[3, 2] = np.inf
    jobs = {name: make_job(case, device) for name, case in cases.items()}
    with np.errstate(all="ignore"):
        assert fused_merge_layers_cuda(jobs) == ["b"]
    for name in "ac":
        out_b = jobs[name].out_b
        b = None if out_b is None else out_b.cpu().numpy()
        require_merged(cases[name], jobs[name].out_w.cpu().numpy(), b)


@needs_interpreter
def test_layers_merged_together_say_which_is_not_finite(interpreted: Merge) -> None:
    require_layers_merged("cpu")
    assert fused_merge_layers_cuda({}) == []


def test_the_layer_that_a_support_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    w0, out_w = torch.ones(7, 5), torch.empty(7, 5)
    jobs = {"blocks.3": CudaMergeJob(w0, None, {"A": torch.ones(1, 5)}, out_w, None)}
    rule = r"^blocks\.3: A must have shape \(7, 1\) where w0 is \(7, 5\) .*, got \(1, 5\)$"
    for has_triton in {TRITON, False}:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, found=has_triton: found or None
        )
        with pytest.raises(ValueError, match=rule):
            fused_merge_layers_cuda(jobs)


@needs_interpreter
def test_supports_in_other_dtypes_and_layouts_are_read_as_they_are(interpreted: Merge) -> None:
    case = make_case(9, 7, "A=lora:3 B=vector C=lora:2 D=scalar E=vector")
    job = make_job(case)
    halves = {name: tensor.half() for name, tensor in job.supports.items()}
    halves["A_d"] = halves["A_d"].T.contiguous().T  # not row by row
    assert fused_merge_cuda(job.w0, job.b0, halves, out_w=job.out_w, out_b=job.out_b)
    rounded = {name: tensor.float().numpy() for name, tensor in halves.items()}
    assert job.out_b is not None
    require_merged(Case(case.w0, case.b0, rounded), job.out_w.numpy(), job.out_b.numpy())


def test_without_triton_plain_pytorch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    case = make_case(9, 7)
    w, b, finite = merged(fused_merge_cuda, case, "bfloat16")
    assert finite
    require_merged(case, w, b)
    require_layers_merged("cpu")


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from glora_deploy.merge.cuda_kernel import merge_rows

supports = dict.fromkeys(("a", "a_up", "b", "b_up", "c", "c_up", "d", "e"), "*fp32")
sizes = dict.fromkeys(("d_out", "d_in", "rank_a", "rank_b", "rank_c"), "i32")
flags = ("A", "B", "C", "D", "E", "HAS_BIAS", "TRANSPOSED", "ROWS", "COLUMNS")
for out, values in (
    ("*fp32", (1, 1, 1, 2, 3, True, False, 8, 256)),
    ("*bf16", (2, 3, 2, 3, 2, True, True, 32, 64)),
):
    outputs = dict.fromkeys(("out_w", "out_b"), out)
    signature = {"w0": "*fp32", "b0": "*fp32", **supports, **outputs, "overflow": "*i32", **sizes}
    source = ASTSource(
        fn=merge_rows,
        signature={**signature, **dict.fromkeys(flags, "constexpr")},
        constexprs=dict(zip(flags, values)),
    )
    print(len(compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


@pytest.mark.skipif(not TRITON, reason="needs the triton package")
def test_the_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    # In a process of its own, as the interpreter leaves its mark on Triton's language.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(int(size) > 0 for size in done.stdout.split())
    assert len(done.stdout.split()) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@directions
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("paths", FORMS)
def test_the_kernel_on_a_gpu_gives_the_float64_merge_rounded_once(
    dtype: str, paths: str, transposed: bool
) -> None:
    for shape in ((1, 1), (45, 301), (2304, 768)):
        case = make_case(*shape, paths)
        w, b, finite = merged(fused_merge_cuda, case, dtype, transposed=transposed, device="cuda")
        assert finite
        require_merged(case, w, b)
        want_w, want_b, _ = merged(
            fused_merge_torch, case, dtype, transposed=transposed, device="cuda"
        )
        require_merged(case, want_w, want_b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_layers_merged_together_on_a_gpu_say_which_is_not_finite() -> None:
    require_layers_merged("cuda")
