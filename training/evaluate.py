"""Accuracy of vanilla networks, and of subnets merged into one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic

import torch
from torch import Tensor, nn

from glora_deploy.glora.forms import Subnet
from glora_deploy.merge.formula import merge_into

from .adapted import Adapted
from .search import Candidate, Score, Worthwhile
from .split import Split

EVAL_BATCH = 128
SCORE_BATCH = 32
"""Images between two looks at whether a network is still worth its evaluation."""


@torch.inference_mode()
def accuracies(
    networks: Sequence[nn.Module],
    split: Split,
    *,
    report: Callable[[int], None] = lambda n_done: None,
) -> list[float]:
    """Top-1 of each network, 0 to 1; every example is read once for all of them.

    Args:
        networks: In eval mode, on the device of the split.
        split: At least one example.
        report: Called with how many examples have been answered.
    """
    correct = torch.zeros(len(networks), dtype=torch.int64)
    n_done = 0
    for x, labels in split.batches(EVAL_BATCH):
        correct += torch.tensor([int((net(x).argmax(1) == labels).sum()) for net in networks])
        n_done += len(labels)
        report(n_done)
    return [int(count) / len(split) for count in correct]


@torch.inference_mode()
def hardest_first(network: nn.Module, split: Split) -> list[int]:
    """Places of all examples: those first that a network gets wrong, or right by the least.

    What is hard for one subnet of a supernet is hard for most, so that a bad one shows early.

    Args:
        network: In eval mode, on the device of the split.
        split: At least one example.
    """
    margins = []
    for x, labels in split.batches(EVAL_BATCH):
        logits, place = network(x), labels[:, None]
        others = logits.scatter(1, place, -torch.inf).amax(1)
        margins.append(logits.gather(1, place).squeeze(1) - others)
    order: list[int] = torch.cat(margins).argsort(stable=True).tolist()
    return order


@torch.inference_mode()
def score(
    network: nn.Module,
    split: Split,
    worthwhile: Worthwhile = lambda accuracy: True,
    order: Sequence[int] | None = None,
) -> Score:
    """Top-1 of a network, 0 to 1, given up once what it can still reach is not worthwhile.

    Args:
        network: In eval mode, on the device of the split.
        split: At least one example.
        worthwhile: Asked after every batch.
        order: Places of all examples, as they are taken; as they lie by default.
    """
    n, n_wrong, n_done = len(split), 0, 0
    places = range(n) if order is None else order
    for first in range(0, n, SCORE_BATCH):
        some = places[first : first + SCORE_BATCH]
        answers = network(split.inputs(some)).argmax(1)
        n_wrong += int((answers != split.labels[list(some)]).sum())
        n_done += len(some)
        if not worthwhile((n - n_wrong) / n):
            break
    return Score((n - n_wrong) / n, whole=n_done == n)


class AnsweringNetwork(ABC, Generic[Candidate]):
    """One network that answers as any candidate of a trained network."""

    @abstractmethod
    def become(self, candidate: Candidate) -> nn.Module:
        """The network as this candidate, in eval mode; whatever it was before is gone."""

    def accuracy(self, candidate: Candidate, split: Split) -> float:
        """Top-1 of a candidate, 0 to 1, on at least one example."""
        return score(self.become(candidate), split).fitness

    def score(
        self, candidate: Candidate, split: Split, worthwhile: Worthwhile, order: Sequence[int]
    ) -> Score:
        """The same, given up as the function ``score`` says, which takes the same arguments."""
        return score(self.become(candidate), split, worthwhile, order)


class MergedNetwork(AnsweringNetwork[Subnet]):
    """One vanilla network that becomes any subnet of a trained network.

    Args:
        adapted: Where the subnets are taken from, as they are at each call.
        network: Vanilla, of the same architecture and number of classes, in eval mode, on the
            adapted network's device. Its adapted layers and classifier are overwritten.
    """

    def __init__(self, adapted: Adapted[Subnet], network: nn.Module) -> None:
        self.network = network
        self._adapted = adapted
        self._frozen: dict[str, Tensor] = adapted.frozen()

    def become(self, candidate: Subnet) -> nn.Module:
        """Merge a subnet into the network, over whatever it was before.

        Raises:
            NonFiniteError: If a merged weight is not finite.
        """
        supports = self._adapted.supports(candidate)
        merge_into(self.network, self._frozen, supports, self._adapted.shapes)
        self.network.load_state_dict(self._adapted.head(), strict=False)
        return self.network


class UnmergedNetwork(AnsweringNetwork[Candidate]):
    """A trained network that is answered by as it is, for methods of which nothing can be merged.

    Args:
        adapted: Answers for what it takes; in eval mode when it is asked.
    """

    def __init__(self, adapted: Adapted[Candidate]) -> None:
        self._adapted = adapted

    def become(self, candidate: Candidate) -> nn.Module:
        """Have the network be this candidate.

        Raises:
            ValueError: If it is none of this network's.
        """
        self._adapted.take(candidate)
        return self._adapted.model
