"""A search that gives hopeless subnets up, beside the same search that measures each to its end.

A supernet is trained and searched. Each subnet that comes up is measured both ways, one after the
other, and both searches must come to the same ranking, or nothing is printed but that::

    python benchmarks/search_speed.py --backbone vit_small_patch16_224 --checkpoint FILE --size 112

How much is saved follows from how far apart the subnets are, so from the weights: with random ones
the figures say little.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from glora_deploy.backbones.load import load_backbone
from glora_deploy.data.load import load_task
from glora_deploy.glora.forms import Subnet
from glora_deploy.machine import Machine
from glora_deploy.training.config import SearchConfig, TrainConfig
from glora_deploy.training.evaluate import MergedNetwork, hardest_first
from glora_deploy.training.methods import METHODS
from glora_deploy.training.pixels import Pixels
from glora_deploy.training.schedule import draw_largest_first
from glora_deploy.training.search import (
    Fitness,
    Score,
    SearchResult,
    SubnetGenes,
    Worthwhile,
    evolve,
)
from glora_deploy.training.supernet import build_supernet
from glora_deploy.training.trainer import Trainer

ROW = "{:<28}{:>12}{:>16}{:>16}"


def main() -> None:
    """Parse, train, search twice, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="demo-vit")
    parser.add_argument("--checkpoint", help="local weights of the backbone, or random:SEED")
    parser.add_argument("--size", type=int, help="side of the input; the backbone's own by default")
    parser.add_argument("--data", default="photos", help="a task, as training takes it")
    parser.add_argument("--epochs", type=int, default=4, help="of the supernet")
    parser.add_argument("--population", type=int, default=12)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = None if arguments.size is None else (arguments.size, arguments.size)
    backbone = load_backbone(arguments.backbone, checkpoint=arguments.checkpoint, input_size=size)
    data = load_task(arguments.data, seed=0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, val = (Pixels(each, backbone.preprocessing, device) for each in (data.train, data.val))
    config = TrainConfig.preset("short", epochs=arguments.epochs)
    supernet = build_supernet(
        backbone, data.n_classes, config, METHODS["glora"], seed=0, device=device
    )
    draw = draw_largest_first(supernet.space)
    Trainer(supernet, train, config, random.Random(0)).train(draw)
    merged = MergedNetwork(supernet, backbone.build(data.n_classes).to(device))
    search = SearchConfig.preset(
        "short", population=arguments.population, generations=arguments.generations
    )

    largest = supernet.space.largest()
    order = hardest_first(merged.become(largest), val)
    merged.accuracy(largest, val)  # warms up
    known: dict[Subnet, float] = {}
    seconds = {"to the end": 0.0, "given up": 0.0}

    def measured_twice(subnet: Subnet, worthwhile: Worthwhile) -> Score:
        started = time.perf_counter()
        known[subnet] = merged.accuracy(subnet, val)
        between = time.perf_counter()
        found = merged.score(subnet, val, worthwhile, order)
        seconds["to the end"] += between - started
        seconds["given up"] += time.perf_counter() - between
        return found

    def searched(fitness: Fitness[Subnet]) -> SearchResult[Subnet]:
        genes = SubnetGenes(supernet.space)
        return evolve(genes, fitness, search, random.Random(0), first=[largest])

    quick = searched(measured_twice)
    if quick.top != searched(lambda subnet, worthwhile: Score(known[subnet])).top:
        raise SystemExit("the two searches differ")
    print(
        f"{arguments.backbone}, {backbone.preprocessing.size[0]} pixels, {arguments.data}, "
        f"{len(val)} images, {Machine.here()}, {arguments.threads} threads\n"
    )
    n = quick.n_evaluated
    n_given_up = sum(not each.whole for generation in quick.generations for each in generation)
    print(ROW.format("", "seconds", "subnets/s", "given up"))
    for name, took in seconds.items():
        count = n_given_up if name == "given up" else 0
        print(ROW.format(name, f"{took:.1f}", f"{n / took:.2f}", f"{count} of {n}"))
    ratio = seconds["to the end"] / seconds["given up"]
    print(f"\n{ratio:.2f} times as many subnets a second, the same {search.top_k} best")


if __name__ == "__main__":
    main()
