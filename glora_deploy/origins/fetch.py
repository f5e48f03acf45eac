"""What an origin publishes into a local store, kept in step: the versions that answer there.

The local store is a store as any other, written by the store's own means: a version appears in it
once every file is what the index states and ``verify`` finds nothing wrong. What the origin does,
or that it is away, takes nothing from it. Where it is larger than its budget, versions leave it:
the oldest of those that are current nowhere, then, if tasks come on demand, the least recently
used.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import ArtifactError, GloraDeployError, NotInStoreError, OriginError, StoreError
from ..packs.unpack import require_sound, take_in
from ..store.artifact import MANIFEST
from ..store.atomic_files import flush_tree
from ..store.manifest import FileRecord
from ..store.prune import prune
from ..store.reader import CURRENT
from ..store.store import ArtifactStore
from .bucket import Bucket, MissingObjectError, Object
from .index import INDEX, MAX_INDEX_BYTES, OriginIndex, PublishedVersion, backbone_objects

log = logging.getLogger(__name__)

MAX_PAUSE_S = 60.0
"""Longest between two looks at an origin that is away, unless it is asked less often anyway."""
_MAX_SKIPPED = 32
"""Most looks for which a version that was refused is passed over."""


class Fetcher:
    """Keeps a local store in step with an origin.

    One thread looks; ``fetch``, ``offered``, ``holds``, ``note_use`` and ``leave`` are for any.

    Args:
        bucket: The origin.
        store: Made by ``ArtifactStore.create``; several processes may share it.
        budget_bytes: Of the store's deltas, graphs and backbones.
        on_demand: Take over only tasks that the store holds already; others come by ``fetch``, and
            go again where the budget asks for it. Otherwise every task is taken over, and versions
            that are current stay even beyond the budget.
    """

    def __init__(
        self, bucket: Bucket, store: ArtifactStore, budget_bytes: int, *, on_demand: bool = False
    ) -> None:
        self.bucket = bucket
        self.store = store
        self.budget_bytes = budget_bytes
        self.on_demand = on_demand
        self.let_go: Callable[[str], bool] = lambda task: False
        """Asked before a current version leaves: whether its task is used by nobody."""
        self.n_fetched = 0
        """Versions taken over since this object was made."""
        self.n_failed = 0
        """Of versions that were to be fetched."""
        self.cache_bytes = 0
        """Of the store, when something last came or went."""
        self.answered_s: float | None = None
        """``time.monotonic()`` when the origin last answered."""
        self.problems: dict[str, str] = {}
        """Why a task's current version could not be taken over, by task; under "" the index."""
        self.reason = ""
        """Why the last look took nothing over, or not all."""
        self._known: Object | None = None
        self._index: OriginIndex | None = None
        self._in_step: dict[str, PublishedVersion] = {}
        """What was taken over of each task since this object was made."""
        self._passed_over: dict[str, tuple[int, int]] = {}
        """By task: for how many more looks its version is passed over, and of how many."""
        self._away = 0
        self._too_small = False
        self._leaving = threading.Event()
        self._state = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        """Of each task and each backbone that is fetched or removed."""
        self._evicting = threading.Lock()
        self._going: set[str] = set()
        """Tasks that are leaving the store."""
        self._used_s: dict[str, float] = {}

    def look(self) -> bool:
        """Ask once what is new and take it over; one conditional request where nothing is.

        What goes wrong is logged, once as long as it stays the same, and tried anew at later
        looks.

        Returns:
            Whether the origin answered.
        """
        self.reason = ""
        try:
            self._read_index()
            if self._index is not None:
                self._follow(self._index)
        except OriginError as error:
            if self._away == 0 and not self._leaving.is_set():
                kept = f" What is in {self.store.root} serves on." if self.store.tasks() else ""
                log.warning("%s%s", _sentence(error), kept)
            self._away += 1
            self.reason = str(error)
            return False
        except (GloraDeployError, OSError) as error:
            self._tell("", error)
            return True
        if self._away:
            log.info("%s: answers again", self.bucket.url)
        self._away, self.answered_s = 0, time.monotonic()
        return True

    @property
    def is_away(self) -> bool:
        """Whether the origin did not answer when it was last asked."""
        return self._away > 0

    def offered(self) -> dict[str, str]:
        """Every task of the origin, and its version that answers there, as last looked at."""
        index = self._index
        return {} if index is None else {task: each.current for task, each in index.tasks.items()}

    def offers(self, task: str) -> bool:
        """Whether the origin has a task, as last looked at."""
        index = self._index
        return index is not None and task in index.tasks

    def holds(self, task: str) -> bool:
        """Whether a task is in the store, and stays there for now."""
        with self._state:
            if task in self._going:
                return False
        return bool(self.store.version_names(task))

    def note_use(self, task: str) -> None:
        """A task was asked for: others leave before it."""
        self._used_s[task] = time.monotonic()

    def fetch(self, task: str) -> None:
        """Have what is current of a task in the store; blocks until it is, or cannot be.

        Raises:
            NotInStoreError: If the origin has no such task.
            OriginError: If the origin cannot be reached, or refuses.
            ArtifactError: If it holds something else than its index states.
            StoreError: If the store cannot take it.
        """
        index = self._index
        published = index.tasks.get(task) if index else None
        if index is None or published is None:
            raise NotInStoreError(f"{self.bucket.url}: has no task {task!r}")
        entry = published.versions[published.current]
        self.note_use(task)
        self._take_over(index, task, published.current, entry)
        with self._state:
            self._in_step[task] = entry
        self._evict(index, keep=task)

    def pause_s(self, poll_s: float) -> float:
        """How long to wait for the next look: ``poll_s``, and more while the origin is away."""
        return min(poll_s * 2.0 ** min(self._away, 16), max(poll_s, MAX_PAUSE_S))

    def run(self, poll_s: float) -> None:
        """Look again and again until ``leave``."""
        while not self._leaving.wait(self.pause_s(poll_s)):
            try:
                self.look()
            except Exception:  # a server must not go on unaware that it follows no more
                log.exception("%s: a look at it failed", self.bucket.url)

    def leave(self) -> None:
        """Let ``run`` end soon, and what is being fetched be given up."""
        self._leaving.set()

    def _read_index(self) -> None:
        unless = self._known.e_tag if self._known else None
        try:
            found = self.bucket.read(INDEX, MAX_INDEX_BYTES, unless=unless)
        except MissingObjectError as error:
            raise OriginError(
                f"{self.bucket.url}: must hold what 'glora publish' wrote, it has no {INDEX}"
            ) from error
        if found is None:
            return
        where = f"{self.bucket.url}/{INDEX}"
        self._index = OriginIndex.from_json(found.data, where)
        self._known = found
        self._passed_over.clear()
        self.problems.pop("", None)

    def _follow(self, index: OriginIndex) -> None:
        changed = False
        # What failed last comes last, so that it keeps nothing else from being fetched.
        for task in sorted(index.tasks, key=lambda name: (name in self.problems, name)):
            published = index.tasks[task]
            if self.on_demand and not self.holds(task):
                continue
            entry = published.versions[published.current]
            if self._in_step.get(task) == entry and self._names_current(task, published.current):
                continue
            left, of = self._passed_over.get(task, (0, 0))
            if left:
                self._passed_over[task] = left - 1, of
                continue
            try:
                self._take_over(index, task, published.current, entry, only_held=self.on_demand)
            except (GloraDeployError, OSError) as error:
                of = min(max(1, 2 * of), _MAX_SKIPPED)
                self._passed_over[task] = of, of
                self._tell(task, error)
                if isinstance(error, OriginError) and not isinstance(error, MissingObjectError):
                    raise
                continue
            self._in_step[task] = entry
            self._passed_over.pop(task, None)
            self.problems.pop(task, None)
            changed = True
        if changed or not self.cache_bytes:
            self._evict(index)

    def _take_over(
        self,
        index: OriginIndex,
        task: str,
        version: str,
        entry: PublishedVersion,
        *,
        only_held: bool = False,
    ) -> None:
        with self._lock_of(task):
            if only_held and not self.store.version_names(task):
                return  # it has left meanwhile
            if not self._has(task, version, entry):
                try:
                    self._fetch(index, task, version, entry)
                except BaseException:
                    with self._state:
                        self.n_failed += 1
                    raise
                with self._state:
                    self.n_fetched += 1
                log.info("%s/%s: fetched from %s", task, version, self.bucket.url)
            if not self._names_current(task, version):
                self.store.set_current(task, version)

    @contextmanager
    def _lock_of(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Keep others from fetching or removing a task or a backbone; whether it came about."""
        with self._state:
            lock = self._locks.setdefault(name, threading.Lock())
        mine = lock.acquire(blocking=wait)
        try:
            yield mine
        finally:
            if mine:
                lock.release()

    def _names_current(self, task: str, version: str) -> bool:
        try:
            return self.store.current(task) == version
        except StoreError:
            return False

    def _has(self, task: str, version: str, entry: PublishedVersion) -> bool:
        """Whether the local store has a version, undamaged, and its backbone.

        Raises:
            StoreError: If it has another one of that name.
        """
        try:
            artifact = self.store.get(task, version)
            artifact.tensors()
        except (NotInStoreError, ArtifactError):
            return False
        if not self.store.keeps_backbone(entry.backbone):
            return False
        if FileRecord.of_file(artifact.path / MANIFEST) != entry.files[MANIFEST]:
            raise StoreError(
                f"{artifact.path}: is another version than {task}/{version} of {self.bucket.url}. "
                "Publish that one under another name, or remove this one."
            )
        return True

    def _fetch(self, index: OriginIndex, task: str, version: str, entry: PublishedVersion) -> None:
        with self.store.scratch(f"{task}/{version}") as scratch:
            (scratch / "store").mkdir()
            prepared = ArtifactStore(scratch / "store")
            for name, stored in entry.objects(task, version).items():
                self._download(stored, prepared.root / task / version / name, entry.files[name])
            (prepared.root / task / CURRENT).write_text(f"{version}\n", "utf-8")
            with ExitStack() as stack:
                if not self.store.hold_backbone(entry.backbone):
                    # Whoever comes first has it for all.
                    stack.enter_context(self._lock_of(entry.backbone))
                    if not self.store.hold_backbone(entry.backbone):
                        folder = prepared.root / prepared.backbones.name / entry.backbone
                        stated = backbone_objects(entry.backbone, index.backbones[entry.backbone])
                        for name, (stored, record) in stated.items():
                            self._download(stored, folder / name, record)
                self._take_in(prepared, task, version, entry)

    def _take_in(
        self, prepared: ArtifactStore, task: str, version: str, entry: PublishedVersion
    ) -> None:
        where = f"{self.bucket.url}: {task}/{version}"
        require_sound(prepared, where)
        if prepared.get(task, version).manifest.backbone.fingerprint != entry.backbone:
            raise ArtifactError(f"{where}: must have the backbone that the index states")
        flush_tree(prepared.root)
        with suppress(NotInStoreError):  # a damaged one, or one without its backbone
            self.store.remove(task, version, force=True)
        take_in(self.store, prepared, where)

    def _download(self, stored: str, path: Path, record: FileRecord) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.bucket.download(stored, path, record, self._leaving.is_set)

    def _evict(self, index: OriginIndex, keep: str | None = None) -> None:
        """Remove versions until the store fits its budget, but none of a task to keep."""
        with self._evicting:
            self._remove_old(index)
            if self.on_demand:
                self._remove_unused(keep)
            if self.cache_bytes > self.budget_bytes and not self._too_small:
                log.warning(
                    "%s: the versions that answer take %d bytes with their backbones, more than "
                    "the budget of %d; they stay",
                    self.store.root,
                    self.cache_bytes,
                    self.budget_bytes,
                )
            self._too_small = self.cache_bytes > self.budget_bytes

    def _remove_old(self, index: OriginIndex) -> None:
        """Remove the oldest versions that are current nowhere, while the store is too large."""
        total = sum(_sizes(self.store.root))
        removed = False
        for _, task, version in sorted(self._not_current(index)):
            if total <= self.budget_bytes:
                break
            size = sum(_sizes(self.store.root / task / version))
            with suppress(StoreError):  # gone meanwhile, or became current
                self.store.remove(task, version)
                log.info("%s/%s: left the cache", task, version)
                total -= size
                removed = True
        if removed:
            self._prune()
            total = sum(_sizes(self.store.root))
        self.cache_bytes = total

    def _remove_unused(self, keep: str | None) -> None:
        """Remove tasks that nobody uses, the least recently used first, while it is too large."""
        for task in sorted(self.store.tasks(), key=lambda name: self._used_s.get(name, 0.0)):
            if self.cache_bytes <= self.budget_bytes:
                return
            if task != keep and self._remove_task(task):
                self._prune()
                self.cache_bytes = sum(_sizes(self.store.root))

    def _prune(self) -> None:
        # What this object holds is that of a version which is just coming.
        prune(ArtifactStore.open(self.store.root))

    def _remove_task(self, task: str) -> bool:
        with self._lock_of(task, wait=False) as mine:
            if not mine:  # it is coming just now
                return False
            with self._state:
                self._going.add(task)
            try:
                if not self.let_go(task):
                    return False
                try:
                    for version in self.store.version_names(task):
                        self.store.remove(task, version, force=True)
                except (StoreError, OSError) as error:
                    log.warning("%s could not leave the cache: %s", task, error)
                    return False
                log.info("%s: left the cache, it comes again when it is asked for", task)
                return True
            finally:
                with self._state:
                    self._going.discard(task)

    def _not_current(self, index: OriginIndex) -> Iterator[tuple[str, str, str]]:
        """Time of creation, task and name of each version that may leave."""
        for task in self.store.tasks():
            stated = index.tasks.get(task)
            for version in self.store.version_names(task):
                if stated is not None and stated.current == version:
                    continue
                with suppress(GloraDeployError):
                    if self.store.current(task) != version:
                        yield self.store.get(task, version).manifest.created, task, version

    def _tell(self, task: str, error: Exception) -> None:
        """Log what went wrong with a task, or with the index, unless that is known."""
        self.reason = str(error)
        if self._leaving.is_set() or self.problems.get(task) == str(error):
            return
        self.problems[task] = str(error)
        if isinstance(error, OriginError) and not isinstance(error, MissingObjectError):
            return  # it is told as such
        log.warning("%s Refused; what answered before answers on.", _sentence(error))


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                yield path.stat().st_size
