"""Building a network without its numbers, so that loading it takes no memory twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.hooks import RemovableHandle


def built_empty(create: Callable[[], nn.Module]) -> nn.Module:
    """A network as a constructor makes it, in eval mode, its parameters on the meta device.

    If the constructor also loads weights, what it loads become the parameters, not copied.

    Args:
        create: Calls timm; twice, if the network computes with its parameters while it is built.
    """
    here = threading.get_ident()
    hooks: dict[nn.Module, RemovableHandle] = {}
    loading = False

    def without_numbers(module: nn.Module, _: str, parameter: nn.Parameter | None) -> Any:
        # The hook is every thread's, and is called again for what is loaded.
        if parameter is None or loading or threading.get_ident() != here:
            return None
        if module not in hooks:
            hooks[module] = module.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
                assign
            )
        return nn.Parameter(parameter.detach().to("meta"))

    def assign(*given: Any) -> None:
        """What ``load_state_dict(assign=True)`` does, which timm does not ask for."""
        nonlocal loading
        loading = True
        _, _, _, metadata, *_ = given
        metadata["assign_to_params_buffers"] = True

    with torch.random.fork_rng(devices=[]):
        # Not torch.device("meta") as context: that would empty the buffers no state dict holds too.
        hook = register_module_parameter_registration_hook(without_numbers)
        try:
            model = create()
        except RuntimeError:  # computed with: "no data", or "not on the expected device"
            model = None
        finally:
            hook.remove()
            for each in hooks.values():
                each.remove()
        if model is None or any(buffer.is_meta for buffer in model.buffers()):
            model = create()
    return model.eval()
