"""Full fine-tuning: every weight of the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..method import WholeMethod


class Full(WholeMethod):
    """All that there is, position embeddings, class token and norms included.

    BatchNorm keeps the statistics that the backbone came with.
    """

    name = "full"
    summary = "every weight of the backbone (a comparison: as large as the backbone)"
    source = "arXiv:2203.12119, section 4.1"
    why = "what it changes is as large as the backbone"
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 100, "lr": 1e-4}
    short_lr = 1e-4
