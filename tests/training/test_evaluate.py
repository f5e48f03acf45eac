from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from glora_deploy.glora.layer import GloraLayer
from glora_deploy.glora.supernet_layers import set_subnet
from glora_deploy.training.config import TrainConfig
from glora_deploy.training.evaluate import (
    SCORE_BATCH,
    MergedNetwork,
    accuracies,
    hardest_first,
    score,
)
from glora_deploy.training.methods import METHODS
from glora_deploy.training.pixels import Pixels
from glora_deploy.training.supernet import Supernet, build_supernet
from stored_tasks import make_backbone
from tasks import make_images

CPU = torch.device("cpu")
GLORA = METHODS["glora"]
KINDS = ("linear", "conv", "affine")


def make_supernet(architecture: str = "vit_tiny_patch16_224") -> tuple[Supernet, MergedNetwork]:
    """A supernet with random supports on all kinds of layer, scaled as in the short schedule."""
    backbone = make_backbone(architecture)
    # The one linear layer of a ResNet is its classifier.
    kinds = KINDS[1:] if architecture == "test_resnet" else KINDS
    config = TrainConfig.preset("short", ranks=(3, 2), kinds=kinds)
    supernet = build_supernet(backbone, 3, config, GLORA, seed=0, device=CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in supernet.trainable().values():
            parameter.normal_(0, 0.05, generator=generator)
    supernet.model.eval()
    return supernet, MergedNetwork(supernet, backbone.build(3))


class Says(nn.Module):
    """Answers every image with one class."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.full((len(x),), self.label), 3).float()


def test_accuracy_is_the_share_of_right_answers_from_0_to_1() -> None:
    pixels = Pixels(make_images(200, seed=0), make_backbone().preprocessing, CPU)
    done: list[int] = []
    found = accuracies([Says(0), Says(1), Says(2)], pixels, report=done.append)
    # 200 images whose labels run 0, 1, 2, 0, 1, 2, ...
    assert found == [67 / 200, 67 / 200, 66 / 200]
    assert done == [128, 200]


def test_a_score_is_the_accuracy_of_the_whole_split_batch_by_batch() -> None:
    pixels = Pixels(make_images(200, seed=0), make_backbone().preprocessing, CPU)
    reachable: list[float] = []

    def worthwhile(accuracy: float) -> bool:
        reachable.append(accuracy)
        return True

    assert score(Says(0), pixels, worthwhile) == (67 / 200, True)
    assert score(Says(2), pixels) == (66 / 200, True)
    assert len(reachable) == -(-200 // SCORE_BATCH)
    assert reachable == sorted(reachable, reverse=True)
    assert reachable[-1] == 67 / 200


def test_a_network_is_given_up_once_what_it_can_reach_is_not_worthwhile() -> None:
    pixels = Pixels(make_images(200, seed=0), make_backbone().preprocessing, CPU)
    asked: list[float] = []

    def worthwhile(accuracy: float) -> bool:
        asked.append(accuracy)
        return accuracy >= 0.8

    found = score(Says(0), pixels, worthwhile)
    assert not found.whole
    assert found.fitness == asked[-1] < 0.8 <= asked[-2]
    assert len(asked) == 2  # the second time 21 and 22 of 32 are wrong
    order = hardest_first(Says(0), pixels)
    assert sorted(order) == list(range(200))
    assert not any(pixels.labels[place] == 0 for place in order[:133])
    asked.clear()
    assert score(Says(0), pixels, worthwhile, order).fitness == (200 - 2 * SCORE_BATCH) / 200
    last = score(Says(0), pixels, lambda accuracy: accuracy > 67 / 200)
    assert last == (67 / 200, True)  # measured to its end, and not worthwhile


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "test_resnet"])
def test_a_subnet_is_evaluated_as_the_vanilla_network_it_merges_into(architecture: str) -> None:
    supernet, merged = make_supernet(architecture)
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    for seed in range(3):
        subnet = supernet.space.draw(random.Random(seed))
        set_subnet(supernet.model, subnet)
        network = merged.become(subnet)
        assert not any(isinstance(module, GloraLayer) for module in network.modules())
        with torch.no_grad():
            expected = supernet.model(x)
            torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4)


def test_a_network_that_has_been_another_subnet_gives_the_same_bits() -> None:
    supernet, merged = make_supernet()
    subnets = [supernet.space.draw(random.Random(seed)) for seed in range(2)]
    first = {k: t.clone() for k, t in merged.become(subnets[0]).state_dict().items()}
    merged.become(subnets[1])
    again = merged.become(subnets[0]).state_dict()
    torch.testing.assert_close(dict(again), first, rtol=0, atol=0)


def test_the_accuracy_of_a_subnet_is_that_of_its_network() -> None:
    supernet, merged = make_supernet()
    pixels = Pixels(make_images(30, seed=0), make_backbone().preprocessing, CPU)
    subnet = supernet.space.draw(random.Random(4))
    found = merged.accuracy(subnet, pixels)
    with torch.no_grad():
        answers = merged.network(pixels.inputs(range(30))).argmax(1)
    assert found == int((answers == pixels.labels).sum()) / 30
