"""Training from Python: what the command line takes as options, taken as keywords."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glora_deploy.backbones.checkpoint_name import RANDOM, require_recordable, split_part
from glora_deploy.backbones.input_size import HeightWidth, parse_size
from glora_deploy.data.built_in_tasks import BUILT_IN_TASKS
from glora_deploy.data.spec import DataSpec, with_splits
from glora_deploy.errors import DataError
from glora_deploy.glora.forms import LayerKind

from .config import (
    DEMO_FACTOR,
    SHORT_LR,
    DeviceName,
    RunConfig,
    Schedule,
    SearchConfig,
    TrainConfig,
)
from .method import Method, SizedMethod
from .methods import METHODS
from .setting_error import SettingError, blamed_on

if TYPE_CHECKING:  # they bring torch, which a wrong setting need not wait for
    from .job import OnProgress
    from .pipeline import Outcome


def train(
    task: str,
    *,
    data: str | None = None,
    split: str | None = None,
    skip_unreadable: bool = False,
    allow_duplicates: bool = False,
    allow_empty_classes: bool = False,
    backbone: str | None = None,
    checkpoint: Path | str | None = None,
    input_size: int | HeightWidth | str | None = None,
    store: Path | str = "artifacts",
    version: str | None = None,
    make_current: bool = True,
    method: str = "glora",
    schedule: Schedule = "short",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    drop_path: float | None = None,
    ranks: Sequence[int] | None = None,
    scale: float | None = None,
    layers: str | Sequence[LayerKind] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    max_parameters: int | None = None,
    servable_mixed: bool = False,
    population: int | None = None,
    generations: int | None = None,
    retrain: bool = False,
    compare_lora: bool = False,
    seed: int = 0,
    device: DeviceName = "auto",
    resume: bool = False,
    restart: bool = False,
    tensorboard: Path | str | None = None,
    report: OnProgress = lambda stage, done, total, note: None,
    tell: Callable[[str], None] = lambda note: None,
) -> list[Outcome]:
    """Train a task on a frozen backbone and store its delta, as ``glora train`` does.

    Nothing is printed. An interrupted run that was asked for the same is gone on with.

    Args:
        task: Name under which the store keeps the task.
        data: Built-in name, ``folder:PATH``, ``lists:PATH`` or ``vtab:PATH``; by default the
            built-in task of the same name.
        split: Where the splits come from, such as ``train=train,val=0.2,test=val``, if the names
            of folders or lists do not say it.
        skip_unreadable: Leave images out that cannot be read.
        allow_duplicates: Train although one picture is in two splits.
        allow_empty_classes: Train although a class has no training image.
        backbone: Any timm model, or ``demo-vit``, the default of the built-in tasks.
        checkpoint: Local weights of the backbone, or ``random:SEED``; its pretrained ones by
            default.
        input_size: Side in pixels, or height and width; the backbone's own by default.
        store: Folder of the store; made if missing.
        version: Name of the new version; v1, v2, ... by default.
        make_current: Whether the new version answers from now on.
        method: Name of one of ``METHODS``: ``glora``, a supernet and its search, or one that trains
            what it adapts at once.
        schedule: ``short`` is for minutes on a CPU, ``paper`` the published recipe.
        epochs: The schedule's by default.
        batch_size: Images per step; the schedule's by default.
        lr: Peak learning rate; ``short`` takes 0.001 (``full`` a tenth), ten times that on
            demo-vit; ``paper`` what is published.
        drop_path: Of the deepest block; the schedule's by default.
        ranks: On offer to lora paths; the one rank, or width, of other methods.
        scale: Of the change that repadapter and FacT (1 by default) or adaptformer (0.1) make.
        layers: Kinds of layer to adapt, of linear, conv and affine; the method's by default.
        include: Patterns of layer names to adapt; by default the method's choice.
        exclude: Patterns of layers to leave alone.
        max_parameters: Most numbers a subnet may store.
        servable_mixed: Search only subnets that a server can answer in one batch with those of
            other tasks: without a lora A.
        population: Subnets per generation.
        generations: After the first, random one.
        retrain: After the search, train again on train and val together.
        compare_lora: Also train plain LoRA for the same time; stored as another version.
        seed: Every draw of the run follows from it.
        device: ``auto``, ``cpu`` or ``cuda``.
        resume: Fail unless there is an interrupted run to go on with.
        restart: Discard an interrupted run of this task.
        tensorboard: Folder for TensorBoard's event files; none are written by default.
        report: Called with a stage, how much of it is done, of how much, and a note.
        tell: Called with a line that the user should know, about the request or the data.

    Returns:
        The stored deltas: the one asked for, then LoRA's, which is never current, if compared.

    Raises:
        SettingError: If a setting cannot be meant, or would have no effect; a ``ValueError`` that
            names the setting.
        GloraDeployError: If backbone, data, store or weights are not as they must be, or another
            process trains this task.
        ValueError: If what would come out cannot be stored.
    """
    _require_data(task, data, backbone)
    chosen = METHODS.get(method)
    if chosen is None:
        raise SettingError(f"method must be one of {', '.join(METHODS)}, got {method!r}", "method")
    kinds = chosen.kinds if layers is None else _kinds(layers)
    searching = {
        "population": population,
        "generations": generations,
        "max_parameters": max_parameters,
    }
    choosing = {"retrain": retrain or None, "servable_mixed": servable_mixed or None}
    layers_of = {"kinds": layers, "include": include, "exclude": exclude}
    own = {"ranks": ranks, "scale": scale}
    _require_effect(chosen, kinds, own, layers_of, searching | choosing)
    changes = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "drop_path": drop_path,
        "ranks": None if ranks is None else tuple(ranks),
        "scale": chosen.scale if scale is None else scale,
        "include": _patterns(include),
        "exclude": _patterns(exclude),
        "servable_mixed": servable_mixed or None,
    }
    if lr is None and schedule == "short":
        factor = DEMO_FACTOR if (backbone or "demo-vit") == "demo-vit" else 1
        changes["lr"] = factor * (chosen.short_lr or SHORT_LR)
    if chosen.rank is not None and ranks is None:
        changes["ranks"] = (chosen.rank,)
    if isinstance(chosen, SizedMethod) and ranks is None:
        changes["ranks"] = chosen.sizes
    published = chosen.paper if schedule == "paper" else {}
    training = TrainConfig.preset(schedule, kinds=kinds, **{**published, **_given(changes)})
    spec = data or task
    if split is not None:
        try:
            spec = with_splits(spec, split)
        except DataError as error:
            raise SettingError(str(error), "split") from error
    search = SearchConfig.preset(schedule, **_given(searching)) if chosen.searches else None
    config = RunConfig(
        task=task,
        data=spec,
        backbone=backbone or "demo-vit",
        weights=None if checkpoint is None else str(checkpoint),
        input_size=_size(input_size),
        method=method,
        train=training,
        search=search,
        seed=seed,
        device=device,
        version=version,
        make_current=make_current,
        compare_lora=compare_lora,
        retrain=retrain,
        resume=resume,
        restart=restart,
        skip_unreadable=skip_unreadable,
        allow_duplicates=allow_duplicates,
        allow_empty_classes=allow_empty_classes,
        tensorboard=None if tensorboard is None else Path(tensorboard),
    )
    _require_files(spec, checkpoint)
    from .pipeline import run  # and torch

    return run(config, Path(store), report, tell)


def _require_data(task: str, data: str | None, backbone: str | None) -> None:
    """Refuse a task without images, and images of one's own on a backbone that nobody chose."""
    if data is None and task in BUILT_IN_TASKS:
        return
    if ":" not in (data or task) and data not in BUILT_IN_TASKS:
        raise SettingError(
            f"data must be one of {', '.join(BUILT_IN_TASKS)}, or be given as folder:PATH, "
            f"lists:PATH or vtab:PATH, got {data or task!r}",
            "data",
        )
    if backbone is None and data not in BUILT_IN_TASKS:
        raise SettingError(
            "backbone must be named for images of your own. To start with: "
            "vit_small_patch14_dinov2.lvd142m or vit_base_patch16_224.orig_in21k; for a trial that "
            "downloads nothing: demo-vit, a toy of 32x32 pixels",
            "backbone",
        )


def _require_files(spec: str, checkpoint: Path | str | None) -> None:
    """Refuse places where nothing is, before the seconds that libraries take to load.

    Raises:
        SettingError: If no manifest could say where the weights came from.
        GloraDeployError: If a folder of images or a file of weights is not there.
    """
    if checkpoint is not None:
        try:
            require_recordable(checkpoint)
        except ValueError as error:
            raise SettingError(str(error), "checkpoint") from error
        if not str(checkpoint).startswith(RANDOM):
            split_part(checkpoint)
    if spec not in BUILT_IN_TASKS:
        DataSpec.parse(spec)


def _require_effect(
    method: Method,
    kinds: tuple[LayerKind, ...],
    own: dict[str, Any],
    choosing: dict[str, Any],
    searching: dict[str, Any],
) -> None:
    """Refuse settings that would be ignored."""
    if not method.searches and (given := _given(searching)):
        names = " and ".join(given)
        raise SettingError(
            f"{names}: no effect with method {method.name}, which searches nothing", *given
        )
    if isinstance(method, SizedMethod) and searching.get("servable_mixed"):
        raise SettingError(
            f"servable_mixed: no effect with method {method.name}, of which nothing is served",
            "servable_mixed",
        )
    has = {"ranks": method.searches or method.rank is not None, "scale": method.scale is not None}
    if not method.adapts_layers and (given := _given(choosing)):
        names = " and ".join(given)
        raise SettingError(
            f"{names}: no effect with method {method.name}, which adapts no layer", *given
        )
    for name in _given(own):
        if not has[name]:
            raise SettingError(f"{name}: no effect with method {method.name}, which has none", name)
    if own["ranks"] is not None and set(kinds) == {"affine"}:
        raise SettingError("ranks: no effect on affine layers, which have no lora paths", "ranks")


def _kinds(layers: str | Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    if isinstance(layers, str):
        return tuple(layers.split(","))  # type: ignore[arg-type]  # TrainConfig checks them
    return tuple(layers)


def _patterns(patterns: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(patterns, str):
        return (patterns,)
    return tuple(patterns) if patterns else None


def _size(size: int | HeightWidth | str | None) -> HeightWidth | None:
    if size is None:
        return None
    text = size if isinstance(size, str | int) else f"{size[0]}x{size[1]}"
    with blamed_on("input_size"):
        return parse_size(str(text))


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
