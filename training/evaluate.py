"""Accuracy of vanilla networks, and of subnets merged into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from glora_deploy.glora.forms import Subnet
from glora_deploy.glora.supernet_layers import extract_supports, glora_layers
from glora_deploy.merge.formula import merge_into

from .pixels import Pixels
from .supernet import Supernet

EVAL_BATCH = 128


@torch.inference_mode()
def accuracies(
    networks: Sequence[nn.Module],
    images: Pixels,
    *,
    report: Callable[[int], None] = lambda n_done: None,
) -> list[float]:
    """Top-1 of each network, 0 to 1; every image is read once for all of them.

    Args:
        networks: In eval mode, on the device of the images.
        images: At least one.
        report: Called with how many images have been answered.
    """
    correct = torch.zeros(len(networks), dtype=torch.int64)
    n_done = 0
    for x, labels in images.batches(EVAL_BATCH):
        correct += torch.tensor([int((net(x).argmax(1) == labels).sum()) for net in networks])
        n_done += len(labels)
        report(n_done)
    return [int(count) / len(images) for count in correct]


class MergedNetwork:
    """One vanilla network that becomes any subnet of a trained supernet.

    Args:
        supernet: Where the subnets are taken from, as they are at each call.
        network: Vanilla, of the same architecture and number of classes, in eval mode, on the
            supernet's device. Its adapted layers and classifier are overwritten.
    """

    def __init__(self, supernet: Supernet, network: nn.Module) -> None:
        self.network = network
        self._supernet = supernet
        self._frozen: dict[str, Tensor] = {
            f"{name}.{key}": tensor
            for name, layer in glora_layers(supernet.model).items()
            for key, tensor in layer.base.state_dict().items()
        }

    def become(self, subnet: Subnet) -> nn.Module:
        """Merge a subnet into the network, over whatever it was before.

        Raises:
            NonFiniteError: If a merged weight is not finite.
        """
        supports = extract_supports(self._supernet.model, subnet)
        merge_into(self.network, self._frozen, supports, self._supernet.space.shapes)
        self.network.load_state_dict(self._supernet.head(), strict=False)
        return self.network

    def accuracy(self, subnet: Subnet, images: Pixels) -> float:
        """Top-1 of a subnet, 0 to 1, evaluated as the vanilla network it merges into."""
        return accuracies([self.become(subnet)], images)[0]
