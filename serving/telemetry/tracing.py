"""Spans of a request, by OpenTelemetry: the one module that imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glora_deploy.errors import MissingDependencyError

from .request_record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE = "glora-deploy"


class Tracing:
    """Makes a span of each request that ended, and one of each of its steps below it.

    The times are those that were measured, so a request that is traced takes no longer.

    Args:
        exporter: Where spans go, in batches, from a thread of their own.

    Raises:
        MissingDependencyError: If OpenTelemetry is missing.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise MissingDependencyError("opentelemetry-sdk", "serve", "tracing") from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("glora_deploy.serving")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_endpoint(cls, endpoint: str) -> Tracing:
        """Spans to a collector's OTLP endpoint over HTTP.

        Args:
            endpoint: Such as ``http://127.0.0.1:4318``; ``/v1/traces`` is added where no path is.

        Raises:
            ValueError: If it is no http or https URL.
            MissingDependencyError: If OpenTelemetry's exporter is missing.
        """
        scheme, _, rest = endpoint.partition("://")
        if scheme not in ("http", "https") or not rest:
            raise ValueError(f"--otlp-endpoint must be an http or https URL, got {endpoint!r}")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise MissingDependencyError(
                "opentelemetry-exporter-otlp-proto-http", "serve", "tracing"
            ) from error
        if not rest.partition("/")[2]:
            endpoint = f"{endpoint.rstrip('/')}/v1/traces"
        return cls(OTLPSpanExporter(endpoint=endpoint))

    def finished(self, record: RequestRecord) -> None:
        """Make the spans of a request that has ended; below the caller's span if it named one."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        parent = self._propagator.extract({"traceparent": record.traceparent})
        span = self._tracer.start_span(
            f"{record.protocol} {record.method}",
            context=parent,
            kind=SpanKind.SERVER,
            start_time=record.started_ns,
            attributes=_attributes(record),
        )
        if record.failed:
            span.set_status(StatusCode.ERROR, record.error)
        within = set_span_in_context(span)
        for step in record.steps:
            part = self._tracer.start_span(step.name, context=within, start_time=step.start_ns)
            part.end(step.end_ns)
        span.end(record.ended_ns)

    def flush(self) -> None:
        """Send what waits."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what waits, and let go."""
        self._provider.shutdown()


def _attributes(record: RequestRecord) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "glora.request_id": record.request_id,
        "glora.task": record.task,
        "glora.version": record.version,
        "glora.delta_sha256": record.delta_sha256,
        "glora.images": record.n_images,
        "glora.batch_size": record.batch_size,
        "glora.status": record.status,
    }
    return {key: value for key, value in found.items() if value}
