"""``glora unpack``: a packed file into a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import one_line_errors, stdout, wrong_usage_of
from ..errors import NotInStoreError
from ..options import QuietOption, StoreOption
from ..program import examples
from ..store.default_place import DEFAULT_STORE
from .sizes import bytes_bar

if TYPE_CHECKING:
    from ..store.store import ArtifactStore


@examples("digits.tar", "digits.tar --as mnist --store elsewhere", "digits.tar --no-current")
def unpack(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", dir_okay=False, help="What `glora pack` wrote.")
    ],
    store: StoreOption = DEFAULT_STORE,
    as_task: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Another name for its only task.")
    ] = None,
    make_current: Annotated[
        bool,
        typer.Option(
            "--current/--no-current", help="Let a task without a current version have the pack's."
        ),
    ] = True,
    quiet: QuietOption = False,
) -> None:
    """Bring packed tasks into the store, which is made if it is missing: all of them or none.

    A task that has a current version keeps it; a version that is there already is left alone.
    """
    from ..packs.unpack import unpack as take_in
    from ..store.reader import require_slug
    from ..store.store import ArtifactStore

    if as_task is not None:
        with wrong_usage_of("--as"):
            require_slug("task", as_task)
    with one_line_errors("interrupted; the store is as it was"):
        opened = ArtifactStore(store)
        with bytes_bar("unpacking", quiet) as bar:
            found = take_in(
                opened,
                file,
                as_task=as_task,
                make_current=make_current,
                on_size=bar.start,
                on_bytes=bar.advance,
            )
        for each in found:
            note = "" if each.is_new else " was there already"
            stdout.print(f"{each.task}/{each.version}{note}", soft_wrap=True)
        for task in dict.fromkeys(each.task for each in found):
            newest = [each.version for each in found if each.task == task][-1]
            stdout.print(f"{task}: {_which_is_current(opened, task, newest)}", soft_wrap=True)


def _which_is_current(store: ArtifactStore, task: str, version: str) -> str:
    """What answers for a task that was just unpacked, and how to let a version of it answer."""
    from ..store.audit import store_option

    try:
        current = store.current(task)
    except NotInStoreError:
        return "was removed meanwhile"
    if current:
        return f"{current} is current"
    return f"none is current. Make one so: glora use {task} {version}{store_option(store.root)}"
