"""A folder of the user's that holds one export, replaced whole or not at all.

A graph and the weights beside it belong together: with one file of another version, precision or
task the graph would load and answer for neither. So everything is copied beside the folder first,
and the two are exchanged in one step where the system can. It must not import ONNX or torch: what
cannot be written is refused before minutes go into an export.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from glora_deploy.errors import ArtifactError, StoreError
from glora_deploy.parity import PARITY_FILE, Report
from glora_deploy.store.atomic_files import flush, flush_tree, replace_folder, scratch_folder, sweep
from glora_deploy.store.export_record import FILES, WEIGHTS_FILE
from glora_deploy.store.reader import EXPORT_RECORD

NAMES = frozenset(
    {EXPORT_RECORD, PARITY_FILE, WEIGHTS_FILE, *(Path(n).name for f in FILES.values() for n in f)}
)
"""All that such a folder may hold: the files of every format, without their folders."""

_ATTEMPTS = 100


def require_replaceable(out: Path) -> None:
    """Check that a folder is missing, empty, or what an export wrote, and can be replaced whole.

    Raises:
        StoreError: If it is not; says what to do.
    """
    place = out.resolve()
    if not os.path.lexists(place):
        return
    if not place.is_dir():
        raise StoreError(f"{out}: --out must be a folder, a file is in the way")
    if fixed := _why_fixed(place):
        raise _FixedError(out, fixed)
    present = sorted(entry.name for entry in place.iterdir())
    if present and (foreign := _not_exported(place, present)):
        raise StoreError(
            f"{out}: --out must hold one export and nothing else, since it is replaced whole, got "
            f"{foreign}. Give a new folder, or move what is in it away."
        )


def require_no_export(repository: Path) -> None:
    """Check that the folder of a model repository is not one that holds a single export.

    Raises:
        StoreError: If it is.
    """
    if (repository / PARITY_FILE).exists():
        raise StoreError(
            f"{repository}: must be a model repository, got an export that --out wrote. Give "
            "another --out, or move it away."
        )


def write_out(
    files: Mapping[str, Path], out: Path, more: Mapping[str, bytes] | None = None
) -> list[Path]:
    """Make a folder hold copies of these files and nothing else.

    Args:
        files: Name in the folder to the file that it is a copy of.
        out: The folder; made, with those above it, if it is missing.
        more: Name to content of further files.

    Returns:
        The copies, and the further files.

    Raises:
        StoreError: As :func:`require_replaceable`; the folder is then as it was.
        OSError: If it cannot be written; likewise.
    """
    require_replaceable(out)
    place = out.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"{out}: --out must be a folder, a file is in the way") from error
    with scratch_in(place.with_name(f".{place.name}.new")) as scratch:
        new = scratch / place.name
        new.mkdir()
        if place.exists():
            shutil.copymode(place, new)
        for name, original in files.items():
            shutil.copyfile(original, new / name)
        for name, content in (more or {}).items():
            (new / name).write_bytes(content)
        flush_tree(new)
        require_replaceable(out)  # it may have got other files since
        _replace(new, place, out)
        flush(place.parent)
    return [out / name for name in (*files, *(more or {}))]


@contextmanager
def scratch_in(parent: Path) -> Iterator[Path]:
    """A new folder in a folder for such, both removed at the end."""
    sweep(parent)
    try:
        with ExitStack() as stack:
            yield _enter_scratch(stack, parent)
    finally:
        with suppress(OSError):  # what another process has in it is there
            parent.rmdir()


def _enter_scratch(stack: ExitStack, parent: Path) -> Path:
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):  # another process has just removed the parent
            return stack.enter_context(scratch_folder(parent))
    return stack.enter_context(scratch_folder(parent))


class _FixedError(StoreError):
    """The folder cannot be exchanged with another."""

    def __init__(self, out: Path, reason: str) -> None:
        super().__init__(
            f"{out}: --out must be a folder that can be replaced whole, it {reason}. Give one "
            f"inside it, such as {out / 'export'}."
        )


def _why_fixed(place: Path) -> str:
    if place == Path.cwd():
        return "is the current folder"
    if os.path.ismount(place):
        return "has a file system mounted on it"
    if not os.access(place.parent, os.W_OK):
        return "lies in a folder that cannot be written"
    return ""


def _not_exported(place: Path, present: Sequence[str]) -> str:
    """What shows that no export wrote all of a folder; empty if nothing does."""
    foreign = [name for name in present if name not in NAMES or not (place / name).is_file()]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        return f"{foreign[0]}{more}"
    try:
        Report.from_json((place / PARITY_FILE).read_bytes(), PARITY_FILE)
    except (ArtifactError, FileNotFoundError):
        return f"{present[0]} without the {PARITY_FILE} of an export"
    return ""


def _replace(new: Path, place: Path, out: Path) -> None:
    try:
        replace_folder(new, place)
    except OSError as error:
        if error.errno != errno.EBUSY:  # a folder mounted from the same file system shows only here
            raise
        raise _FixedError(out, "is in use as a whole, as a mounted one is") from error
