"""What a storm needs of a server, whichever it is."""

from __future__ import annotations

from typing import Protocol

TOKEN = "soak-management-token"


class Server(Protocol):
    """A server that runs; names of versions are those of the store."""

    http: str
    """Address and port."""
    grpc: str
    pids: tuple[int, ...]
    """Its processes."""
    refusals: tuple[str, ...]
    """Texts of errors that it may answer with while it works as it must."""
    wrongs_are_5xx: bool
    """Whether it answers a client's mistakes with 500."""
    watches: bool
    """Whether it picks up what becomes current by itself."""

    def asked_by(self, task: str, version: str) -> str:
        """What clients call a version."""
        ...

    def version_of(self, task: str, number: str) -> str:
        """The version that answers under this name."""
        ...

    def publish(self, task: str, version: str) -> None:
        """Make a version of the store the current one, not yet loaded."""
        ...

    def load(self, task: str, version: str | None = None) -> None:
        """Let a version answer, the current one if None.

        Raises:
            InferenceServerException: If it is refused.
        """
        ...

    def unload(self, task: str) -> None:
        """Take a task out."""
        ...

    def corrupt(self, task: str, version: str) -> None:
        """Alter a version and publish it: it must be refused."""
        ...

    def mend(self, task: str, version: str, good: str) -> None:
        """Take a corrupted version away; ``good`` is current again, not yet loaded."""
        ...

    def forget(self, task: str, version: str) -> None:
        """Remove a version that is not current."""
        ...

    def log_problems(self) -> list[str]:
        """Lines of its log that must not be there."""
        ...
