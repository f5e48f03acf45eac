"""Load a task by a short text: a built-in name, a folder of images, or lists of files.

=================  ==============================================================================
``digits``, ...    a built-in task (``glora_deploy.data.built_in_tasks``)
``folder:PATH``    ``PATH/{train,val,test}/CLASS/*.jpg``; without val, a fifth of train is drawn;
                   ``PATH/CLASS/*.jpg`` alone is split 60/20/20
``lists:PATH``     ``PATH/train.txt``, ``val.txt`` (else a fifth of train is drawn), ``test.txt``
``vtab:PATH``      VTAB-1K as NOAH lays it out: ``train800.txt``, ``val200.txt``, ``test.txt``
=================  ==============================================================================

A folder or lists may end in ``?split=train=...,val=...,test=...``, which says where each split
comes from (``spec``). A list line is a file relative to PATH, a space and a label from 0.
``PATH/classes.txt``, where it exists, names the classes, one a line. Draws are stratified by class
and fixed by the seed. docs/data.md draws every layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import DataError
from .built_in_tasks import BUILT_IN_TASKS
from .folders import load_folder
from .image_set import ImageSet, TaskData
from .lists import load_lists
from .spec import DataSpec

__all__ = ["ImageSet", "TaskData", "load_task"]

KINDS = ("folder", "lists", "vtab")


def load_task(
    spec: str, *, seed: int, skipped: Mapping[str, Sequence[int]] | None = None
) -> TaskData:
    """Load a task; images in files are read later, one by one.

    Args:
        spec: A built-in name, ``folder:PATH``, ``lists:PATH`` or ``vtab:PATH``, the middle two
            also with ``?split=...``.
        seed: Draws the built-in tasks, and the splits that a folder or list does not fix.
        skipped: Images to leave out once the splits are drawn, as ``check`` told and a
            manifest keeps them: their places by the name of the split.

    Raises:
        DataError: If the text names nothing known, or the files are missing or malformed.
        MissingDependencyError: If a built-in task needs scikit-learn and it is not installed.
    """
    task = _load(spec, seed)
    return task.without(skipped) if skipped else task


def _load(spec: str, seed: int) -> TaskData:
    if spec in BUILT_IN_TASKS:
        return BUILT_IN_TASKS[spec](seed)
    kind, colon, _ = spec.partition(":")
    if not colon or kind not in KINDS:
        raise DataError(
            f"data: a task must be one of {', '.join(BUILT_IN_TASKS)}, or folder:PATH, "
            f"lists:PATH or vtab:PATH, got {spec!r}"
        )
    data = DataSpec.parse(spec)
    return (load_folder if data.kind == "folder" else load_lists)(spec, data, seed)
