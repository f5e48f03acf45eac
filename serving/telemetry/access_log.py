"""One line for each request, for people or for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from .request_record import RequestRecord

LogFormat: TypeAlias = Literal["text", "json"]

access = logging.getLogger("glora_deploy.serving.access")
"""The one logger of these lines."""

_FIELDS = "record"


def log_request(record: RequestRecord) -> None:
    """Write the line of a request."""
    if access.isEnabledFor(logging.INFO):
        access.info(_text(record), extra={_FIELDS: _fields(record)})


def configure_logging(log_format: LogFormat, *, requests: bool = True) -> None:
    """Send every log of this process to stderr in one form, from INFO up unless told otherwise.

    Args:
        log_format: ``text``, or ``json`` for an object on each line.
        requests: Write a line for each request.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    access.setLevel(logging.NOTSET if requests else logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # the first line says it all


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, _FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _fields(record: RequestRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "protocol": record.protocol,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "duration_ms": round(record.duration_s * 1e3, 3),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "client": record.client,
        "task": record.task,
        "version": record.version,
        "delta_sha256": record.delta_sha256,
        "call_id": record.call_id,
        "images": record.n_images,
        "batch_size": record.batch_size,
        "error": record.error,
    }
    for name in ("decode", "queue", "swap", "compute"):
        seconds = record.step_s(name)
        if seconds is not None:
            fields[f"{name}_ms"] = round(seconds * 1e3, 3)
    return {key: value for key, value in fields.items() if value not in ("", 0)}


def _text(record: RequestRecord) -> str:
    """A line without line breaks, whatever the client sent."""
    answered = f" by {record.task}/{record.version}" if record.delta_sha256 else ""
    error = f": {record.error}" if record.error else ""
    line = (
        f"{record.request_id} {record.protocol} {record.method} {record.path} {record.status} "
        f"{record.duration_s * 1e3:.1f} ms{answered}{error}"
    )
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in line
    )
