"""``glora verify``: every file of a store against what is stated about it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from ..console import one_line_errors, stdout
from ..errors import ArtifactError, GloraDeployError, NotInStoreError, StoreError
from ..options import OptionalTaskArgument, StoreOption
from ..program import examples
from ..store.default_place import DEFAULT_STORE

if TYPE_CHECKING:
    from ..store.store import ArtifactStore


@examples("", "digits")
def verify(
    task: OptionalTaskArgument = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Read every file against its checksums; the exit status is 1 if anything is wrong.

    A version whose backbone the store lacks is reported too: it cannot be exported.
    """
    from ..store.store import ArtifactStore

    with one_line_errors():
        opened = ArtifactStore.open(store)
        findings = opened.verify(task) + opened.without_backbone(task)
        for finding in findings:
            typer.echo(finding.problem)
        for name, version in dict.fromkeys((f.task, f.version) for f in findings):
            if name and version and _is_damaged(opened, name, version):
                command = _remove(opened, name, version)
                typer.echo(f"{name}/{version}: where it cannot be restored, {command}")
        if findings:
            raise ArtifactError(f"{store}: problems found: {len(findings)}")
        stdout.print(f"{store}: every file is what it is stated to be")


def _is_damaged(store: ArtifactStore, task: str, version: str) -> bool:
    """Whether the delta itself cannot be read; its exports can be made again."""
    try:
        store.get(task, version).tensors()
    except NotInStoreError:  # removed meanwhile
        return False
    except (GloraDeployError, OSError):
        return True
    return False


def _remove(store: ArtifactStore, task: str, version: str) -> str:
    """The command that removes a version."""
    from ..store.audit import store_option

    current = None
    with suppress(StoreError):
        current = store.current(task)
    force = " --force" if version == current else ""
    return f"glora remove {task} {version}{force}{store_option(store.root)}"
