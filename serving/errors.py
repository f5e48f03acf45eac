"""What a request to the server can meet, as one tree.

::

    ServingError
    ├── UnknownTaskError     no task, or no version, of this name is served
    ├── UnavailableError     it is known, and cannot answer now: unloaded, refused, or leaving
    ├── InputError           the request itself is wrong; the same request fails again
    │   └── TooLargeError    it is over a limit of the server
    ├── OverloadedError      the queue is full; says when to come back
    ├── DeadlineError        it waited longer than it was willing to
    └── LoadError            a version was refused; what served before serves on

Each protocol maps these to its own status in one place. Their texts reach clients: they name
tasks, versions and tensors, never a path.
"""

from __future__ import annotations

from glora_deploy.errors import GloraDeployError


class ServingError(GloraDeployError):
    """Base of what the server answers with instead of a result."""


class UnknownTaskError(ServingError):
    """No task or version of this name is served."""


class UnavailableError(ServingError):
    """The task or version is known and cannot answer now."""


class InputError(ServingError):
    """The request is wrong in itself."""


class TooLargeError(InputError):
    """The request is over a limit of the server."""


class OverloadedError(ServingError):
    """The queue is full.

    Args:
        message: One line.
        retry_after_s: When it may be worth coming back, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(ServingError):
    """The request waited longer than its deadline allows."""


class LoadError(ServingError):
    """A version was refused; the one that served before serves on."""
