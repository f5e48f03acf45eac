"""One task from images to stored deltas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from glora_deploy.backbones.checkpoint_name import require_recordable
from glora_deploy.backbones.input_size import HeightWidth
from glora_deploy.backbones.load import Backbone, load_backbone, outline
from glora_deploy.backbones.packaged import PACKAGED
from glora_deploy.console import one_line
from glora_deploy.data.built_in_tasks import BUILT_IN_TASKS
from glora_deploy.data.check import CheckedData, check_data
from glora_deploy.data.load import ImageSet, TaskData, load_task
from glora_deploy.errors import ArtifactError, NonFiniteError, StoreError
from glora_deploy.glora.forms import LayerShape
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.companions import COMPANIONS, HISTORY, RUN_SETTINGS
from glora_deploy.store.comparisons import (
    ComparisonRecord,
    free_name,
    has_comparison,
    write_comparison,
)
from glora_deploy.store.manifest import ManifestDraft, utc_now
from glora_deploy.store.run_settings import write_settings
from glora_deploy.store.store import ArtifactStore

from .adapted import build_outline, require_layers
from .attached_network import blocks_of
from .config import RunConfig, TrainConfig
from .device import choose_device
from .evaluate import accuracies
from .event_files import EventFiles, require_event_files
from .job import Job, OnProgress, Trained
from .method import AttachedMethod, ComparedMethod, FoldedMethod, Method, WholeMethod
from .methods import METHODS
from .pixels import Pixels
from .record import checkpoint_of, draft_of, history_of, require_storable, tensors_of
from .run_folder import RunFolder, open_run, require_startable, require_writable
from .run_settings import settings_of
from .setting_error import SettingError, blamed_on
from .trainings import COMPARED, train_all, untrained

MAX_TRAINED = 2**30
"""Numbers that an attached method may train; four times as many are kept beside the weights."""
COSTLY_RATIO = 4
"""An input with this many times the pixels of the backbone's own is worth a word."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One stored delta and what it was measured to do."""

    artifact: Artifact | None
    """None of a method that cannot merge: what it came to is a comparison of this name."""
    name: str
    """Of the version, or of the comparison."""
    method: str
    n_parameters: int
    """Numbers stored, classifier excluded; trained, if nothing is stored."""
    val_accuracy: float
    """Top-1 on the validation split, 0 to 1."""
    test_accuracy: float
    """Top-1 on the test split, 0 to 1."""
    train_s: float
    """Seconds of training."""
    search_s: float
    """Seconds of search."""
    search_accuracy: float | None = None
    """Top-1 on the validation split of the chosen subnet with the supernet's weights, 0 to 1, by
    which the search chose it; None where nothing was searched."""
    as_searched: bool = False
    """Whether these are the weights that were stored, as the last epochs made it no better."""


def run(
    config: RunConfig,
    root: Path,
    report: OnProgress,
    tell: Callable[[str], None] = lambda note: None,
) -> list[Outcome]:
    """Load, train, search, test once, store.

    Weights are trained on the training split and chosen on the validation split; the test split
    is read once, after everything is decided. Whatever is wrong with the request is found before
    the store is touched, most of it before weights are fetched. An interrupted run that was asked
    for the same is gone on with; one whose epochs would be lost is in the way until it is discarded
    with ``restart``. What is trained is kept until it is stored.

    Args:
        config: What to do.
        root: Folder of the store; made if missing.
        report: Told of the progress.
        tell: Told what the user should know, a line each: of the request, how the data was read,
            and what is odd about it.

    Returns:
        The stored deltas: the one asked for, then LoRA's, which is never current, if compared.

    Raises:
        SettingError: If a setting cannot be meant; names it.
        GloraDeployError: If backbone, data, store or weights are not as they must be, or another
            process trains this task.
        ValueError: If what would come out cannot be stored.
    """
    _require_new_version(config, root)
    if config.tensorboard is not None:
        require_event_files(config.tensorboard)
    device = choose_device(config.device)
    require_writable(root)
    notes = _require_backbone(config)
    data = load_task(config.data, seed=config.seed)
    _require_batch(config, len(data.train))
    # After the request itself: what is wrong with that is no matter of an unfinished run.
    asked = _request(config)
    require_startable(root, config.task, asked, resume=config.resume, restart=config.restart)
    for note in notes:
        tell(note)
    backbone = load_backbone(
        config.backbone, checkpoint=config.weights, input_size=config.input_size
    )
    ArtifactStore(root).require_intact_backbone(backbone.fingerprint)
    for each in untrained(config, backbone, data.n_classes):
        if not isinstance(each.method, ComparedMethod):
            require_storable(each, config, backbone, data, device)
    checked = _check(config, data, report, tell)
    data = checked.data
    store = ArtifactStore.create(root)
    measured = {
        "backbone fingerprint": backbone.fingerprint,
        "splits": data.splits_sha256,
        "device": device.type,
    }
    with open_run(
        store.root,
        config.task,
        {**asked, **measured},
        resume=config.resume,
        restart=config.restart,
        version=config.version,
        tell=tell,
    ) as folder:
        train, val = (
            _read(images, name, backbone, device, report)
            for name, images in (("train", data.train), ("val", data.val))
        )
        with closing(EventFiles(config.tensorboard, config.task, folder)) as events:
            job = Job(config, backbone, data, train, val, device, folder, events, report)
            trained = _train(job)
        if note := _nothing_adapted(job, trained[0]):
            tell(note)
        tested = _test(job, trained)
        outcomes = _store(job, store, trained, tested, checked.skipped, tell)
        folder.remove()
    return outcomes


def _check(
    config: RunConfig, data: TaskData, report: OnProgress, tell: Callable[[str], None]
) -> CheckedData:
    for note in data.notes:
        tell(note)
    checked = check_data(
        data,
        skip_unreadable=config.skip_unreadable,
        allow_duplicates=config.allow_duplicates,
        allow_empty_classes=config.allow_empty_classes,
        report=lambda done, total: report("check images", done, total, ""),
    )
    for note in checked.notes:
        tell(note)
    return checked


def _train(job: Job) -> list[Trained]:
    try:
        return train_all(job)
    except NonFiniteError as error:
        # What a run has kept would lead it to the same end.
        restart = ", and add --restart" if job.folder.keeps_epochs else ""
        raise NonFiniteError(
            f"{one_line(error).rstrip('.')}. The training has diverged: lower --lr{restart}."
        ) from error


def _nothing_adapted(job: Job, trained: Trained) -> str:
    """A word on a subnet without any support; nothing if there is one."""
    if trained.search is None or trained.search.best.n_parameters:
        return ""
    limit = job.search.max_parameters if job.config.search else None
    asked = "" if limit is None else f" with at most {limit:,} parameters"
    return f"the best subnet{asked} adapts no layer: only the classifier is trained"


def _test(job: Job, trained: list[Trained]) -> list[float]:
    """Top-1 of each on the test split, 0 to 1."""
    test = Pixels(job.data.test, job.backbone.preprocessing, job.device, cache_bytes=0)
    return accuracies(
        [each.network for each in trained],
        test,
        report=lambda n: job.report("test", n, len(test), ""),
    )


def _read(
    images: ImageSet, name: str, backbone: Backbone, device: torch.device, report: OnProgress
) -> Pixels:
    def tell(n_read: int) -> None:
        report(f"read {name}", n_read, len(images), "")

    return Pixels(images, backbone.preprocessing, device, report=tell)


def _require_new_version(config: RunConfig, root: Path) -> None:
    if config.version is None:
        return
    place = root / config.task / config.version
    # An unfinished run may have stored it itself, and only what came after it failed.
    own = {} if config.restart else _stored(RunFolder(root, config.task))
    if has_comparison(root, config.task, config.version) and config.version not in own.values():
        raise StoreError(
            f"{config.task}/{config.version}: the version must be new, a comparison has this name. "
            "Give another one, or remove it."
        )
    if place.exists() and config.version not in own.values():
        raise StoreError(
            f"{place}: the version must be new, it exists. Give another one, or remove it."
        )


def _request(config: RunConfig) -> dict[str, Any]:
    """What an interrupted run and its continuation must be asked alike to give the same bits."""
    asked = asdict(config)
    free = ("task", "resume", "restart", "version", "make_current", "weights", "device")
    for name in (*free, "tensorboard"):
        del asked[name]
    for seen_in_splits in ("skip_unreadable", "allow_duplicates", "allow_empty_classes"):
        del asked[seen_in_splits]
    train = {f"train.{name}": value for name, value in asked.pop("train").items()}
    search = {f"search.{name}": value for name, value in (asked.pop("search") or {}).items()}
    return {**asked, **train, **search}


def _require_backbone(config: RunConfig) -> list[str]:
    """Check what can be known of the backbone before its weights are read or fetched.

    Returns:
        What a user should know of it.
    """
    with blamed_on("backbone"):
        own = outline(config.backbone)
    with blamed_on("input_size"):
        sized = outline(config.backbone, input_size=config.input_size)
    if config.weights is not None:
        with blamed_on("weights"):
            require_recordable(config.weights)
    method = METHODS[config.method]
    if isinstance(method, AttachedMethod):
        n_trained = method.n_trained(
            blocks_of(build_outline(sized, config.train), method), config.train
        )
        if n_trained > MAX_TRAINED:
            raise SettingError(
                f"ranks {', '.join(map(str, config.train.ranks))} would train {n_trained:,} "
                f"numbers, at most {MAX_TRAINED:,} can be",
                "ranks",
            )
    elif isinstance(method, WholeMethod):
        build_outline(sized, config.train)
    else:
        layers = require_layers(sized, config.train, method)
        _require_ranks(config.train, method, layers)
        if isinstance(method, FoldedMethod):
            method.parts(layers, config.train)
    if config.compare_lora:
        require_layers(sized, config.train.for_lora(), METHODS[COMPARED], strict=False)
    return list(_notes(config, own.preprocessing.size, sized.preprocessing.size))


def _require_ranks(train: TrainConfig, method: Method, layers: Mapping[str, LayerShape]) -> None:
    """Refuse a rank that no layer can have."""
    if not (method.searches or method.rank is not None):
        return
    most = max((min(each.d_out, each.d_in) for each in layers.values()), default=1)
    if max(train.ranks) > most and set(train.kinds) != {"affine"}:
        raise SettingError(
            f"ranks must be at most {most} here, the most that a layer's weight has, got "
            f"{max(train.ranks)}",
            "ranks",
        )


def _notes(config: RunConfig, own: HeightWidth, size: HeightWidth) -> Iterator[str]:
    """What a user should know of a request that is taken all the same."""
    if config.backbone in PACKAGED and config.data not in BUILT_IN_TASKS:
        yield (
            f"{config.backbone} is a toy that sees {size[0]}x{size[1]} pixels: what it reaches on "
            "your images says little of what a real backbone will"
        )
    ratio = math.prod(size) / math.prod(own)
    if ratio >= COSTLY_RATIO:
        yield (
            f"an input of {size[0]}x{size[1]} has {ratio:.0f} times the pixels of the backbone's "
            f"own {own[0]}x{own[1]}: every step takes at least as many times as long"
        )


def _require_batch(config: RunConfig, n_train: int) -> None:
    train = config.train
    # The schedule's own is cut to what there is; one that was asked for is not.
    if n_train < train.batch_size != TrainConfig.preset(train.schedule).batch_size:
        raise SettingError(
            f"batch_size must be at most {n_train}, the number of training images, "
            f"got {train.batch_size}",
            "batch_size",
        )


def _stored(folder: RunFolder) -> dict[str, str]:
    """Versions that a run has stored already, by method."""
    return dict(folder.read("stored") or {})


def _store(
    job: Job,
    store: ArtifactStore,
    trained: list[Trained],
    tested: list[float],
    skipped: dict[str, list[int]],
    tell: Callable[[str], None],
) -> list[Outcome]:
    backbone, config, folder = job.backbone, job.config, job.folder
    outcomes = []
    try:
        store.put_backbone(
            backbone.fingerprint,
            {name: tensor.numpy() for name, tensor in backbone.tensors.items()},
            backbone.config(),
        )
        for i, (each, test_accuracy) in enumerate(zip(trained, tested, strict=True)):
            if isinstance(each.method, ComparedMethod):
                outcomes.append(_compare(job, store, each, each.method, test_accuracy))
                continue
            draft = draft_of(
                each,
                config,
                backbone,
                job.data,
                job.device,
                test_accuracy=test_accuracy,
                skipped=skipped,
            )
            artifact = _put(job, store, each, draft, _companions(job, each, tell), first=i == 0)
            folder.write("stored", {**_stored(folder), each.method.name: artifact.version})
            outcomes.append(_outcome(artifact, each, test_accuracy))
    except (StoreError, ArtifactError, OSError) as error:
        raise StoreError(
            f"{one_line(error).rstrip('.')}. What was trained is kept in {folder.path}: the same "
            "command, or one with another --version, stores it without training again."
        ) from error
    return outcomes


def _compare(
    job: Job, store: ArtifactStore, trained: Trained, method: ComparedMethod, test_accuracy: float
) -> Outcome:
    """Keep what a training came to of which nothing can be stored."""
    config = job.config
    own = trained.adapted.trainable().keys() - trained.adapted.head().keys()
    n_trained = sum(trained.adapted.trainable()[name].numel() for name in own)
    if trained.search is not None:
        n_trained = trained.search.best.n_parameters
    name = config.version or _stored(job.folder).get(method.name)
    if name is None:
        name = free_name(store.root, config.task, method.name, config.seed)
    job.folder.write("stored", {**_stored(job.folder), method.name: name})
    record = ComparisonRecord(
        task=config.task,
        name=name,
        created=utc_now(),
        method=method.name,
        why=method.why,
        backbone=job.backbone.record().name,
        data=config.data,
        seed=config.seed,
        epochs=trained.config.epochs,
        seconds=trained.train_s + trained.search_s,
        n_parameters=n_trained,
        val_accuracy=trained.val_accuracy,
        test_accuracy=test_accuracy,
        cost=trained.cost,
    )
    write_comparison(store.root, record, checkpoint_of(trained))
    return Outcome(
        None,
        record.name,
        method.name,
        n_trained,
        trained.val_accuracy,
        test_accuracy,
        trained.train_s,
        trained.search_s,
        trained.search.best.fitness if trained.search else None,
        trained.as_searched,
    )


def _companions(job: Job, trained: Trained, tell: Callable[[str], None]) -> dict[str, bytes]:
    """The files that lie beside a version."""
    beside = {RUN_SETTINGS: write_settings(settings_of(trained, job.config))}
    history = history_of(trained).to_json()
    if len(history) <= (limit := COMPANIONS[HISTORY].max_bytes):
        return {**beside, HISTORY: history}
    tell(f"the history is not kept: it has {len(history):,} bytes, at most {limit:,} can be")
    return beside


def _put(
    job: Job,
    store: ArtifactStore,
    trained: Trained,
    draft: ManifestDraft,
    beside: dict[str, bytes],
    *,
    first: bool,
) -> Artifact:
    task, version = job.config.task, _stored(job.folder).get(trained.method.name)
    if version is not None and task in store.tasks() and version in store.versions(task):
        return store.get(task, version)  # stored before what came after it failed
    return store.put(
        task,
        tensors_of(trained),
        draft,
        version=job.config.version if first else None,
        make_current=first and job.config.make_current,
        companions=beside,
    )


def _outcome(artifact: Artifact, trained: Trained, test_accuracy: float) -> Outcome:
    return Outcome(
        artifact,
        artifact.version,
        trained.method.name,
        artifact.manifest.n_parameters,
        trained.val_accuracy,
        test_accuracy,
        trained.train_s,
        trained.search_s,
        trained.search.best.fitness if trained.search else None,
        trained.as_searched,
    )
