"""``glora pack``: tasks into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import one_line_errors, stdout, wrong_usage_of
from ..options import QuietOption, StoreOption, complete_task_or_version, require_writable_file
from ..program import examples
from ..store.default_place import DEFAULT_STORE
from .sizes import bytes_bar, mb


@examples("digits digits.tar", "digits/v2 photos tasks.tar --no-backbone")
def pack(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK",
            help="Tasks, or versions as TASK/VERSION.",
            autocompletion=complete_task_or_version,
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="What to write.")],
    store: StoreOption = DEFAULT_STORE,
    backbone: Annotated[
        bool, typer.Option("--backbone/--no-backbone", help="Put in the backbones they need.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Write tasks into one file, to share them; exports are left out, they can be built again.

    The file is a plain tar: unpacked by hand into an empty folder it is a store.
    """
    wanted = [_task_and_version(text) for text in tasks]
    if str(file) == "-":
        raise typer.BadParameter("must be a file: a pack is whole or not there", param_hint="FILE")
    require_writable_file(file, "FILE")
    if file.resolve().is_relative_to(store.resolve()):
        raise typer.BadParameter(
            f"must lie outside the artifact store {store}, where 'glora verify' would report it, "
            f"got {file}",
            param_hint="FILE",
        )
    from ..packs.pack import pack as write
    from ..store.store import ArtifactStore

    with one_line_errors("interrupted; nothing was written"), bytes_bar("packing", quiet) as bar:
        packed = write(
            ArtifactStore.open(store),
            wanted,
            file,
            with_backbones=backbone,
            replace=force,
            on_size=bar.start,
            on_bytes=bar.advance,
        )
    for task, versions in packed.tasks.items():
        names = ", ".join(f"{v}*" if v == versions.current else v for v in versions.versions)
        stdout.print(f"{task}: {names}", soft_wrap=True)
    n = len(packed.backbones)
    what = f"{n} {'backbone' if n == 1 else 'backbones'}" if backbone else "no backbone"
    stdout.print(f"{file}: {mb(file.stat().st_size)} MB with {what}", soft_wrap=True)


def _task_and_version(text: str) -> tuple[str, str | None]:
    """``digits`` or ``digits/v2``.

    Raises:
        typer.BadParameter: If it is neither.
    """
    from ..store.reader import require_slug

    task, slash, version = text.partition("/")
    with wrong_usage_of("TASK"):
        require_slug("task", task)
        if slash:
            require_slug("version", version)
    return task, version if slash else None
