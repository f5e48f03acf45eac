"""docs/methods.md names every method, with the numbers that it has."""

from __future__ import annotations

import re
from pathlib import Path

from glora_deploy.backbones.load import outline
from glora_deploy.training.adapted import build_outline, require_layers
from glora_deploy.training.attached_network import blocks_of
from glora_deploy.training.config import TrainConfig
from glora_deploy.training.method import AttachedMethod, FoldedMethod, WholeMethod
from glora_deploy.training.methods import METHODS
from glora_deploy.training.whole_network import WholeNetwork

PAGE = (Path(__file__).parents[3] / "docs" / "methods.md").read_text("utf-8")


TABLE = PAGE.partition("The last five")[0]


def row(name: str) -> list[str]:
    (found,) = re.findall(rf"^\| `{name}` \|(.*)\|$", TABLE, re.MULTILINE)
    return [cell.strip() for cell in found.split("|")]


def test_the_table_has_every_method_and_its_numbers() -> None:
    named = re.findall(r"^\| `([a-z][a-z-]*)` \|", TABLE, re.MULTILINE)
    assert sorted(named) == sorted(METHODS)
    for name, method in METHODS.items():
        *_, trained, stored = row(name)
        if method.searches:
            assert trained == "as searched", name
            continue
        if isinstance(method, AttachedMethod):
            config = TrainConfig.preset("short", ranks=(method.rank,))
            model = build_outline(outline("vit_base_patch16_224"), config)
            n_trained = method.n_trained(blocks_of(model, method), config)
            assert (trained.split()[0], stored) == (f"{n_trained:,}", "nothing"), name
            continue
        if isinstance(method, WholeMethod):
            plan = outline("vit_base_patch16_224")
            network = WholeNetwork(plan.build_empty(2), plan.classifier)
            n_trained = sum(tensor.numel() for tensor in network.trainable().values())
            n_trained -= sum(tensor.numel() for tensor in network.head().values())
            assert (trained, stored) == (f"{n_trained:,}", "a checkpoint")
            continue
        if not isinstance(method, FoldedMethod):
            continue
        rank = () if method.rank is None else (method.rank,)
        changes = {"ranks": rank} if rank else {}
        config = TrainConfig.preset("short", kinds=method.kinds, scale=method.scale, **changes)
        layers = require_layers(outline("vit_base_patch16_224"), config, method)
        n_trained = method.n_trained(layers, config)
        assert trained.split()[0] == f"{n_trained:,}", name
        n_stored = method.forms(layers, config).n_parameters(layers)
        if method.shared is None and n_stored != n_trained:
            assert stored == f"{n_stored:,}", name


def test_each_has_a_section_that_gives_its_source() -> None:
    for name, method in METHODS.items():
        section = rf"^(## [a-z, -]*\b{name}\b[a-z, -]*$|- \*\*[a-z, -]*\b{name}\b)"
        assert re.search(section, PAGE, re.MULTILINE), name
        assert method.source.partition(",")[0].removeprefix("arXiv:") in PAGE
