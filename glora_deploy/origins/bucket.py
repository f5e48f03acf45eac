"""What an origin must be able to do, wherever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import OriginError
from ..store.manifest_fields import FileRecord
from .address import is_on_hub


@dataclass(frozen=True, slots=True)
class Object:
    """A small object, read whole."""

    data: bytes
    e_tag: str


class MissingObjectError(OriginError):
    """The origin has no object of this name."""


class Bucket(Protocol):
    """Objects by name, below the address of an origin."""

    url: str
    """Its address."""

    def read(self, name: str, limit: int, *, unless: str | None = None) -> Object | None:
        """A small object.

        Args:
            name: Of it.
            limit: Most bytes.
            unless: The ``e_tag`` of what is known already.

        Returns:
            None if it is still the one that is known.

        Raises:
            MissingObjectError: If there is none.
            OriginError: If the origin refuses, or cannot be reached.
            ArtifactError: If it is larger than ``limit``.
        """
        ...

    def write(self, name: str, data: bytes, *, instead_of: Object | None) -> bool:
        """Write a small object if it still is what it was when it was read.

        What was uploaded before is visible from then on, if it was not at once.

        Args:
            name: Of it.
            data: Its new content.
            instead_of: What was read; None if there was no object.

        Returns:
            Whether it was written; False if somebody else was quicker.

        Raises:
            OriginError: If the origin refuses, or cannot be reached.
        """
        ...

    def upload(self, name: str, source: Path | bytes, record: FileRecord) -> bool:
        """Write an object whose name follows from its content, unless it is there.

        Returns:
            Whether it was written.

        Raises:
            OriginError: If the origin refuses, or cannot be reached.
        """
        ...

    def download(
        self,
        name: str,
        path: Path,
        record: FileRecord,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        """Write an object into a new file, once every byte is what the index states.

        Args:
            name: Of the object.
            path: Of the file; its folder exists.
            record: What it must be. Of a larger object no more than this is read.
            leaving: Whether to give up; asked now and then.

        Raises:
            MissingObjectError: If there is none.
            ArtifactError: If it is another one.
            OriginError: If the origin refuses, cannot be reached, or it was given up.
        """
        ...


def open_bucket(url: str, *, retries: int = 5) -> Bucket:
    """The origin at an address.

    Args:
        url: As ``address.require_address`` takes it.
        retries: How often a request is made anew after a connection that broke or an answer of
            500 and above.

    Raises:
        OriginError: If the address is none.
        MissingDependencyError: If the package that speaks to it is not installed.
    """
    if is_on_hub(url):
        from .hub_bucket import HubBucket

        return HubBucket(url, retries=retries)
    from .s3_bucket import S3Bucket

    return S3Bucket(url, retries=retries)
