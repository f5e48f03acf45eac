"""What the program prints once it answers: where, for how many tasks, and who may do what."""

from __future__ import annotations

from .settings import LOOPBACK, ServerSettings
from .tasks.contract import TaskEngine

_WILDCARDS = {"0.0.0.0": LOOPBACK, "::": "::1"}
"""What listens everywhere, and where a browser on this machine finds it."""


def announcement(
    engine: TaskEngine,
    settings: ServerSettings,
    *,
    host: str,
    port: int,
    grpc_port: int | None,
    n_absent: int = 0,
) -> str:
    """A few lines; the first is for programs, ``http://HOST:PORT serves N tasks; gRPC at ...``.

    Args:
        engine: Its tasks are counted that have a version which answers.
        settings: Say which tokens there are.
        host: That is listened at.
        port: Of HTTP.
        grpc_port: Of gRPC; None where there is none.
        n_absent: Tasks that come when they are first asked for.
    """
    ready = {each.task for each in engine.versions() if each.state == "READY"}
    n_others = len(set(engine.tasks()) - ready)
    first = f"http://{address(host, port)} serves {_tasks(len(ready))}"
    if grpc_port is not None:
        first += f"; gRPC at {address(host, grpc_port)}"
    lines = [first]
    if n_absent:
        lines.append(f"fetched when first asked for: {_tasks(n_absent)}")
    if n_others:
        lines.append(f"not served: {_tasks(n_others)}; the log says why")
    lines.append(f"page: http://{address(_WILDCARDS.get(host, host), port)}/")
    tokens = settings.tokens
    asks = "whoever shows the token" if tokens.inference else "anyone who reaches this address"
    changes = "nobody (management is off)" if tokens.management is None else "the management token"
    lines.append(f"may ask: {asks}; may load and unload: {changes}")
    return "\n".join(lines)


def address(host: str, port: int) -> str:
    """As it stands in a URL.

    >>> address("::1", 8000)
    '[::1]:8000'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tasks(count: int) -> str:
    return f"{count} task{'s' if count != 1 else ''}"
