"""Which tasks and versions there are, which answer, and how that changes while requests run.

Everything is read once at the start; ``load`` and ``poll`` look again. What a change needs is done
before anything changes: a version that is refused leaves the one that answered in its place, and a
switch is one assignment. A request is bound to its version when it is admitted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from glora_deploy.errors import ArtifactError, GloraDeployError, NotInStoreError, StoreError
from glora_deploy.store.artifact import ADAPTER, MANIFEST, Artifact
from glora_deploy.store.reader import StoreReader

from ..errors import LoadError, UnavailableError, UnknownTaskError
from .versions import LiveVersion

log = logging.getLogger(__name__)

UNLOADED = "unloaded"
REMOVED = "removed from the store"

Seen: TypeAlias = tuple[str | None, dict[str, tuple[int, int]]]
"""``current``, and what tells each version's manifest from another in its place."""


@dataclass(slots=True)
class _Task:
    current: str | None = None
    """The version that answers, of those in ``versions``."""
    versions: dict[str, LiveVersion] = field(default_factory=dict)
    """Oldest first."""
    broken: dict[str, str] = field(default_factory=dict)
    """Why a version's manifest cannot be read."""
    held_back: bool = False
    """Whether it was unloaded: only ``load`` brings it back."""
    chosen: bool = False
    """Whether ``load`` named the version that answers, and the store's ``current`` is another."""
    seen: Seen = (None, {})
    loading: threading.Lock = field(default_factory=threading.Lock)


class LiveStore:
    """The versions of a store, as a server knows them.

    Args:
        store: What is read.
        check: Raises if a version can never be served; reads no delta.
        prove: Raises if a version cannot be served; its delta is read anew, verified and merged.
        retire: Called with each version that answers no more, after its last request.
    """

    def __init__(
        self,
        store: StoreReader,
        *,
        check: Callable[[LiveVersion], None],
        prove: Callable[[LiveVersion], None],
        retire: Callable[[LiveVersion], None],
    ) -> None:
        self._store = store
        self._check = check
        self._prove = prove
        self._retire = retire
        self._tasks: dict[str, _Task] = {}
        self._lock = threading.RLock()

    def scan(self) -> None:
        """Read every manifest; versions that cannot be served are kept with the reason."""
        for task in self._store.tasks():
            try:
                self._tasks[task] = self._read(task)
            except (NotInStoreError, FileNotFoundError):  # removed meanwhile
                continue
        for version, _ in self.versions():
            self._judge(version)

    def tasks(self) -> list[str]:
        """Every task's name, sorted."""
        with self._lock:
            return sorted(self._tasks)

    def artifacts(self) -> list[Artifact]:
        """Everything that was read, current versions first."""
        with self._lock:
            current = [t.versions[t.current] for t in self._tasks.values() if t.current]
            rest = [v for t in self._tasks.values() for v in t.versions.values()]
        return [version.artifact for version in dict.fromkeys((*current, *rest))]

    def versions(self, task: str | None = None) -> list[tuple[LiveVersion, bool]]:
        """Every version, and whether it is current; by task, oldest first.

        Raises:
            UnknownTaskError: If the task is not known.
        """
        with self._lock:
            names = sorted(self._tasks) if task is None else [task]
            return [
                (version, name == known.current)
                for known in map(self._task, names)
                for name, version in known.versions.items()
            ]

    def broken(self, task: str | None = None) -> dict[tuple[str, str], str]:
        """Why a manifest cannot be read, by task and version.

        Raises:
            UnknownTaskError: If the task is not known.
        """
        with self._lock:
            return {
                (name, version): reason
                for name in (sorted(self._tasks) if task is None else [task])
                for version, reason in self._task(name).broken.items()
            }

    def find(self, task: str, version: str | None) -> tuple[LiveVersion, bool]:
        """One version, ready or not, and whether it is current; the current one if None.

        Raises:
            UnknownTaskError: If the task or version is not known, or none is current.
        """
        with self._lock:
            known = self._task(task)
            name = version or known.current
            if name is None or name not in known.versions:
                there = ", ".join(known.versions) or "none"
                what = f"no version {version!r} of" if version else "no current version of"
                raise UnknownTaskError(f"{what} task {task!r}; versions here: {there}")
            return known.versions[name], name == known.current

    def admit(self, task: str, version: str | None) -> LiveVersion:
        """The version that a request is bound to; ``done`` must follow.

        Raises:
            UnknownTaskError: If the task or version is not known.
            UnavailableError: If it is known and not ready.
        """
        with self._lock:
            known = self._task(task)
            if version is None and known.current is None:
                raise UnavailableError(f"{task}: no version of it is ready")
            found, _ = self.find(task, version)
            if found.state != "READY":
                raise UnavailableError(f"{found.name} is not ready: {found.reason}")
            found.requests += 1
            return found

    def done(self, version: LiveVersion) -> None:
        """A request that ``admit`` bound to this version has ended."""
        with self._lock:
            version.requests -= 1
            ended = not version.requests and version.state == "UNLOADING"
            if ended:
                version.state = "UNAVAILABLE"
        if ended:
            self._retire(version)

    def refuse(self, version: LiveVersion, reason: str) -> None:
        """A version that was ready turned out not to be servable."""
        with self._lock:
            version.state, version.reason = "UNAVAILABLE", reason
        log.warning("%s is refused: %s", version.name, reason)

    def load(self, task: str, version: str | None = None) -> LiveVersion:
        """Read a version anew, verify it, and let it answer.

        A version that is named answers until the store's ``current`` changes, or until a load that
        names none.

        Raises:
            UnknownTaskError: If the store has no such task or version.
            LoadError: If it was refused; what answered before still does.
        """
        try:
            artifact = self._store.get(task, version)
        except NotInStoreError as error:
            raise UnknownTaskError(self.shown(error)) from error
        except (GloraDeployError, OSError) as error:
            raise LoadError(self.shown(error)) from error
        with self._lock:
            known = self._tasks.setdefault(task, _Task())
        with known.loading:
            found = self._bring_in(known, artifact)
            with self._lock:
                known.held_back = False
            self._refresh(task, known)
            return found

    def unload(self, task: str, version: str | None = None) -> None:
        """Take versions out; each ends with its last request.

        Raises:
            UnknownTaskError: If the task or version is not known.
        """
        with self._lock:
            known = self._task(task)
            if version is not None:
                self.find(task, version)
            if version in (None, known.current):
                known.held_back = True
            leaving = [v for name, v in known.versions.items() if version in (None, name)]
        for one in leaving:
            self._leave(one, UNLOADED)

    def poll(self) -> None:
        """Take over what has changed in the store since it was last looked at."""
        try:
            names = set(self._store.tasks())
        except OSError as error:
            log.warning("the store cannot be read: %s", error)
            return
        for task in sorted(names | set(self.tasks())):
            try:
                self._poll_task(task)
            except (GloraDeployError, OSError) as error:
                log.warning("%s: %s", task, self.shown(error))

    def shown(self, error: BaseException) -> str:
        """What went wrong, for clients: places in the store are named from its root on."""
        return (
            str(error).replace(f"{self._store.root}/", "").replace(str(self._store.root), "store")
        )

    def _poll_task(self, task: str) -> None:
        with self._lock:
            known = self._tasks.setdefault(task, _Task())
        with known.loading:
            named_before, before = known.seen
            if known.seen == self._look(task):
                return
            current = self._refresh(task, known)
            if known.held_back or current is None:
                return
            if known.chosen and known.current is not None and current == named_before:
                return
            _, after = known.seen
            is_new = current != known.current or before.get(current) != after[current]
            if is_new or known.versions[current].state == "UNAVAILABLE":
                self._bring_in(known, self._store.get(task, current))

    def _read(self, task: str) -> _Task:
        known = _Task()
        current = self._refresh(task, known, judged=False)
        known.current = current if current in known.versions else None
        return known

    def _look(self, task: str) -> Seen:
        """What lies there now, as far as names and file times tell."""
        places = {}
        for name in self._store.version_names(task):
            try:
                there = (self._store.root / task / name / MANIFEST).lstat()
            except FileNotFoundError:
                continue
            places[name] = (there.st_ino, there.st_mtime_ns)
        try:
            current = self._store.current(task) if places else None
        except (StoreError, OSError):
            current = None
        return current, places

    def _refresh(self, task: str, known: _Task, *, judged: bool = True) -> str | None:
        """Read manifests that are new, let go of those that are gone; what ``current`` names.

        Versions that answer stay what they are, and so does the current one.
        """
        seen = current, places = self._look(task)
        fresh: dict[str, LiveVersion] = {}
        broken: dict[str, str] = {}
        for name, place in places.items():
            if known.seen[1].get(name) == place:
                if name in known.broken:
                    broken[name] = known.broken[name]
                continue
            try:
                artifact = self._store.get(task, name)
            except (GloraDeployError, OSError) as error:
                broken[name] = self.shown(error)
                log.warning("%s/%s is refused: %s", task, name, broken[name])
                continue
            before = known.versions.get(name)
            if before is None or before.artifact.manifest != artifact.manifest:
                fresh[name] = LiveVersion(artifact)
        for version in fresh.values():
            if judged:
                self._judge(version)
            if known.held_back:
                version.state, version.reason = "UNAVAILABLE", UNLOADED
        with self._lock:
            gone = [v for name, v in known.versions.items() if name not in places]
            for name, version in fresh.items():
                before = known.versions.get(name)
                if before is None or name != known.current:
                    known.versions[name] = version
                    if before is not None:
                        gone.append(before)
            kept = [v for v in known.versions.values() if v not in gone]
            kept.sort(key=lambda v: v.artifact.manifest.created)
            known.versions = {v.artifact.version: v for v in kept}
            if known.current not in known.versions:
                known.current = None
            known.seen, known.broken = seen, broken
            if not known.versions and not places:
                self._tasks.pop(task, None)
        for version in gone:
            self._leave(version, REMOVED)
        return current if current in known.versions or current in broken else None

    def _bring_in(self, known: _Task, artifact: Artifact) -> LiveVersion:
        """Verify a version, then let it answer for its task."""
        name = artifact.version
        with self._lock:
            before = known.versions.get(name)
            same = before is not None and before.artifact.manifest == artifact.manifest
            version = before if before is not None and same else LiveVersion(artifact)
            answered = before is not None and before.state == "READY"
            if not answered:
                version.state, version.reason = "LOADING", "being verified"
                known.versions[name] = version
        try:
            self._check(version)
            self._prove(version)
        except (GloraDeployError, OSError, MemoryError) as error:
            reason = self.shown(error)
            if not answered:
                self.refuse(version, reason)
            raise LoadError(f"{version.name} was refused: {reason}") from error
        with self._lock:
            version.state, version.reason = "READY", ""
            known.versions[name] = version
            known.current, known.chosen = name, not self._names_current(artifact)
        if before is not None and before is not version:
            self._leave(before, "replaced")
        return version

    def _names_current(self, artifact: Artifact) -> bool:
        try:
            return self._store.current(artifact.task) == artifact.version
        except (StoreError, OSError):
            return False

    def _judge(self, version: LiveVersion) -> None:
        """Refuse a version that can be seen to be unservable without reading its delta."""
        try:
            path = version.artifact.path / ADAPTER
            expected = version.artifact.manifest.adapter.size_bytes
            if (found := path.stat().st_size) != expected:
                raise ArtifactError(f"{path}: must have {expected} bytes, got {found}")
            self._check(version)
        except (GloraDeployError, OSError) as error:
            self.refuse(version, self.shown(error))

    def _leave(self, version: LiveVersion, reason: str) -> None:
        with self._lock:
            busy = version.requests > 0
            version.state, version.reason = "UNLOADING" if busy else "UNAVAILABLE", reason
        if not busy:
            self._retire(version)

    def _task(self, task: str) -> _Task:
        if (known := self._tasks.get(task)) is None:
            raise UnknownTaskError(f"no task {task!r}; there are {len(self._tasks)} others")
        return known
