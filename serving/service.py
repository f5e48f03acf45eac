"""What every transport needs: the engine, the threads that may block, how to wait for an answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from .errors import OverloadedError, UnknownTaskError
from .first_use import FirstUse
from .protocol.model_info import READY
from .protocol.version_names import find_version, require_name
from .settings import ServerSettings
from .tasks.contract import Answer, InferRequest, ServedVersion, TaskEngine
from .telemetry.request_record import RequestRecord
from .telemetry.telemetry import Telemetry

P = ParamSpec("P")
T = TypeVar("T")

_MANAGEMENT_THREADS = 2


class Service:
    """The engine as the transports use it.

    Args:
        engine: Answers.
        settings: Of the server.
        telemetry: Where records of requests go.
        first_use: What brings tasks in that the engine has not; nothing does if None.
    """

    def __init__(
        self,
        engine: TaskEngine,
        settings: ServerSettings,
        telemetry: Telemetry,
        first_use: FirstUse | None = None,
    ) -> None:
        self.engine, self.settings, self.telemetry = engine, settings, telemetry
        self._first_use = first_use
        self.draining = False
        """Whether the server was told to leave: nothing new is taken."""
        self._decoding = 0
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "glora-decode")
        # A load may take a minute. It must hold up neither a decode nor a look at the statistics.
        self._managers = ThreadPoolExecutor(_MANAGEMENT_THREADS, "glora-manage")
        self._readers = ThreadPoolExecutor(1, "glora-read")

    async def find(
        self, task: str, version: str = "", patience_s: float = math.inf
    ) -> ServedVersion:
        """The version that a client means; a task that is not here yet is brought in.

        Args:
            task: As the client names it.
            version: As the client names it; empty for the current one.
            patience_s: Seconds that it may take to bring it in.

        Raises:
            InputError, UnknownTaskError: As ``find_version``.
            UnavailableError: If it cannot be brought in, or not in time.
        """
        first_use = self._first_use
        if first_use is None:
            return find_version(self.engine, task, version)
        require_name("task", task)
        try:
            served = find_version(self.engine, task, version)
        except UnknownTaskError:
            if not first_use.is_absent(task):
                if task in self.engine.tasks():
                    raise
                n_others = len({*self.engine.tasks(), *first_use.absent()})
                raise UnknownTaskError(f"no task {task!r}; there are {n_others} others") from None
        else:
            if served.state == READY or not first_use.is_absent(task):
                first_use.note_use(task)
                return served
        await first_use.bring(task, patience_s)
        first_use.note_use(task)
        return find_version(self.engine, task, version)

    async def bring(self, task: str) -> None:
        """Bring a task in, if it is one that is not here yet: before it is managed.

        Raises:
            UnavailableError: If it cannot be brought in, or not in time.
        """
        if self._first_use is not None and self._first_use.is_absent(task):
            await self._first_use.bring(task)

    def absent(self) -> Mapping[str, str]:
        """Tasks that come when they are first asked for, and their versions."""
        return {} if self._first_use is None else self._first_use.absent()

    async def decode(
        self, record: RequestRecord, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do work on a request's bytes in one of the few threads for that.

        Raises:
            OverloadedError: If too many requests wait for them already.
        """
        if self._decoding >= self.settings.max_decoding:
            raise OverloadedError("too many images wait to be decoded. Come back later")
        self._decoding += 1
        try:
            with record.decoding():
                return await _in_thread(self._decoders, work, *args, **kwargs)
        finally:
            self._decoding -= 1

    async def manage(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what changes what is served, off the event loop."""
        return await _in_thread(self._managers, work, *args, **kwargs)

    async def read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what reads much of the engine, off the event loop."""
        return await _in_thread(self._readers, work, *args, **kwargs)

    async def answer(self, record: RequestRecord, asked: InferRequest) -> Answer:
        """Ask the engine. To cancel this takes the request out of the queue.

        Args:
            record: Of the request.
            asked: What to ask.

        Raises:
            ServingError: Of the engine.
        """
        submitted_ns = time.time_ns()
        answer = await asyncio.wrap_future(self.engine.submit(asked))
        record.answered(answer, submitted_ns)
        return answer

    def close(self) -> None:
        """End the threads once what they do is done."""
        if self._first_use is not None:
            self._first_use.close()
        for pool in (self._decoders, self._managers, self._readers):
            pool.shutdown(wait=True, cancel_futures=True)


async def _in_thread(pool: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.wrap_future(pool.submit(work, *args, **kwargs))
