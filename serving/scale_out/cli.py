"""The program ``python -m glora_deploy.serving.scale_out``: its options, and what they ask for."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from glora_deploy.console import one_line_errors, wrong_usage_of
from glora_deploy.errors import MissingDependencyError
from glora_deploy.options import StoreOption
from glora_deploy.program import app_of, examples
from glora_deploy.store.default_place import DEFAULT_STORE

from ..cli import TOKEN, read_token, to_bytes
from ..protocol.tokens import Tokens
from ..settings import LOOPBACK, ServerSettings
from ..tasks.settings import Backend, EngineSettings


@examples(
    "--store artifacts --replicas 2",
    "--replicas 2 --max-replicas 8 --target-ongoing 4  # more of them when they are busy",
    "--cluster auto --host 0.0.0.0  # on a cluster that runs; every machine has the store",
)
def serve(
    store: StoreOption = DEFAULT_STORE,
    host: Annotated[str, typer.Option(help="Address that the front listens at.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of HTTP; 0 for a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="At the start, and at least.")] = 2,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="At most.", show_default="as many as at the start")
    ] = None,
    target_ongoing: Annotated[
        float, typer.Option(min=0.1, help="Requests in work at a replica to keep to.")
    ] = 8.0,
    cpus: Annotated[float, typer.Option(min=0.01, help="Reserved for each replica.")] = 1.0,
    cluster: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster.", show_default="one of this machine alone"),
    ] = None,
    backend: Annotated[
        Backend, typer.Option(metavar="NAME", help="What computes: onnxruntime or torch.")
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1, help="Of each replica's operators.")] = 1,
    memory_budget: Annotated[
        str, typer.Option(help="Of each replica, for merged weights.")
    ] = "2GiB",
) -> None:
    """Answer for every task of a store from several replicas, as the one process does.

    GLORA_TOKEN holds the token to ask with. What is served is changed in the store alone.
    """
    with wrong_usage_of("--memory-budget"):
        budget_bytes = to_bytes(memory_budget)
    with one_line_errors():
        try:
            from .cluster import replicas as started
            from .replica import Scale
            from .routed_engine import RoutedEngine
        except ModuleNotFoundError as error:
            raise MissingDependencyError(str(error.name), "ray", "several replicas") from error
        from ..run import run_server

        settings = ServerSettings(
            host=host, port=port, tokens=Tokens(inference=read_token(None, TOKEN))
        )
        engine_settings = EngineSettings(
            backend=backend, threads=threads, memory_budget_bytes=budget_bytes
        )
        scale = Scale(
            replicas=replicas, max_replicas=max_replicas, target_ongoing=target_ongoing, cpus=cpus
        )
        with started(store, engine_settings, scale, cluster=cluster) as handle:
            run_server(
                store,
                engine_settings,
                settings,
                announce=partial(print, flush=True),
                engine_type=partial(RoutedEngine, handle=handle),
            )


app = app_of(serve)


def main() -> None:
    """Entry point."""
    app(prog_name="python -m glora_deploy.serving.scale_out")
