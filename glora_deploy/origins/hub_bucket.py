"""An origin in a model repository on the Hugging Face Hub; a publication is one commit.

The endpoint and the token are huggingface_hub's own: HF_ENDPOINT, HF_TOKEN, ``hf auth login``.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from ..errors import ArtifactError, OriginError
from ..store.manifest_fields import FileRecord
from .address import repo_and_branch
from .bucket import MissingObjectError, Object

T = TypeVar("T")

_CONFLICT = 412
_PAUSE_S = 0.5
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that another attempt may not meet."""
# Requests that never got an answer raise the HTTP library's own errors. Which library that is
# differs between releases of huggingface_hub, but its error is always the first base here.
_NO_ANSWER: type[Exception] = HfHubHTTPError.__bases__[0]


class HubBucket:
    """A branch of a model repository.

    What is uploaded becomes visible with the next write, in the one commit that makes it. The
    repository, a private one, is made by the first.

    Args:
        url: ``hf://USER/REPO`` or ``hf://USER/REPO@BRANCH``.
        retries: How often a request is made anew after a connection that broke or an answer of
            500 and above.

    Raises:
        OriginError: If the address is none.
    """

    def __init__(self, url: str, *, retries: int = 5) -> None:
        self.url = url.rstrip("/")
        self._repo, self._branch = repo_and_branch(url)
        self._retries = retries
        endpoint = os.environ.get("HF_ENDPOINT") or None
        self._api = HfApi(endpoint=endpoint, library_name="glora-deploy")
        self._commit: str | None = None
        """Of the last read: what its index names is there."""
        self._staged: dict[str, CommitOperationAdd] = {}

    def read(self, name: str, limit: int, *, unless: str | None = None) -> Object | None:
        """As ``Bucket.read``; the ``e_tag`` is the commit's, so any commit makes it another."""
        try:
            commit = self._ask(
                name, lambda: self._api.model_info(self._repo, revision=self._branch)
            )
        except MissingObjectError:
            self._commit = None
            raise
        if commit.sha == unless:
            return None
        self._commit = commit.sha
        size = self._size(name)
        if size is None:
            raise MissingObjectError(f"{self.url}/{name}: must be there, there is no such file")
        if size > limit:
            raise ArtifactError(f"{self.url}/{name}: must have at most {limit} bytes, got {size}")
        with TemporaryDirectory(prefix="glora-") as folder:
            return Object(self._fetched(name, Path(folder)).read_bytes(), str(commit.sha))

    def write(self, name: str, data: bytes, *, instead_of: Object | None) -> bool:
        """As ``Bucket.write``."""
        operations = [*self._staged.values(), CommitOperationAdd(name, data)]
        parent = self._commit if instead_of is None else instead_of.e_tag

        def commit() -> None:
            self._api.create_commit(
                self._repo,
                operations,
                commit_message="Publish",
                revision=self._branch,
                parent_commit=parent,
            )

        self._make_repo()
        try:
            self._ask(name, commit)
        except OriginError as error:
            cause = error.__cause__
            if isinstance(cause, HfHubHTTPError) and cause.response.status_code == _CONFLICT:
                return False
            raise
        self._staged.clear()
        return True

    def upload(self, name: str, source: Path | bytes, record: FileRecord) -> bool:
        """As ``Bucket.upload``; large files are sent now, and named by the next write."""
        if name in self._staged or self._size(name) == record.size_bytes:
            return False
        self._make_repo()
        added = CommitOperationAdd(name, source if isinstance(source, bytes) else str(source))
        self._ask(
            name,
            lambda: self._api.preupload_lfs_files(
                self._repo, [added], revision=self._branch, free_memory=False
            ),
        )
        self._staged[name] = added
        return True

    def download(
        self,
        name: str,
        path: Path,
        record: FileRecord,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        """As ``Bucket.download``; whether to give up is asked before a file, not within one."""
        where = f"{self.url}/{name}"
        if leaving():
            raise OriginError(f"{where}: given up")
        size = self._size(name)
        if size is None:
            raise MissingObjectError(f"{where}: must be there, there is no such file")
        if size == record.size_bytes:
            beside = path.with_name(f".{path.name}.coming")
            try:
                fetched = self._fetched(name, beside)
                found = FileRecord.of_file(fetched)
                if found == record:
                    fetched.rename(path)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        else:
            found = FileRecord(sha256="0" * 64, size_bytes=size)
        record.require_equal(found, where, "the index", "Publish the version again.")

    def _fetched(self, name: str, folder: Path) -> Path:
        """A file of the commit that was last read, in a folder of its own.

        The Hub's cache would keep it a second time.
        """
        commit = self._commit
        path = self._ask(
            name,
            lambda: self._api.hf_hub_download(self._repo, name, revision=commit, local_dir=folder),
        )
        return Path(path)

    def _size(self, name: str) -> int | None:
        """Of a file in the commit that was last read; None if it is not there."""
        if self._commit is None:
            return None
        found = self._ask(
            name, lambda: self._api.get_paths_info(self._repo, [name], revision=self._commit)
        )
        sizes = [each.size for each in found if isinstance(each, RepoFile) and each.path == name]
        return sizes[0] if sizes else None

    def _make_repo(self) -> None:
        if self._commit is not None:
            return

        def make() -> None:
            self._api.create_repo(self._repo, private=True, exist_ok=True)
            if self._branch != "main":
                self._api.create_branch(self._repo, branch=self._branch, exist_ok=True)

        self._ask("the repository", make)
        found = self._ask(
            "the repository", lambda: self._api.model_info(self._repo, revision=self._branch)
        )
        self._commit = found.sha

    def _ask(self, name: str, request: Callable[[], T]) -> T:
        """Make a request, again where that may help; its failure is one line.

        Raises:
            MissingObjectError: If the repository, its branch or the file is not there.
            OriginError: If it is refused, or not answered.
        """
        where = f"{self.url}/{name}"
        for attempt in range(self._retries + 1):
            try:
                return request()
            except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
                raise MissingObjectError(
                    f"{where}: must be there, and visible with the token that is set"
                ) from error
            except (OSError, RuntimeError, ValueError, _NO_ANSWER) as error:
                if isinstance(error, OSError) and error.filename is not None:
                    raise  # of a local file
                if attempt == self._retries or not _may_pass(error):
                    said = " ".join(str(error).split())[:300] or type(error).__name__
                    raise OriginError(f"{where}: the Hub could not be asked: {said}") from error
                time.sleep(_PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    return not isinstance(error, ValueError | LocalTokenNotFoundError)
