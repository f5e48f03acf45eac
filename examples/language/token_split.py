"""A split of texts as the trainer takes it: one tensor of padded token ids for a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .docstrings import TextSplit

N_TOKENS = 64
"""The default limit of a text; what goes beyond it is cut off."""


class TokenSplit:
    """Texts as token ids, as ``glora_deploy.training.split`` asks for them.

    Args:
        split: Texts and labels.
        tokenizer: Of the network.
        n_tokens: Most tokens of a text.
    """

    def __init__(
        self, split: TextSplit, tokenizer: PreTrainedTokenizerBase, *, n_tokens: int = N_TOKENS
    ) -> None:
        self.labels = torch.tensor(split.labels)
        self._pad_id = tokenizer.pad_token_id
        self._ids = tokenizer(list(split.texts), truncation=True, max_length=n_tokens)["input_ids"]

    def __len__(self) -> int:
        return len(self._ids)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Token ids ``(n, longest of these texts)``, int64."""
        return padded([self._ids[index] for index in indices], self._pad_id)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Token ids and labels of all texts in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            some = range(start, min(start + size, len(self)))
            yield self.inputs(some), self.labels[some.start : some.stop]


def padded(texts: Sequence[Sequence[int]], pad_id: int, *, extra: int = 0) -> Tensor:
    """Token ids ``(n, longest + extra)``, int64, filled up with padding on the right."""
    n_tokens = max(map(len, texts)) + extra
    return torch.tensor([[*ids, *[pad_id] * (n_tokens - len(ids))] for ids in texts])
