"""``glora publish``: a version to an origin that servers follow."""

from __future__ import annotations

from typing import Annotated

import typer

from ..console import one_line_errors, stdout, wrong_usage_of
from ..options import QuietOption, StoreOption, complete_task, complete_version, named
from ..origins.address import require_address
from ..program import examples
from ..store.default_place import DEFAULT_STORE
from .sizes import mb


@examples(
    "--task digits --to s3://models/prod  # the current version",
    "--task digits --version v1 --to s3://models/prod  # roll back",
)
def publish(
    task: Annotated[
        str,
        typer.Option(
            help="Name of the task.", autocompletion=complete_task, callback=named("task")
        ),
    ],
    to: Annotated[
        str, typer.Option(metavar="URL", help="The origin: s3://BUCKET/PREFIX or hf://USER/REPO.")
    ],
    version: Annotated[
        str | None,
        typer.Option(
            help="Version of the task.",
            autocompletion=complete_version,
            callback=named("version"),
            show_default="the current one",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    quiet: QuietOption = False,
) -> None:
    """Publish a version to an origin, where it answers from then on for every server that follows.

    One write makes it visible, once all of it is there; interrupted, run it again. A version that
    is published already becomes current again, and nothing of it is sent. The endpoint and the
    credentials are those of AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY, or of HF_ENDPOINT and HF_TOKEN.
    """
    with wrong_usage_of("--to"):
        require_address(to)
    from ..origins.bucket import open_bucket
    from ..origins.publish import publish as send
    from ..store.store import ArtifactStore

    with one_line_errors("interrupted; run it again, what was sent stays"):
        done = send(ArtifactStore.open(store), open_bucket(to), task, version)
    if quiet:
        return
    if done.was_current:
        what = "was published and current already"
    elif done.is_new:
        what = "published, current"
    else:
        what = "was published already, current again"
    sent = f"; {mb(done.uploaded_bytes)} MB sent" if done.uploaded_bytes else ""
    stdout.print(f"{done.task}/{done.version}: {what}{sent}", soft_wrap=True)
