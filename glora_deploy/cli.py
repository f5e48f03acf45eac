"""``glora``: look into an artifact store and manage its versions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.progress import Progress, TaskID

from .console import make_table, one_line_errors, progress_bars, stdout, wrong_usage_of
from .errors import ArtifactError, GloraDeployError, NotInStoreError, StoreError
from .packs.pack import pack as write
from .packs.unpack import unpack as take_in
from .precision import Precision
from .store.artifact import Artifact
from .store.audit import store_option
from .store.export_record import ExportRecord
from .store.prune import prune as remove_unused
from .store.reader import BACKBONE_WEIGHTS, BACKBONES, require_slug
from .store.store import ArtifactStore

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look into an artifact store and manage its versions.",
    epilog="**Examples**\n\n`glora list`\n\n`glora show digits`\n\n`glora rollback digits`",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Store = Annotated[Path, typer.Option(help="Folder of the artifact store.")]
Task = Annotated[str, typer.Argument(help="Name of a task.")]
Version = Annotated[str, typer.Argument(help="Version of the task.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
MEGABYTE = 1e6


@app.command("list")
def list_versions(store: Store = Path("artifacts")) -> None:
    """Every version of every task: accuracy, size, what was exported and whether it is proven."""
    with one_line_errors():
        opened = ArtifactStore.open(store)
        rows = [row for task in opened.tasks() for row in _rows(opened, task)]
        columns = (
            "artifact",
            "method",
            "test",
            "parameters",
            "delta",
            "merged",
            "parity",
        )
        title = (
            f"{store}: * is current; test accuracy, support parameters, sizes in MB,\n"
            "parity as the worst error of any stage, a share of the logits' spread"
        )
        whole = ("artifact", "parameters", "parity")
        stdout.print(make_table(title, columns, rows, right=columns[2:6], whole=whole))


@app.command()
def show(
    task: Task,
    version: Annotated[str | None, typer.Argument(help="The current one by default.")] = None,
    store: Store = Path("artifacts"),
) -> None:
    """One version in full: its manifest, as stored."""
    with one_line_errors():
        artifact = ArtifactStore.open(store).get(task, version)
        typer.echo(artifact.manifest.to_json().decode(), nl=False)


@app.command()
def use(task: Task, version: Version, store: Store = Path("artifacts")) -> None:
    """Make a version the one that answers."""
    with one_line_errors():
        artifact = ArtifactStore.open(store).set_current(task, version)
        stdout.print(f"{artifact.task}: {artifact.version} is current")


@app.command()
def rollback(task: Task, store: Store = Path("artifacts")) -> None:
    """Make the version created before the current one the one that answers."""
    with one_line_errors():
        artifact = ArtifactStore.open(store).rollback(task)
        stdout.print(f"{artifact.task}: {artifact.version} is current")


@app.command()
def remove(
    task: Task,
    version: Annotated[
        str | None, typer.Argument(help="The whole task, with --force, if left out.")
    ] = None,
    store: Store = Path("artifacts"),
    force: Annotated[
        bool, typer.Option("--force", help="Remove a current version, or a whole task.")
    ] = False,
) -> None:
    """Remove a version and its exports."""
    with one_line_errors():
        if version is None and not force:
            raise StoreError(f"{task}: name a version, or give --force to remove the whole task")
        ArtifactStore.open(store).remove(task, version, force=force)
        stdout.print(f"removed {task}{'' if version is None else f'/{version}'}")


@app.command()
def verify(
    task: Annotated[str | None, typer.Argument(help="Everything by default.")] = None,
    store: Store = Path("artifacts"),
) -> None:
    """Read every file against its checksums; the exit status is 1 if anything is wrong.

    A version whose backbone the store lacks is reported too: it cannot be exported.
    """
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


@app.command()
def du(store: Store = Path("artifacts")) -> None:
    """What the tasks cost on disk as deltas, and what they would cost as merged networks."""
    with one_line_errors():
        opened = ArtifactStore.open(store)
        sizes = opened.sizes()
        rows, merged_total = [], 0
        for task, size in sizes.items():
            merged = sum(_merged_bytes(opened, artifact) for artifact in _artifacts(opened, task))
            merged_total += merged
            rows.append((task, _mb(size.delta_bytes), _mb(merged), _mb(size.export_bytes)))
        deltas = sum(size.delta_bytes for size in sizes.values())
        exports = sum(size.export_bytes for size in sizes.values())
        backbones = sum(map(_size_bytes, (store / BACKBONES).glob(f"*/{BACKBONE_WEIGHTS}")))
        rows.append(("all tasks", _mb(deltas), _mb(merged_total), _mb(exports)))
        rows.append(("shared backbones", _mb(backbones), "", ""))
        columns = ("task", "deltas MB", "as merged fp32 MB", "exports on disk MB")
        stdout.print(make_table(str(store), columns, rows, right=columns[1:]))


@app.command(
    epilog="**Examples**\n\n`glora pack digits digits.tar`\n\n"
    "`glora pack digits/v2 photos tasks.tar --no-backbone`"
)
def pack(
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK", help="Tasks, or versions as TASK/VERSION.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="What to write.")],
    store: Store = Path("artifacts"),
    backbone: Annotated[
        bool, typer.Option("--backbone/--no-backbone", help="Put in the backbones they need.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write tasks into one file, to share them; exports are left out, they can be built again.

    The file is a plain tar: unpacked by hand into an empty folder it is a store.
    """
    wanted = [_task_and_version(text) for text in tasks]
    if file.resolve().is_relative_to(store.resolve()):
        raise typer.BadParameter(
            f"must lie outside the artifact store {store}, where 'glora verify' would report it, "
            f"got {file}",
            param_hint="FILE",
        )
    with one_line_errors("interrupted; nothing was written"), _megabytes("packing", quiet) as bar:
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
    stdout.print(f"{file}: {_mb(file.stat().st_size)} MB with {what}", soft_wrap=True)


@app.command(
    epilog="**Examples**\n\n`glora unpack digits.tar`\n\n"
    "`glora unpack digits.tar --as mnist --store elsewhere`"
)
def unpack(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", dir_okay=False, help="What `glora pack` wrote.")
    ],
    store: Store = Path("artifacts"),
    as_task: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Another name for its only task.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Bring packed tasks into the store, which is made if it is missing: all of them or none.

    A task that has a current version keeps it; a version that is there already is left alone.
    """
    if as_task is not None:
        with wrong_usage_of("--as"):
            require_slug("task", as_task)
    with one_line_errors("interrupted; the store is as it was"):
        opened = ArtifactStore(store)
        with _megabytes("unpacking", quiet) as bar:
            found = take_in(opened, file, as_task=as_task, on_size=bar.start, on_bytes=bar.advance)
        for each in found:
            note = "" if each.is_new else " was there already"
            stdout.print(f"{each.task}/{each.version}{note}", soft_wrap=True)
        for task in dict.fromkeys(each.task for each in found):
            newest = [each.version for each in found if each.task == task][-1]
            stdout.print(f"{task}: {_which_is_current(opened, task, newest)}", soft_wrap=True)


@app.command(epilog="**Examples**\n\n`glora prune --dry-run`\n\n`glora prune`")
def prune(
    store: Store = Path("artifacts"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove backbones that no version uses, and cached graphs that no export would read."""
    with one_line_errors():
        found = remove_unused(ArtifactStore.open(store), dry_run=dry_run)
        for each in found:
            what = "kept, it is in use" if each.in_use else "would go" if dry_run else "removed"
            stdout.print(f"{each.path}: {_mb(each.size_bytes)} MB, {what}", soft_wrap=True)
        total = sum(each.size_bytes for each in found if not each.in_use)
        verb = "would free" if dry_run else "freed"
        stdout.print(f"{store}: {verb} {_mb(total)} MB", soft_wrap=True)


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
    current = None
    with suppress(StoreError):
        current = store.current(task)
    force = " --force" if version == current else ""
    return f"glora remove {task} {version}{force}{store_option(store.root)}"


def _which_is_current(store: ArtifactStore, task: str, version: str) -> str:
    """What answers for a task that was just unpacked, and how to let a version of it answer."""
    try:
        current = store.current(task)
    except NotInStoreError:
        return "was removed meanwhile"
    if current:
        return f"{current} is current"
    return f"none is current. Make one so: glora use {task} {version}{store_option(store.root)}"


class _Bar:
    """A bar in megabytes that appears once the size is known."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._title, self._done = progress, title, 0
        self._bar: TaskID | None = None

    def start(self, size_bytes: int) -> None:
        total, self._done = math.ceil(size_bytes / MEGABYTE), 0
        if self._bar is None:
            self._bar = self._progress.add_task(self._title, total=total, note="MB")
        else:  # it starts anew
            self._progress.reset(self._bar, total=total)

    def advance(self, size_bytes: int) -> None:
        self._done += size_bytes
        if self._bar is not None:
            self._progress.update(self._bar, completed=math.ceil(self._done / MEGABYTE))


@contextmanager
def _megabytes(title: str, quiet: bool) -> Iterator[_Bar]:
    with progress_bars(quiet=quiet) as progress:
        yield _Bar(progress, title)


def _task_and_version(text: str) -> tuple[str, str | None]:
    """``digits`` or ``digits/v2``.

    Raises:
        typer.BadParameter: If it is neither.
    """
    task, slash, version = text.partition("/")
    with wrong_usage_of("TASK"):
        require_slug("task", task)
        if slash:
            require_slug("version", version)
    return task, version if slash else None


def _artifacts(store: ArtifactStore, task: str) -> Iterator[Artifact]:
    """Every version of a task, but for those that another process removes meanwhile."""
    with suppress(NotInStoreError):
        for version in store.versions(task):
            with suppress(NotInStoreError):
                yield store.get(task, version)


def _rows(store: ArtifactStore, task: str) -> Iterator[tuple[str, ...]]:
    try:
        current = store.current(task)
    except NotInStoreError:  # removed meanwhile
        return
    for artifact in _artifacts(store, task):
        training = artifact.manifest.training
        accuracy = training.test_accuracy
        yield (
            f"{task}/{artifact.version}{'*' if artifact.version == current else ''}",
            training.method,
            "" if accuracy is None else f"{accuracy:.1%}",
            f"{artifact.manifest.n_parameters:,}",
            _mb(artifact.manifest.adapter.size_bytes),
            _merged_mb(store, artifact),
            _parity(store, artifact),
        )


def _merged_mb(store: ArtifactStore, artifact: Artifact) -> str:
    size_bytes = _merged_bytes(store, artifact)
    return _mb(size_bytes) if size_bytes else "unknown"


def _merged_bytes(store: ArtifactStore, artifact: Artifact) -> int:
    """Bytes of the merged fp32 network; 0 if the store does not keep its backbone."""
    try:
        backbone = store.backbone_path(artifact.manifest.backbone.fingerprint)
    except StoreError:
        return 0
    weights = _size_bytes(backbone / BACKBONE_WEIGHTS)
    return weights + 4 * artifact.manifest.n_head_parameters if weights else 0


def _size_bytes(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _parity(store: ArtifactStore, artifact: Artifact) -> str:
    """For each export, its verdict and largest error, a line each: ``fp32 3e-06``."""
    found = []
    for precision in get_args(Precision):
        folder = store.export_dir(artifact, precision)
        if not folder.is_dir():
            continue
        try:
            record = ExportRecord.read(folder)
            report = record.report(folder) if record else None
        except (ArtifactError, OSError):  # one damaged export must not hide the rest of the store
            record = None
        if record is None:
            # It may have been removed meanwhile.
            found += [f"{precision} damaged"] if folder.is_dir() else []
            continue
        if record.adapter_sha256 != artifact.manifest.adapter.sha256:
            found.append(f"{precision} of another delta")
            continue
        if report is None:
            continue
        errors = [c.error for step in report.steps for c in step.comparisons[:1]]
        verdict = f"{max(errors, default=0):.0e}" if report.passed else "FAIL"
        found.append(f"{precision} {verdict}")
    return "\n".join(found) or "not exported"


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / MEGABYTE:,.2f}"


def main() -> None:
    """Entry point of ``glora``."""
    app(prog_name="glora")
