from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from fused_cases import Case, cases, make_case, require_merged, units_apart
from glora_deploy.glora.support_value import factors_of
from glora_deploy.merge import cpu_kernel
from glora_deploy.merge.cpu import MergeJob, fused_merge, fused_merge_layers
from reference import reference_merge

DTYPES: list[Any] = [np.float32, np.float16, ml_dtypes.bfloat16]
TESTS = Path(__file__).parent.parent
IDS = ["float32", "float16", "bfloat16"]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
directions = pytest.mark.parametrize("transposed", [False, True], ids=["upright", "transposed"])


def merged(
    case: Case, dtype: Any = np.float32, *, transposed: bool = False, exact: bool = True
) -> tuple[NDArray[Any], NDArray[Any] | None, bool]:
    """Merge into fresh buffers; the weight comes back upright."""
    d_out, d_in = case.w0.shape
    out_w = np.full((d_in, d_out) if transposed else (d_out, d_in), 7, dtype)
    out_b = None if case.b0 is None else np.full(d_out, 7, dtype)
    finite = fused_merge(
        case.w0,
        case.b0,
        case.supports,
        out_w=out_w,
        out_b=out_b,
        transposed=transposed,
        exact=exact,
    )
    return out_w.T if transposed else out_w, out_b, finite


def buffer(shape: tuple[int, ...], dtype: Any, offset: int) -> NDArray[Any]:
    """An array that starts this many bytes behind a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    return room[start : start + size].view(dtype).reshape(shape)


@settings(max_examples=300, deadline=None)  # the first example compiles
@given(case=cases(), dtype=st.sampled_from(DTYPES), transposed=st.booleans())
def test_any_layer_is_its_float64_merge_rounded_once(
    case: Case, dtype: Any, transposed: bool
) -> None:
    w, b, finite = merged(case, dtype, transposed=transposed)
    require_merged(case, w, b)
    assert finite == (np.isfinite(w).all() and (b is None or np.isfinite(b).all()))


@directions
def test_ordinary_weights_are_within_two_units_of_the_rounded_float64_merge(
    transposed: bool,
) -> None:
    case = make_case(301, 203, "A=lora:4 B=lora:4 C=lora:4 D=vector E=vector")
    w, b, finite = merged(case, transposed=transposed)
    want_w, want_b = reference_merge(case.w0, case.b0, case.supports)
    assert finite
    assert want_b is not None
    assert b is not None
    assert units_apart(np.ascontiguousarray(w), want_w.astype(np.float32)) <= 1
    assert units_apart(b, want_b.astype(np.float32)) <= 1


U = 2.0**-24  # half a unit of float32
TINY = 2.0**-140  # numbers this small lose digits whatever is done with them


def change_and_ranks(case: Case) -> tuple[NDArray[np.float64], int]:
    """``|w0| * sum(|A_d| * |A_u|) + sum(|B_d| * |B_u|)``, and ``rank_A + rank_B``."""
    magnitudes = {name: np.abs(value) for name, value in case.supports.items() if name[0] in "AB"}
    w, _ = reference_merge(np.abs(case.w0), None, magnitudes)
    ranks = [factors[0].shape[1] for s in ("A", "B") if (factors := factors_of(magnitudes, s))]
    return w - np.abs(case.w0.astype(np.float64)), sum(ranks)


@settings(max_examples=150, deadline=None)
@given(case=cases(), transposed=st.booleans())
def test_sums_in_float32_are_within_the_stated_bound(case: Case, transposed: bool) -> None:
    want, _ = reference_merge(case.w0, None, case.supports)
    change, ranks = change_and_ranks(case)
    got, b, _ = merged(case, transposed=transposed, exact=False)
    one = Case(np.ones_like(case.w0), None, {k: v for k, v in case.supports.items() if k[0] == "A"})
    terms_of_a, _ = change_and_ranks(one)
    if max((change + np.abs(want)).max(), terms_of_a.max()) > 1e38:
        return  # float32 may not hold the terms
    assert np.isfinite(got).all()
    bound = U * np.abs(want) + U * (ranks + 2) * change
    assert (np.abs(got - want) <= bound * (1 + 1e-5) + TINY).all()
    _, exact_b, _ = merged(case, transposed=transposed)
    np.testing.assert_array_equal(b, exact_b)


@dtypes
@directions
def test_sums_in_float32_are_within_two_units_where_the_change_is_a_small_share(
    dtype: Any, transposed: bool
) -> None:
    case = make_case(700, 512, "A=lora:4 B=lora:4 C=lora:4 D=vector E=vector")
    for name in ("A_d", "A_u", "B_d", "B_u"):
        case.supports[name][...] *= 0.02
    case.w0[...] = np.where(np.abs(case.w0) < 0.1, 0.1, case.w0)
    want, _ = reference_merge(case.w0, None, case.supports)
    change, ranks = change_and_ranks(case)
    assert ((ranks + 2) * change <= np.abs(want)).all()
    got, _, finite = merged(case, dtype, transposed=transposed, exact=False)
    assert finite
    exact = merged(case, dtype, transposed=transposed)[0]
    single = [np.ascontiguousarray(w).astype(np.float32) for w in (got, exact)]
    unit = {"float32": 1, "float16": 2**13, "bfloat16": 2**16}[np.dtype(dtype).name]
    assert 0 < units_apart(*single) <= 2 * unit  # not the same: else both modes are one


@directions
def test_without_supports_sums_in_float32_are_a_copy_too(transposed: bool) -> None:
    case = make_case(23, 37, "")
    case.w0[0, :3] = [0.0, -0.0, 1e-42]
    got, _, finite = merged(case, transposed=transposed, exact=False)
    assert finite
    np.testing.assert_array_equal(got.view(np.int32), case.w0.view(np.int32))


@directions
def test_what_float32_cannot_sum_is_reported(transposed: bool) -> None:
    case = make_case(20, 20, "B=vector")
    case.supports["B"][3] = np.inf
    assert not merged(case, transposed=transposed, exact=False)[2]


@dtypes
@directions
@pytest.mark.parametrize("shape", [(576, 512), (519, 530), (2049, 130), (130, 2049)])
@pytest.mark.parametrize("offset", [0, 4, 60, 61])
def test_large_layers_are_written_whole_whatever_the_alignment(
    dtype: Any, transposed: bool, shape: tuple[int, int], offset: int
) -> None:
    case = make_case(*shape)
    out_w = buffer(shape[::-1] if transposed else shape, dtype, offset)
    out_b = np.empty(shape[0], dtype)
    assert fused_merge(
        case.w0, case.b0, case.supports, out_w=out_w, out_b=out_b, transposed=transposed
    )
    require_merged(case, out_w.T if transposed else out_w, out_b)


@pytest.mark.parametrize("rank", [1, 17, 64])
@directions
def test_every_rank_is_summed_whole(rank: int, transposed: bool) -> None:
    case = make_case(23, 37, f"A=lora:{rank} B=lora:{rank} C=lora:{rank}")
    w, b, _ = merged(case, transposed=transposed)
    require_merged(case, w, b)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (16, 16), (15, 17), (2, 5000)])
@directions
def test_layers_narrower_than_a_tile_merge_too(shape: tuple[int, int], transposed: bool) -> None:
    case = make_case(*shape, "A=vector B=scalar C=vector D=scalar E=vector")
    w, b, _ = merged(case, transposed=transposed)
    require_merged(case, w, b)


@directions
def test_a_layer_without_supports_is_copied_bit_for_bit(transposed: bool) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, (48, 40), np.uint32)
    w0 = bits.view(np.float32)
    w0[~np.isfinite(w0)] = -0.0
    b0 = w0[:, 0].copy()
    w, b, finite = merged(Case(w0, b0, {}), transposed=transposed)
    assert finite
    assert np.ascontiguousarray(w).tobytes() == w0.tobytes()
    assert b is not None
    assert b.tobytes() == b0.tobytes()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=IDS[1:])
def test_sixteen_bit_rounding_is_exact_for_every_number_and_every_midpoint(dtype: Any) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        exact = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
        middle = ((exact[:-1].astype(np.float64) + exact[1:]) / 2).astype(np.float32)
        beside = [np.nextafter(middle, np.float32(side)) for side in (-np.inf, np.inf)]
    w0 = np.resize(np.concatenate([exact, middle, *beside]), (512, 512))
    w, _, _ = merged(Case(w0, None, {}), dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        want = w0.astype(dtype)
    numbers = ~np.isnan(w0)
    assert (w[numbers].view(np.uint16) == want[numbers].view(np.uint16)).all()
    assert np.isnan(w[~numbers].astype(np.float32)).all()


@pytest.mark.parametrize(
    ("dtype", "half_unit"), [(np.float16, 2.0**-11), (ml_dtypes.bfloat16, 2.0**-8)]
)
def test_a_result_just_above_a_midpoint_is_not_first_rounded_to_the_midpoint(
    dtype: Any, half_unit: float
) -> None:
    w0 = np.full((3, 2), 1 + half_unit, np.float32)
    tiny = np.full((1, 1), 2.0**-40, np.float32)
    case = Case(w0, w0[:, 0].copy(), {"B": tiny, "E": tiny[0]})
    w, b, _ = merged(case, dtype)
    assert (w.astype(np.float64) == 1 + 2 * half_unit).all()
    assert b is not None
    assert (b.astype(np.float64) == 1 + 2 * half_unit).all()


def test_inputs_may_be_read_only_and_stay_as_they_were(tmp_path: Path) -> None:
    case = make_case(40, 30)
    before = [array.copy() for array in (case.w0, case.b0, *case.supports.values())]  # type: ignore[union-attr]
    mapped = np.memmap(tmp_path / "w0", np.float32, "w+", shape=case.w0.shape)
    mapped[:] = case.w0
    mapped.flush()
    for array in (case.b0, *case.supports.values()):
        array.flags.writeable = False  # type: ignore[union-attr]
    frozen = np.memmap(tmp_path / "w0", np.float32, "r", shape=case.w0.shape)
    w, b, _ = merged(Case(frozen, case.b0, case.supports))
    require_merged(case, w, b)
    after = [frozen, case.b0, *case.supports.values()]
    assert all((x == y).all() for x, y in zip(before, after, strict=True))  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_supports_of_any_precision_count_in_full(dtype: Any) -> None:
    case = make_case(21, 18)
    stored = {name: support.astype(dtype) for name, support in case.supports.items()}
    w, b, _ = merged(Case(case.w0, case.b0, stored))
    require_merged(Case(case.w0, case.b0, stored), w, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["w0", "b0", "A_d", "A_u", "B_d", "B_u", "C_d", "C_u", "D", "E"])
@directions
def test_a_number_that_is_not_finite_is_reported(bad: float, where: str, transposed: bool) -> None:
    case = make_case(37, 41, "A=lora:2 B=lora:3 C=lora:2 D=vector E=scalar")
    assert merged(case, transposed=transposed)[2]
    tensors = {"w0": case.w0, "b0": case.b0, **case.supports}
    tensors[where].flat[-1] = bad  # type: ignore[union-attr]
    assert not merged(case, transposed=transposed)[2]


@pytest.mark.parametrize("of_the_bias", [False, True])
def test_an_overflow_of_half_precision_is_reported_and_one_short_of_it_is_not(
    of_the_bias: bool,
) -> None:
    for number, finite in ((65519.996, True), (65520.0, False), (-65520.0, False)):
        case = make_case(600, 500, "A=none")
        (case.b0 if of_the_bias else case.w0).flat[-1] = number  # type: ignore[union-attr]
        assert merged(case, np.float16)[2] == finite
        assert merged(case, np.float32)[2]
        assert merged(case, ml_dtypes.bfloat16)[2]


def test_threads_that_merge_at_once_do_not_disturb_one_another() -> None:
    many = [make_case(300 + seed, 500, seed=seed) for seed in range(12)]
    alone = [merged(case)[0].tobytes() for case in many]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            together = pool.map(lambda case: merged(case)[0].tobytes(), many)
            assert list(together) == alone


def test_many_layers_at_once_are_each_what_they_are_alone_and_the_bad_ones_are_named() -> None:
    many = {f"blocks.{seed}": make_case(300 + seed, 50, seed=seed) for seed in range(9)}
    many["blocks.6"].w0[7, 7] = 70_000
    assert many["blocks.2"].b0 is not None
    many["blocks.2"].b0[0] = -70_000
    jobs = {
        layer: MergeJob(
            case.w0,
            case.b0,
            case.supports,
            np.empty(case.w0.shape[::-1], np.float16),
            np.empty(len(case.w0), np.float16),
            transposed=True,
        )
        for layer, case in many.items()
    }
    assert fused_merge_layers(jobs) == ["blocks.2", "blocks.6"]
    for layer, case in many.items():
        w, b, _ = merged(case, np.float16, transposed=True)
        np.testing.assert_array_equal(jobs[layer].out_w.T, w)
        np.testing.assert_array_equal(jobs[layer].out_b, b)


def test_a_layer_that_does_not_fit_fails_the_merge_of_many() -> None:
    case = make_case(5, 4)
    job = MergeJob(case.w0, case.b0, case.supports, np.zeros((4, 4), np.float32), case.b0)
    with pytest.raises(ValueError, match="out_w must have shape"):
        fused_merge_layers({"head": job})


def test_both_directions_and_repeated_merges_give_the_same_bits() -> None:
    case = make_case(700, 400)
    first = merged(case)[0].tobytes()
    assert merged(case)[0].tobytes() == first
    assert np.ascontiguousarray(merged(case, transposed=True)[0]).tobytes() == first


def replace(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(arguments: dict[str, Any]) -> None:
        target = arguments if name in arguments else arguments["supports"]
        target[name] = value

    return change


REFUSED = {
    "w0 of float64": (replace("w0", np.zeros((5, 4))), "w0 must be of float32, got float64"),
    "w0 turned": (
        replace("w0", np.zeros((4, 5), np.float32).T),
        "w0 must be C-contiguous, got strides (4, 20)",
    ),
    "w0 of three axes": (
        replace("w0", np.zeros((5, 2, 2), np.float32)),
        "w0 must have shape (d_out, d_in), neither zero, got (5, 2, 2)",
    ),
    "w0 empty": (
        replace("w0", np.zeros((5, 0), np.float32)),
        "w0 must have shape (d_out, d_in), neither zero, got (5, 0)",
    ),
    "b0 too long": (
        replace("b0", np.zeros(4, np.float32)),
        "b0 must have shape (5,) where w0 is (5, 4), got (4,)",
    ),
    "no b0": (replace("b0", None), "out_b must be absent where w0 is (5, 4) without b0, got (5,)"),
    "no out_b": (replace("out_b", None), "out_b must have shape (5,) where w0 is (5, 4), got none"),
    "out_w turned": (
        replace("out_w", np.zeros((4, 5), np.float32)),
        "out_w must have shape (5, 4) where w0 is (5, 4), got (4, 5)",
    ),
    "out_w upright, though transposed": (
        replace("transposed", True),
        "out_w must have shape (4, 5) where w0 is (5, 4), got (5, 4)",
    ),
    "out_w of integers": (
        replace("out_w", np.zeros((5, 4), np.int32)),
        "out_w must be of float32 or float16 or bfloat16, got int32",
    ),
    "out_b of another dtype": (
        replace("out_b", np.zeros(5, np.float16)),
        "out_b must be of float32, got float16",
    ),
    "an integer support": (
        replace("E", np.zeros(1, np.int64)),
        "E must be of float16 or bfloat16 or float32 or float64, got int64",
    ),
    "half a lora pair": (
        replace("A_d", np.zeros((5, 3), np.float32)),
        "A must be absent where w0 is (5, 4), got (5, 1)",
    ),
    "a support turned": (
        replace("A", np.zeros((1, 5), np.float32)),
        "A must have shape (5, 1) where w0 is (5, 4), got (1, 5)",
    ),
    "ranks that differ": (
        replace("B_u", np.zeros((2, 4), np.float32)),
        "B_u must have shape (3, 4) where w0 is (5, 4), got (2, 4)",
    ),
    "a scalar C": (
        replace("C", np.zeros((1, 1), np.float32)),
        "C must have shape (4, 1) where w0 is (5, 4), got (1, 1)",
    ),
    "an unknown support": (
        replace("F", np.zeros(1, np.float32)),
        "F must be absent where w0 is (5, 4), got (1,)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str) -> None:
    change, message = REFUSED[case]
    layer = make_case(5, 4, "A=vector B=lora:3")
    arguments: dict[str, Any] = {
        "w0": layer.w0,
        "b0": layer.b0,
        "supports": dict(layer.supports),
        "out_w": np.zeros((5, 4), np.float32),
        "out_b": np.zeros(5, np.float32),
        "transposed": False,
    }
    change(arguments)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
        fused_merge(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["C", "D", "E"])
def test_supports_of_a_bias_are_refused_on_a_layer_without_one(name: str) -> None:
    case = make_case(5, 5, "A=vector", bias=False)
    stray = make_case(5, 5, "C=vector D=vector E=vector").supports[name]
    shape = re.escape(str(stray.shape))
    with pytest.raises(ValueError, match=rf"^{name} must be absent .* without b0, got {shape}$"):
        merged(Case(case.w0, None, {name: stray}))


def test_the_frozen_weight_is_never_overwritten() -> None:
    w0 = np.ones((40, 40), np.float32)
    with pytest.raises(ValueError, match="out_w must not overlap w0"):
        fused_merge(w0, None, {}, out_w=w0, out_b=None)


def test_a_read_only_output_is_refused() -> None:
    out_w = np.zeros((40, 40), np.float32)
    out_w.flags.writeable = False
    with pytest.raises(ValueError, match="out_w must be writeable, got a read-only array"):
        fused_merge(np.ones((40, 40), np.float32), None, {}, out_w=out_w, out_b=None)


def test_kernels_compile_where_nothing_can_be_kept_on_disk(monkeypatch: Any) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert cpu_kernel._compiled(lambda x: x + 1)(41) == 42


def run(code: str, **environment: str) -> str:
    """Output of a script in a fresh process that sees the tests' helpers."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_process_loads_what_the_first_compiled(tmp_path: Path) -> None:
    code = (
        "import numpy as np\n"
        "from glora_deploy.merge import cpu_kernel\n"
        "from glora_deploy.merge.cpu import fused_merge\n"
        "w0 = np.ones((20, 20), np.float32)\n"
        "fused_merge(w0, None, {}, out_w=np.empty_like(w0), out_b=None)\n"
        "stats = cpu_kernel.merge_rows.stats\n"
        "print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))\n"
    )
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["0", "1"]
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["1", "0"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 features")
def test_processors_without_wide_vectors_use_smaller_tiles_to_the_same_result() -> None:
    code = (
        "import numpy as np\n"
        "from fused_cases import make_case, require_merged\n"
        "from glora_deploy.merge import cpu_kernel\n"
        "from glora_deploy.merge.cpu import fused_merge\n"
        "assert (cpu_kernel.ROWS, cpu_kernel.LANES) == (4, 8)\n"
        "for shape in [(1, 1), (7, 9), (30, 41), (700, 512)]:\n"
        "    case = make_case(*shape)\n"
        "    for turn, dtype in ((1, np.float32), (-1, np.float16)):\n"
        "        w, b = np.empty(shape[::turn], dtype), np.empty(shape[0], dtype)\n"
        "        fused_merge(case.w0, case.b0, case.supports, out_w=w, out_b=b,"
        " transposed=turn < 0)\n"
        "        require_merged(case, w.T if turn < 0 else w, b)\n"
        "        near = w.astype(np.float64)\n"
        "        fused_merge(case.w0, case.b0, case.supports, out_w=w, out_b=b,"
        " transposed=turn < 0, exact=False)\n"
        "        np.testing.assert_allclose(w.astype(np.float64), near, rtol=1e-3, atol=1e-4)\n"
    )
    run(code, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx2,+fma")
