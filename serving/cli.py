"""The program ``python -m glora_deploy.serving``: its options, and what they ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from glora_deploy.byte_size import to_bytes
from glora_deploy.console import one_line, one_line_errors, wrong_usage_of
from glora_deploy.origins.address import is_address, require_address
from glora_deploy.precision import Precision
from glora_deploy.program import app_of, examples
from glora_deploy.store.default_place import DEFAULT_STORE, STORE_VARIABLE

from .protocol.limits import Limits
from .protocol.tokens import MIN_CHARS, Tokens, is_strong
from .scale_out.front import front_of, require_replicas
from .scale_out.scale import Scale
from .settings import LOOPBACK, ServerSettings
from .tasks.settings import Backend, EngineSettings, MixedBatches

if TYPE_CHECKING:  # it reads a store, which --help does without
    from glora_deploy.origins.fetch import Fetcher

TOKEN, MANAGEMENT_TOKEN = "GLORA_TOKEN", "GLORA_MANAGEMENT_TOKEN"
"""Environment variables that hold the tokens, unless a file does."""

ENGINE, TASKS, ORIGIN, REPLICAS, LIMITS, ACCESS, TELEMETRY = (
    "Engine", "Tasks in memory", "A store at an origin", "Several replicas, on Ray", "Limits",
    "Who may ask", "What operators see",
)  # fmt: skip

_OPTIONS = {
    "max_body_bytes": "--max-body",
    "memory_budget_bytes": "--memory-budget",
    "rate_per_s": "--rate",
}
"""Settings that are named otherwise than the option that they come from."""


@examples(
    "--store artifacts  # every task, for this machine alone",
    "--port 8000 --grpc-port 8001  # as Triton listens",
    "--store s3://models/prod --cache-budget 20GiB  # what 'glora publish' makes current there",
    "--memory-budget 4GiB --pin pets --prefetch digits",
    "--host 0.0.0.0 --token-file /run/secrets/token",
)
def serve(
    store: Annotated[
        str,
        typer.Option(
            envvar=STORE_VARIABLE,
            help="Folder of the artifact store; or an origin to follow, s3://BUCKET/PREFIX or "
            "hf://USER/REPO.",
        ),
    ] = str(DEFAULT_STORE),
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")
    ] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of HTTP; 0 for a free one.")] = 8000,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Of gRPC; 0 for a free one.", show_default="no gRPC"),
    ] = None,
    backend: Annotated[
        Backend,
        typer.Option(
            metavar="NAME",
            help="What computes: onnxruntime, torch or tensorrt.",
            rich_help_panel=ENGINE,
        ),
    ] = "onnxruntime",
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Where.", rich_help_panel=ENGINE)
    ] = "cpu",
    precision: Annotated[
        Precision, typer.Option(help="Of the weights.", rich_help_panel=ENGINE)
    ] = "fp32",
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Answer from the int8 model of a version's own export, where there is one.",
            rich_help_panel=ENGINE,
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads within an operator.",
            rich_help_panel=ENGINE,
            show_default="the runtime's choice",
        ),
    ] = None,
    max_batch: Annotated[
        int,
        typer.Option(min=1, help="Most images of a request and a batch.", rich_help_panel=ENGINE),
    ] = 16,
    max_delay_ms: Annotated[
        float,
        typer.Option(min=0, help="How long a batch waits to fill up.", rich_help_panel=ENGINE),
    ] = 0.0,
    mixed_batches: Annotated[
        MixedBatches,
        typer.Option(
            help="Whether tasks whose deltas allow it share a batch.", rich_help_panel=ENGINE
        ),
    ] = "auto",
    memory_budget: Annotated[
        str,
        typer.Option(help="For merged weights, such as 500MB or 4GiB.", rich_help_panel=TASKS),
    ] = "2GiB",
    prefetch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            help="Merge before the first request; may be given several times.",
            rich_help_panel=TASKS,
            show_default=False,
        ),
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            help="Keep in memory; may be given several times.",
            rich_help_panel=TASKS,
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch/--no-watch",
            help="Pick up new versions by itself, not on load alone.",
            rich_help_panel=TASKS,
        ),
    ] = True,
    allow_unproven: Annotated[
        bool,
        typer.Option(
            "--allow-unproven",
            help="Serve versions whose export failed its parity check.",
            rich_help_panel=TASKS,
        ),
    ] = False,
    require_proven: Annotated[
        bool,
        typer.Option(
            "--require-proven",
            help="Refuse versions without an export that passed its parity check.",
            rich_help_panel=TASKS,
        ),
    ] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Where what is fetched is kept, each origin in a folder of its own.",
            rich_help_panel=ORIGIN,
            show_default="glora-deploy in the user cache",
        ),
    ] = None,
    cache_budget: Annotated[
        str,
        typer.Option(
            help="For it; beyond, old versions leave, then tasks not asked for lately.",
            rich_help_panel=ORIGIN,
        ),
    ] = "10GiB",
    fetch: Annotated[
        Literal["first-use", "all"],
        typer.Option(
            help="When a task is fetched: when it is first asked for, or before the start.",
            rich_help_panel=ORIGIN,
        ),
    ] = "first-use",
    poll_s: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="How often the origin is asked what is current.",
            rich_help_panel=ORIGIN,
        ),
    ] = 10.0,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Have so many processes answer, each a whole engine; this one is their front.",
            rich_help_panel=REPLICAS,
            show_default="this process answers",
        ),
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Start more of them, to so many, when they are busy.",
            rich_help_panel=REPLICAS,
            show_default="as many as at the start",
        ),
    ] = None,
    target_ongoing: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Requests in work at a replica to keep to.",
            rich_help_panel=REPLICAS,
            show_default=str(Scale().target_ongoing),
        ),
    ] = None,
    replica_cpus: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Reserved for each replica.",
            rich_help_panel=REPLICAS,
            show_default=str(Scale().cpus),
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster to start them on, auto for the one of this machine. Every machine of "
            "it has the store at the same place.",
            rich_help_panel=REPLICAS,
            show_default="one of this machine alone",
        ),
    ] = None,
    attach: Annotated[
        bool,
        typer.Option(
            "--attach",
            help="Be one more front of the replicas that another one started on the cluster.",
            rich_help_panel=REPLICAS,
        ),
    ] = False,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Images that may wait.", rich_help_panel=LIMITS)
    ] = 256,
    max_body: Annotated[
        str, typer.Option(help="Largest body of a request.", rich_help_panel=LIMITS)
    ] = "64MiB",
    max_pixels: Annotated[
        int,
        typer.Option(min=1, help="Of an encoded image, by its header.", rich_help_panel=LIMITS),
    ] = Limits().max_pixels,
    max_wait_s: Annotated[
        float,
        typer.Option(min=0.001, help="Longest that a request waits.", rich_help_panel=LIMITS),
    ] = Limits().max_wait_s,
    receive_s: Annotated[
        float,
        typer.Option(
            min=0.001,
            help="Longest that a client takes for headers, and for a body (and a second more "
            "for each 64 KiB of it).",
            rich_help_panel=LIMITS,
        ),
    ] = Limits().receive_s,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Requests a second from one address.",
            rich_help_panel=LIMITS,
            show_default="any number",
        ),
    ] = None,
    decode_threads: Annotated[
        int, typer.Option(min=1, help="Threads that decode images.", rich_help_panel=LIMITS)
    ] = ServerSettings().decode_threads,
    drain_s: Annotated[
        float,
        typer.Option(
            min=0, help="Longest that leaving takes, after SIGTERM.", rich_help_panel=LIMITS
        ),
    ] = ServerSettings().drain_s,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"Holds the token to ask with; else {TOKEN} does. Without either, anyone may.",
            rich_help_panel=ACCESS,
            show_default=False,
        ),
    ] = None,
    management_token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"Holds the token to load and unload with; else {MANAGEMENT_TOKEN} does. Without "
            "either, nobody may.",
            rich_help_panel=ACCESS,
            show_default=False,
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="By which a proxy asks, where anyone on this machine may; may be given several "
            "times.",
            rich_help_panel=ACCESS,
            show_default=False,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Of /metrics without a token; else it is at --port, behind the token.",
            rich_help_panel=TELEMETRY,
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="Of the log.", rich_help_panel=TELEMETRY)
    ] = "text",
    log_requests: Annotated[
        bool,
        typer.Option(
            "--log-requests/--no-log-requests",
            help="A line for each request.",
            rich_help_panel=TELEMETRY,
        ),
    ] = True,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Collector of traces; often port 4318 of some host.",
            rich_help_panel=TELEMETRY,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Answer for every task of a store from one backbone in memory.

    Speaks the Open Inference Protocol over HTTP and gRPC, so clients of Triton's work as they are;
    takes images at /v1/tasks/TASK/predict; shows a page at /. The first line says where.
    """
    with wrong_usage_of("--memory-budget"):
        budget_bytes = to_bytes(memory_budget)
    with wrong_usage_of("--max-body"):
        body_bytes = to_bytes(max_body)
    with wrong_usage_of("--cache-budget"):
        cache_bytes = to_bytes(cache_budget)
    with wrong_usage_of("--store"):
        if is_address(store):
            require_address(store)
    with one_line_errors():
        tokens = Tokens(
            inference=read_token(token_file, TOKEN),
            management=read_token(management_token_file, MANAGEMENT_TOKEN),
        )
    with _wrong_settings():
        several = attach or replicas is not None
        scaling = {
            "max-replicas": max_replicas,
            "target-ongoing": target_ongoing,
            "replica-cpus": replica_cpus,
        }
        require_replicas(
            store, fetch, replicas=replicas, attach=attach, cluster=cluster, scaling=scaling
        )
        limits = Limits(
            max_body_bytes=body_bytes,
            max_pixels=max_pixels,
            max_wait_s=max_wait_s,
            receive_s=receive_s,
        )
        engine_settings = EngineSettings(
            backend=backend,
            device=device,
            precision=precision,
            int8=int8,
            # Replicas share the cores of a machine.
            threads=1 if threads is None and several else threads,
            memory_budget_bytes=budget_bytes,
            max_batch=max_batch,
            max_delay_ms=max_delay_ms,
            max_queue=max_queue,
            prefetch=tuple(prefetch or ()),
            pins=tuple(pin or ()),
            mixed_batches=mixed_batches,
            watch_s=EngineSettings().watch_s if watch else None,
            allow_unproven=allow_unproven,
            require_proven=require_proven,
        )
        settings = ServerSettings(
            host=host,
            names=tuple(name.lower() for name in names or ()),
            port=port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            tokens=tokens,
            limits=limits,
            rate_per_s=rate,
            decode_threads=decode_threads,
            drain_s=drain_s,
        )
    with one_line_errors():
        from .run import run_server
        from .telemetry.access_log import configure_logging

        configure_logging(log_format, requests=log_requests)
        if not is_address(store):
            followed: AbstractContextManager[Fetcher | None] = nullcontext()
        else:
            from glora_deploy.origins.cache import default_cache_dir, kept_in_step

            followed = kept_in_step(
                store,
                cache_dir or default_cache_dir(),
                budget_bytes=cache_bytes,
                poll_s=poll_s,
                on_demand=fetch == "first-use",
            )
        with ExitStack() as stack:
            source = stack.enter_context(followed)
            if source is not None and source.on_demand:
                for task in dict.fromkeys((*engine_settings.pins, *engine_settings.prefetch)):
                    if not source.holds(task):
                        source.fetch(task)
            folder = Path(store) if source is None else source.store.root
            engine_type = None
            if several:
                scale = Scale(
                    replicas=replicas or 1,
                    max_replicas=max_replicas,
                    target_ongoing=target_ongoing or Scale().target_ongoing,
                    cpus=replica_cpus or Scale().cpus,
                )
                engine_type = stack.enter_context(
                    front_of(folder, engine_settings, scale, cluster=cluster, attach=attach)
                )
            run_server(
                folder,
                engine_settings,
                settings,
                otlp_endpoint=otlp_endpoint,
                announce=_announce,
                engine_type=engine_type,
                source=source,
            )


def read_token(file: Path | None, variable: str) -> str | None:
    """A token: of a file if one is named, else of the environment; None if of neither.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If what is there cannot be a token; says where it is, not what.
    """
    if file is None:
        token, where = os.environ.get(variable), variable
    else:
        token, where = file.read_bytes().decode("utf-8", "replace").strip(), str(file)
    if token is not None and not is_strong(token):
        raise ValueError(
            f"{where}: must hold a token of {MIN_CHARS} or more printable ASCII characters. "
            "Make one: openssl rand -hex 16"
        )
    return token


@contextmanager
def _wrong_settings() -> Iterator[None]:
    """Turn a setting that is refused into wrong usage of the option that it comes from."""
    try:
        yield
    except ValueError as error:
        name = str(error).partition(" ")[0]
        option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
        raise typer.BadParameter(one_line(error), param_hint=option) from error


def _announce(text: str) -> None:
    print(text, flush=True)


app = app_of(serve)


def main() -> None:
    """Entry point of ``python -m glora_deploy.serving``."""
    app()
