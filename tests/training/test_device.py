from __future__ import annotations

import pytest
import torch

from glora_deploy.training.device import choose_device, repeatable

CPU = torch.device("cpu")


def test_auto_takes_cuda_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected
    assert choose_device("cpu") == CPU


def test_an_unknown_or_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"device must be one of .*, got 'tpu'"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch finds none\. Use --device cpu"):
        choose_device("cuda")
    assert choose_device("auto") == CPU


def test_the_global_generator_and_switches_are_put_back_even_after_an_error() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()

    def interrupted() -> None:
        with repeatable(CPU):
            torch.manual_seed(4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_runs_deterministic_kernels_inside_and_as_before_outside() -> None:
    with repeatable(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
