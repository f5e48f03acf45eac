"""An origin in an S3 bucket: objects under a prefix, spoken to through obstore.

The endpoint and the credentials come from the usual variables: AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError, MissingDependencyError, OriginError
from ..store.manifest_fields import FileRecord
from .address import require_address
from .bucket import MissingObjectError, Object

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ObjectStore

_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
_KEY = "AWS_ACCESS_KEY_ID"
_ROLE_SERVICE = "http://169.254.169.254"
"""Asked by the library where no key is given; ``AWS_METADATA_ENDPOINT`` names another one."""
_CHUNK = 2**20
_STALLED = timedelta(seconds=30)
_WHOLE_REQUEST = timedelta(hours=1)


class S3Bucket:
    """A bucket, or a part of it below a prefix.

    Args:
        url: ``s3://BUCKET`` or ``s3://BUCKET/PREFIX``.
        retries: How often a request is made anew after a connection that broke or an answer of
            500 and above.

    Raises:
        OriginError: If the address is none.
        MissingDependencyError: If obstore is not installed.
    """

    def __init__(self, url: str, *, retries: int = 5) -> None:
        self.url = require_address(url).rstrip("/")
        try:
            from obstore.store import from_url
        except ModuleNotFoundError as error:
            raise MissingDependencyError("obstore", "s3", f"{self.url}: an origin") from error
        endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
        with self._asking("the address"):
            self._objects: ObjectStore = from_url(
                self.url,
                # A backbone takes as long as it takes, so long as bytes arrive.
                client_options={
                    "timeout": _WHOLE_REQUEST,
                    "read_timeout": _STALLED,
                    "allow_http": endpoint.startswith("http://"),
                },
                retry_config={"max_retries": retries, "retry_timeout": 2 * _STALLED},
            )

    def read(self, name: str, limit: int, *, unless: str | None = None) -> Object | None:
        """A small object, in one request.

        Args:
            name: Of it, below the prefix.
            limit: Most bytes.
            unless: The ``e_tag`` of what is known already.

        Returns:
            None if it is still the one that is known.

        Raises:
            MissingObjectError: If there is none.
            OriginError: If the bucket refuses, or cannot be reached.
            ArtifactError: If it is larger than ``limit``.
        """
        import obstore
        from obstore.exceptions import NotModifiedError

        with self._asking(name):
            try:
                got = obstore.get(
                    self._objects, name, options={"if_none_match": unless} if unless else {}
                )
                if got.meta["size"] > limit:
                    raise ArtifactError(
                        f"{self.url}/{name}: must have at most {limit} bytes, got "
                        f"{got.meta['size']}"
                    )
                return Object(bytes(got.bytes()), str(got.meta["e_tag"]))
            except NotModifiedError:
                return None

    def write(self, name: str, data: bytes, *, instead_of: Object | None) -> bool:
        """Write a small object if it still is what it was when it was read.

        Args:
            name: Of it.
            data: Its new content.
            instead_of: What was read; None if there was no object.

        Returns:
            Whether it was written; False if somebody else was quicker.

        Raises:
            OriginError: If the bucket refuses, or cannot be reached.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: PutMode = "create" if instead_of is None else {"e_tag": instead_of.e_tag}
        with self._asking(name):
            try:
                obstore.put(self._objects, name, data, mode=mode)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def upload(self, name: str, source: Path | bytes, record: FileRecord) -> bool:
        """Write an object whose name follows from its content, unless it is there.

        Returns:
            Whether it was written.

        Raises:
            OriginError: If the bucket refuses, or cannot be reached.
        """
        import obstore

        with self._asking(name):
            try:
                if obstore.head(self._objects, name)["size"] == record.size_bytes:
                    return False
            except FileNotFoundError:
                pass
            obstore.put(self._objects, name, source)
        return True

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
            leaving: Whether to give up; asked between two pieces.

        Raises:
            MissingObjectError: If there is none.
            ArtifactError: If it is another one.
            OriginError: If the bucket refuses, cannot be reached, or it was given up.
        """
        import obstore

        where, digest, n = f"{self.url}/{name}", hashlib.sha256(), 0
        with self._asking(name), path.open("xb") as file:
            got = obstore.get(self._objects, name)
            if got.meta["size"] == record.size_bytes:
                for piece in got.stream(min_chunk_size=_CHUNK):
                    if leaving():
                        raise OriginError(f"{where}: given up")
                    n += file.write(piece)
                    digest.update(piece)
            else:
                n = got.meta["size"]
        found = FileRecord(sha256=digest.hexdigest(), size_bytes=n)
        record.require_equal(found, where, "the index", "Publish the version again.")

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Turn what the library raises into one line that says what was asked for."""
        try:
            yield
        except FileNotFoundError as error:
            if error.filename is not None:  # a local file
                raise
            if "NoSuchBucket" in str(error):
                raise OriginError(f"{self.url}: must be a bucket that is there; make it") from error
            raise MissingObjectError(
                f"{self.url}/{name}: must be there, the bucket has no such object"
            ) from error
        except Exception as error:
            if not _is_of_library(error):
                raise
            said = str(error).partition("\n")[0][:300]
            asked = os.environ.get("AWS_METADATA_ENDPOINT", _ROLE_SERVICE)
            if asked in said and not os.environ.get(_KEY):
                said = f"{_KEY} must be set where the machine has no role of its own"
            raise OriginError(
                f"{self.url}/{name}: the bucket could not be asked: {said}"
            ) from error


def _is_of_library(error: Exception) -> bool:
    from obstore.exceptions import BaseError

    kinds: tuple[Any, ...] = (BaseError, TimeoutError, ConnectionError)
    return isinstance(error, kinds) or (type(error) is OSError and error.errno is None)
