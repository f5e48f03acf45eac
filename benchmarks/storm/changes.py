"""What is served changes all the while: new versions, rollbacks, broken ones, a full disk."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from tritonclient.utils import InferenceServerException

from .ledger import Ledger
from .server import Server
from .tasks import Tasks

PAUSE_S = 0.15
WATCHES_WITHIN_S = 20.0
"""A server that looks at its store every two seconds has seen what is new in it."""
MAX_VERSIONS = 4


class Changes:
    """One change after another, each of some task; what each means is told to the ledger.

    Args:
        server: What serves.
        tasks: The store that it serves.
        ledger: Of what may be answered.
        seed: Of what is drawn.
    """

    def __init__(self, server: Server, tasks: Tasks, ledger: Ledger, *, seed: int = 0) -> None:
        self._server, self._tasks, self._ledger = server, tasks, ledger
        self._rng = random.Random(seed)
        self._versions = {task: ["v1"] for task in tasks.names}
        self._current = dict.fromkeys(tasks.names, "v1")
        """As the store has it."""
        for task in tasks.names:
            ledger.offer(task, "v1")

    def go_on(self, until: Callable[[], bool]) -> None:
        """Each change once, and then any of them, until the time has come."""
        deeds: list[Callable[[str], None]] = [
            *(self.renew,) * 4,
            *(self.roll_back,) * 3,
            *(self.break_one,) * 2,
            self.leave_and_return,
        ]
        if self._server.watches:
            deeds += [*(self.renew_unasked,) * 2, self.roll_back_in_the_store, self.fill_the_disk]
        once = list(dict.fromkeys(deeds))
        while not until():
            deed = once.pop() if once else self._rng.choice(deeds)
            deed(self._rng.choice(self._tasks.names))
            self._ledger.count(f"changes: {deed.__name__}")
            time.sleep(PAUSE_S)

    def settle(self) -> None:
        """Let every task be answered by what its store calls current."""
        for task in self._tasks.names:
            self._server.load(task)

    def renew(self, task: str) -> None:
        """A new version, which is loaded."""
        version = self._add(task)
        self._ledger.may_answer(task, version)
        self._publish(task, version)
        self._server.load(task)
        self._ledger.answers_alone(task, version)
        self._ledger.offer(task, version)
        self._thin_out(task)

    def renew_unasked(self, task: str) -> None:
        """A new version, which the server finds by itself."""
        version = self._add(task)
        self._ledger.may_answer(task, version)
        self._publish(task, version)
        self._ledger.answers_alone(task, version, in_s=WATCHES_WITHIN_S)

    def roll_back(self, task: str) -> None:
        """An older version answers, as the server is told."""
        version = self._rng.choice(self._versions[task])
        self._ledger.may_answer(task, version)
        self._server.load(task, version)
        self._ledger.answers_alone(task, version)

    def roll_back_in_the_store(self, task: str) -> None:
        """An older version becomes the current one of the store, and is loaded."""
        version = self._rng.choice(self._versions[task])
        self._ledger.may_answer(task, version)
        self._publish(task, version)
        self._server.load(task)
        self._ledger.answers_alone(task, version)

    def break_one(self, task: str) -> None:
        """A new version that was altered: it is refused, and what answered before answers on."""
        good = self._current[task]
        self._ledger.may_answer(task, good)  # loading it again at the end ends a rollback
        broken = self._tasks.add(task).version
        self._server.corrupt(task, broken)
        try:
            self._server.load(task)
        except InferenceServerException:
            self._ledger.count("altered versions that were refused")
        else:
            self._ledger.problem("an altered version that was loaded", f"{task}/{broken}")
        self._server.mend(task, broken, good)
        self._server.load(task)
        self._ledger.answers_alone(task, good)

    def leave_and_return(self, task: str) -> None:
        """Unload a task, and load it again."""
        version = self._current[task]
        self._ledger.leaves(task)
        self._ledger.may_answer(task, version)
        self._server.unload(task)
        time.sleep(PAUSE_S)
        self._server.load(task)
        self._ledger.answers_alone(task, version)
        self._ledger.is_back(task)

    def fill_the_disk(self, task: str) -> None:
        """Somebody cannot write a new version: nothing changes."""
        if self._tasks.add_to_a_full_disk(task):
            self._ledger.problem("a version on a full disk", task)

    def _add(self, task: str) -> str:
        version = self._tasks.add(task).version
        self._versions[task].append(version)
        return version

    def _publish(self, task: str, version: str) -> None:
        self._server.publish(task, version)
        self._current[task] = version

    def _thin_out(self, task: str) -> None:
        """Remove the oldest versions, none of which answers any more."""
        while len(self._versions[task]) > MAX_VERSIONS:
            oldest = next(v for v in self._versions[task] if v != self._current[task])
            self._versions[task].remove(oldest)
            self._server.forget(task, oldest)
