"""``pull``: a pushed delta from the Hub into the store."""

from __future__ import annotations

from typing import Annotated

import typer

from glora_deploy.console import one_line_errors, stdout, wrong_usage_of
from glora_deploy.options import CurrentOption, QuietOption, StoreOption, named
from glora_deploy.program import examples
from glora_deploy.quiet import only_errors
from glora_deploy.store.default_place import DEFAULT_STORE
from glora_deploy.store.store import ArtifactStore

from .each_task import UNCHANGED
from .options import CheckpointOption, RevisionOption, TokenOption
from .progress import hub_steps


@examples("user/vit-svhn", "user/vit-svhn --revision v1.2 --task numbers")
def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/name on the Hugging Face Hub.")],
    store: StoreOption = DEFAULT_STORE,
    task: Annotated[
        str | None,
        typer.Option(help="Name in this store; the pushed one by default.", callback=named("task")),
    ] = None,
    make_current: CurrentOption = True,
    revision: RevisionOption = None,
    checkpoint: CheckpointOption = None,
    token: TokenOption = None,
    quiet: QuietOption = False,
) -> None:
    """Bring a pushed delta from the Hub into the store, verified, as a new version."""
    with wrong_usage_of("REPO"):
        from ..hub.client import require_model_repo

        require_model_repo(repo)
    with one_line_errors(UNCHANGED):
        from ..hub.push_pull import pull as pull_delta

        on_step = hub_steps(quiet)
        with only_errors(quiet):
            artifact = pull_delta(
                ArtifactStore(store),
                repo,
                revision=revision,
                task=task,
                make_current=make_current,
                checkpoint=checkpoint,
                token=token,
                on_step=on_step,
            )
        stdout.print(f"{artifact.path}: {artifact.task} {artifact.version}", soft_wrap=True)
