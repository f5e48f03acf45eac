from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np

from glora_deploy.store.fingerprint import fingerprint


def sample() -> dict[str, np.ndarray]:
    return {
        "blocks.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "blocks.0.bias": np.array([1.5, -0.0], ml_dtypes.bfloat16),
        "n": np.array(7, np.int64),
        "none": np.zeros((0, 3), np.float16),
    }


def test_the_digest_is_the_documented_one() -> None:
    text = (
        b'["blocks.0.bias","bfloat16",[2]]\n\xc0\x3f\x00\x80'
        b'["blocks.0.weight","float32",[2,3]]\n'
        + b"".join(
            bytes.fromhex(f"0000{n}") for n in ("0000", "803f", "0040", "4040", "8040", "a040")
        )
        + b'["n","int64",[]]\n\x07\0\0\0\0\0\0\0'
        b'["none","float16",[0,3]]\n'
    )
    assert fingerprint(sample()) == hashlib.sha256(text).hexdigest()


def test_order_and_memory_layout_do_not_matter() -> None:
    backwards = dict(reversed(sample().items()))
    backwards["blocks.0.weight"] = np.asfortranarray(backwards["blocks.0.weight"])
    backwards["n"] = backwards["n"].astype(">i8")
    strided = np.zeros((4, 6), np.float32)
    strided[::2, ::2] = sample()["blocks.0.weight"]
    assert fingerprint(backwards) == fingerprint(sample())
    assert fingerprint({**sample(), "blocks.0.weight": strided[::2, ::2]}) == fingerprint(sample())


def test_a_name_dtype_shape_or_bit_matters() -> None:
    tensors = sample()
    weight = tensors.pop("blocks.0.weight")
    others = {
        "name": {**tensors, "blocks.1.weight": weight},
        "shape": {**tensors, "blocks.0.weight": weight.reshape(3, 2)},
        "dtype": {**tensors, "blocks.0.weight": weight.view(np.int32)},
        "bit": {**tensors, "blocks.0.weight": np.nextafter(weight, 9)},
        "sign of zero": {**tensors, "blocks.0.weight": weight * np.float32(-1) * -1},
        "missing": tensors,
        "more": {**sample(), "m": np.array(7)},
    }
    others["sign of zero"]["blocks.0.weight"][0, 0] = -0.0
    digests = {name: fingerprint(value) for name, value in others.items()}
    assert len({fingerprint(sample()), *digests.values()}) == 1 + len(others)


def test_tensors_are_not_modified() -> None:
    tensors = {"a": np.arange(6, dtype=">f4").reshape(2, 3).T}
    before = tensors["a"].copy()
    fingerprint(tensors)
    assert tensors["a"].dtype == before.dtype
    assert np.array_equal(tensors["a"], before)
