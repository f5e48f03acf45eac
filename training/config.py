"""What a training run is asked to do, as checked values; built by the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from glora_deploy.backbones.input_size import HeightWidth
from glora_deploy.data.spec import Kind
from glora_deploy.glora.forms import LayerKind
from glora_deploy.store.manifest_fields import slug_problem

from .methods import METHODS
from .setting_error import SettingError

Schedule = Literal["short", "paper"]
DeviceName = Literal["auto", "cpu", "cuda"]

SHORT_LR = 1e-3
"""``short``, for a wide backbone with real pretraining."""
DEMO_FACTOR = 10
"""On it for demo-vit. GLoRA and LoRA both did best at 1e-2 on the validation splits, of 5e-3, 1e-2
and 2e-2; of a full fine-tuning 1e-3 did, of 1e-4, 3e-4, 1e-3 and 3e-3."""


MAX_RANK = 99_999
"""The largest that a manifest can state."""


def _require(field: str, rule: str, value: object, *, holds: bool) -> None:
    if not holds:
        got = _listed(value) if isinstance(value, tuple) else value
        raise SettingError(f"{field} must {rule}, got {got}", field)


def _listed(values: Iterable[object]) -> str:
    """Values as people list them; one that is empty shows as such."""
    return ", ".join(str(value) or "''" for value in values) or "none"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # the bytes of a name that is no text
        return False
    return True


def _require_schedule(schedule: str) -> None:
    names = get_args(Schedule)
    _require("schedule", f"be one of {_listed(names)}", repr(schedule), holds=schedule in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How weights are trained: the supernet's, or one fixed subnet's."""

    schedule: Schedule
    """``paper`` is arXiv:2306.07967; ``short`` is for a few epochs (see ``schedule.py``)."""
    epochs: int
    """Passes over the training split; the last part batch of each is dropped."""
    batch_size: int
    """Images per step; all of them share one subnet."""
    lr: float
    """Peak learning rate of AdamW."""
    supernet_share: float
    """Share of the epochs that train the supernet. The rest, after the search, trains the subnet
    that was chosen, alone. Above 0 and at most 1."""
    warmup_epochs: int
    """Epochs of linear rise to the peak."""
    warmup_lr: float
    """Learning rate of the first epoch."""
    final_lr: float
    """What the cosine falls to."""
    weight_decay: float
    """AdamW's decoupled decay."""
    drop_path: float
    """Probability of skipping the deepest residual branch; shallower ones scale linearly."""
    ranks: tuple[int, ...]
    """Ranks on offer to lora paths; the one rank, or width, of a method without a search."""
    scale: float | None = None
    """What multiplies the change that a method makes; None for one that has no such factor."""
    kinds: tuple[LayerKind, ...] = ("linear",)
    """Kinds of layer to adapt."""
    include: tuple[str, ...] | None = None
    """Shell patterns on dotted layer names, of which a layer must match one; None for the method's
    own choice: every layer for glora, those called qkv for lora."""
    exclude: tuple[str, ...] = ()
    """Patterns of layers to leave alone, beside the classifier."""
    servable_mixed: bool = False
    """Only subnets that a server can answer in one batch with other tasks: linear layers alone, and
    no lora A."""
    checkpoint_every: int = 5
    """Epochs between checkpoints."""

    def __post_init__(self) -> None:
        _require_schedule(self.schedule)
        _require("epochs", "be at least 1", self.epochs, holds=self.epochs >= 1)
        _require("batch_size", "be at least 1", self.batch_size, holds=self.batch_size >= 1)
        _require("lr", "be finite and above 0", self.lr, holds=0 < self.lr < math.inf)
        _require(
            "warmup_epochs",
            f"be below epochs={self.epochs}",
            self.warmup_epochs,
            holds=0 <= self.warmup_epochs < self.epochs,
        )
        for name in ("warmup_lr", "final_lr", "weight_decay"):
            value = getattr(self, name)
            _require(name, "be finite and at least 0", value, holds=0 <= value < math.inf)
        _require(
            "supernet_share",
            "be above 0 and at most 1",
            self.supernet_share,
            holds=0 < self.supernet_share <= 1,
        )
        _require("drop_path", "be in [0, 1)", self.drop_path, holds=0 <= self.drop_path < 1)
        _require(
            "ranks",
            "be one or more distinct numbers of at least 1",
            self.ranks,
            holds=bool(self.ranks)
            and min(self.ranks) >= 1
            and len(set(self.ranks)) == len(self.ranks),
        )
        _require("ranks", f"be at most {MAX_RANK}", self.ranks, holds=max(self.ranks) <= MAX_RANK)
        _require(
            "kinds",
            f"be one or more of {_listed(get_args(LayerKind))}",
            self.kinds,
            holds=bool(self.kinds) and set(self.kinds) <= set(get_args(LayerKind)),
        )
        _require(
            "kinds",
            "name each kind once",
            self.kinds,
            holds=len(set(self.kinds)) == len(self.kinds),
        )
        _require(
            "servable_mixed",
            "adapt linear layers alone",
            self.kinds,
            holds=not self.servable_mixed or set(self.kinds) == {"linear"},
        )
        _require(
            "scale",
            "be finite and not 0",
            self.scale,
            holds=self.scale is None or (math.isfinite(self.scale) and self.scale != 0),
        )
        _require(
            "checkpoint_every",
            "be at least 1",
            self.checkpoint_every,
            holds=self.checkpoint_every >= 1,
        )

    @property
    def supernet_epochs(self) -> int:
        """Epochs before the search."""
        return max(1, round(self.supernet_share * self.epochs))

    @classmethod
    def preset(cls, schedule: Schedule, **changes: Any) -> TrainConfig:
        """The documented values of a schedule, with some of them changed.

        With no more epochs than the schedule warms up for, all but the last warm up. A peak below
        the schedule's first or final learning rate takes its place.

        Raises:
            SettingError: If there is no such schedule, or a value is out of bounds.

        >>> TrainConfig.preset("paper", lr=1e-4).epochs
        500
        """
        _require_schedule(schedule)
        values = _TRAIN_PRESETS[schedule] | changes
        if "warmup_epochs" not in changes:
            values["warmup_epochs"] = max(0, min(values["warmup_epochs"], values["epochs"] - 1))
        for name in ("warmup_lr", "final_lr"):
            if name not in changes:
                values[name] = min(values[name], values["lr"])
        return cls(schedule=schedule, **values)

    def for_lora(self) -> TrainConfig:
        """The same for plain LoRA: the largest rank alone, and no layer that has no low rank.

        Raises:
            SettingError: If only affine layers are to be adapted.
        """
        kinds = tuple(kind for kind in self.kinds if kind != "affine")
        if not kinds:
            raise SettingError(
                f"LoRA needs a linear or conv layer, got {_listed(self.kinds)}", "kinds"
            )
        return replace(self, ranks=(max(self.ranks),), kinds=kinds)


_TRAIN_PRESETS: dict[Schedule, dict[str, Any]] = {
    "paper": {
        "epochs": 500,
        "batch_size": 64,
        "lr": 5e-4,
        "supernet_share": 1.0,
        "warmup_epochs": 10,
        "warmup_lr": 1e-6,
        "final_lr": 1e-5,
        "weight_decay": 1e-4,
        "drop_path": 0.1,
        "ranks": (8, 4),
    },
    "short": {
        "epochs": 15,
        "batch_size": 32,
        "lr": SHORT_LR,
        "supernet_share": 0.5,
        "warmup_epochs": 1,
        "warmup_lr": 1e-6,
        "final_lr": 1e-5,
        "weight_decay": 1e-4,
        "drop_path": 0.1,
        "ranks": (8, 4),
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """How subnets are searched; the defaults are the authors'."""

    population: int = 50
    """Subnets per generation."""
    generations: int = 20
    """Generations after the first, random one."""
    top_k: int = 10
    """How many of the best become parents."""
    mutations: int = 25
    """Mutants per generation."""
    crossovers: int = 25
    """Crossovers per generation; random subnets fill the rest of the population."""
    mutation_probability: float = 0.2
    """Probability that one support of one layer is redrawn."""
    max_parameters: int | None = None
    """Most numbers a subnet may store, classifier excluded; None for no limit."""
    min_parameters: int = 0
    """Fewest numbers a subnet may store."""

    def __post_init__(self) -> None:
        for name in ("population", "top_k"):
            value = getattr(self, name)
            _require(name, "be at least 1", value, holds=value >= 1)
        for name in ("generations", "mutations", "crossovers", "min_parameters"):
            value = getattr(self, name)
            _require(name, "be at least 0", value, holds=value >= 0)
        _require(
            "mutations + crossovers",
            f"be at most population={self.population}",
            self.mutations + self.crossovers,
            holds=self.mutations + self.crossovers <= self.population,
        )
        _require(
            "mutation_probability",
            "be in [0, 1]",
            self.mutation_probability,
            holds=0 <= self.mutation_probability <= 1,
        )
        if self.max_parameters is not None:
            _require(
                "max_parameters",
                f"be at least min_parameters={self.min_parameters}",
                self.max_parameters,
                holds=self.max_parameters >= self.min_parameters,
            )

    @classmethod
    def preset(cls, schedule: Schedule, **changes: Any) -> SearchConfig:
        """The documented values of a schedule, with some of them changed.

        A changed population keeps the halves: as many mutants as crossovers.
        """
        _require_schedule(schedule)
        population = changes.get("population", {"paper": 50, "short": 12}[schedule])
        values: dict[str, Any] = {
            "population": population,
            "generations": {"paper": 20, "short": 3}[schedule],
            "top_k": min(10, max(1, population // 3)) if schedule == "short" else 10,
            "mutations": population // 2,
            "crossovers": population // 2,
        }
        return cls(**(values | changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One task from images to stored deltas."""

    task: str
    """Slug under which the store keeps it."""
    data: str
    """Data spec, as ``data.load_task`` takes it."""
    backbone: str = "demo-vit"
    """``demo-vit`` or a timm model name."""
    weights: str | None = None
    """Local weights file or ``random:SEED``; None for the backbone's own."""
    input_size: HeightWidth | None = None
    """Height and width of the input in pixels; None for the backbone's own."""
    method: str = "glora"
    """Name of one of ``METHODS``."""
    train: TrainConfig
    search: SearchConfig | None
    """How the subnet is searched; None for lora, which searches nothing."""
    seed: int = 0
    """Every draw of the run follows from it, those of the data included."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    version: str | None = None
    """Slug of the new version; None for the next number."""
    make_current: bool = True
    """Whether the new version answers from now on."""
    compare_lora: bool = False
    """Also train plain LoRA for the same wall time and store it beside."""
    retrain: bool = False
    """Train the supernet again on train and val once the subnet is chosen."""
    resume: bool = False
    """Only go on with an unfinished run of the same task; without one there is nothing to do."""
    restart: bool = False
    """Discard an unfinished run of the same task. Otherwise it is gone on with, if it was asked
    for the same, and is in the way, if not."""
    skip_unreadable: bool = False
    """Leave images out that cannot be read, instead of refusing the data."""
    allow_duplicates: bool = False
    """Train although one picture is in two splits."""
    allow_empty_classes: bool = False
    """Train although a class has no training image."""
    tensorboard: Path | None = None
    """Folder for event files; None writes none."""

    def __post_init__(self) -> None:
        if problem := slug_problem("task", self.task):
            raise SettingError(f"task {problem}", "task")
        if self.version is not None and (problem := slug_problem("version", self.version)):
            raise SettingError(f"version {problem}", "version")
        _require(
            "method",
            f"be one of {_listed(METHODS)}",
            repr(self.method),
            holds=self.method in METHODS,
        )
        kind, colon, _ = self.data.partition(":")
        _require(
            "data",
            f"be {', '.join(f'{kind}:PATH' for kind in get_args(Kind))} or the name of a built-in "
            "task",
            repr(self.data),
            holds=not colon or kind in get_args(Kind),
        )
        _require(
            "data",
            "be UTF-8, as it is kept with the delta. Rename the folder, or make a link to it",
            repr(self.data),
            holds=_is_utf8(self.data),
        )
        _require("seed", "be in [0, 2**64)", self.seed, holds=0 <= self.seed < 2**64)
        self._require_method()
        if self.resume and self.restart:
            raise SettingError(
                "an unfinished run is either gone on with or discarded", "resume", "restart"
            )

    def _require_method(self) -> None:
        """Check that the method can do what is asked of it."""
        method = METHODS[self.method]
        searching = _listed(name for name, each in METHODS.items() if each.searches)
        for field in ("compare_lora", "retrain"):
            asked = getattr(self, field)
            rule = f"go with --method {searching}"
            _require(field, rule, self.method, holds=method.searches or not asked)
        kinds, possible = self.train.kinds, method.possible_kinds
        _require(
            "kinds",
            f"be of {_listed(possible)} for --method {self.method}",
            kinds,
            holds=set(kinds) <= set(possible),
        )
        if method.rank is not None:
            ranks = self.train.ranks
            _require("ranks", f"be one for --method {self.method}", ranks, holds=len(ranks) == 1)
        _require(
            "scale",
            f"be {'given' if method.scale is not None else 'left out'} for --method {self.method}",
            self.train.scale,
            holds=(self.train.scale is None) == (method.scale is None),
        )
        _require(
            "search",
            f"be given for method {searching}, and for it alone",
            self.search,
            holds=(self.search is not None) == method.searches,
        )
