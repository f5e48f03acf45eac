"""From a call to its answer: what it asks for is planned, its images read, the engine asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .errors import UnavailableError, UnknownTaskError
from .protocol.infer import CallPlan, plan_call, to_images
from .protocol.tensors import InferCall
from .service import Service
from .tasks.contract import Answer, InferRequest
from .telemetry.request_record import RequestRecord


async def answer_call(
    service: Service,
    record: RequestRecord,
    call: InferCall,
    arrived_s: float,
    ask: Callable[[InferRequest], Awaitable[Answer]],
) -> tuple[CallPlan, Answer]:
    """The answer to a call, and how it was planned.

    A call is bound to a version before its images are read. If that one is replaced and removed
    before it has answered, a call that names none goes to what is current by then.

    Args:
        service: Has the engine.
        record: Of the request.
        call: As it came in.
        arrived_s: When, by ``time.monotonic()``.
        ask: Has the engine answer.

    Raises:
        ServingError: Of the call, or of the engine.
    """
    engine, limits = service.engine, service.settings.limits
    plan = plan_call(engine, call, limits, arrived_s)
    while True:
        if plan.needs_decoding:
            images = await service.decode(record, to_images, plan, limits)
        else:
            images = to_images(plan, limits)
        try:
            return plan, await ask(plan.request(images))
        except (UnknownTaskError, UnavailableError):
            if call.version:
                raise
            anew = plan_call(engine, call, limits, arrived_s)
            if anew.served.delta_sha256 == plan.served.delta_sha256:
                raise
            plan = anew
