from __future__ import annotations

from typing import Any

import pytest

from glora_deploy.export.tensorrt_plan.config import PlanConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": (0, 1, 2)}, r"batch must be 1 <= min <= opt <= max, got \(0, 1, 2\)"),
        ({"batch": (2, 1, 4)}, "batch must be"),
        ({"batch": (1, 5, 4)}, "batch must be"),
        ({"compute_capabilities": ("sm86",)}, "must look like 8.6, got 'sm86'"),
        ({"compute_capabilities": ()}, "must name at least one"),
    ],
)
def test_a_nonsensical_configuration_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlanConfig(**fields)
