"""The Hugging Face Hub's client with bounded patience, its failures turned into one clear line."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
    validate_repo_id,
)

from glora_deploy.errors import HubError

T = TypeVar("T")

DELAYS_S = (1.0, 4.0, 15.0)
"""Seconds between attempts; one more attempt than delays."""
LOG_IN = "Log in with 'hf auth login', or set HF_TOKEN"

_PASSING = frozenset({408, 412, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that another attempt may not meet; 412: someone else committed in between."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_BRANCH = re.compile(r"[\x00-\x20\x7f~^:?*\[\\\"'`]|\.\.|//|/\.|@\{|^[-/.]|[/.]$|\.lock$|^$")
# Requests that never got an answer raise the HTTP library's own errors. Which library that is
# differs between releases of huggingface_hub, but its error is always the first base here.
_NO_ANSWER: type[Exception] = HfHubHTTPError.__bases__[0]


class HubClient:
    """One model repository on the Hub.

    Args:
        repo: ``user/name``.
        token: Access token; the one that is logged in by default.
        endpoint: Address of the Hub; ``HF_ENDPOINT`` by default.
        delays_s: Seconds to wait before each further attempt.
        on_step: Told about each further attempt.

    Raises:
        HubError: If ``repo`` is not the name of a model repository.
    """

    def __init__(
        self,
        repo: str,
        *,
        token: str | None = None,
        endpoint: str | None = None,
        delays_s: Sequence[float] = DELAYS_S,
        on_step: Callable[[str], None] = lambda _: None,
    ) -> None:
        require_model_repo(repo)
        self.repo = repo
        self.api = HfApi(endpoint=endpoint, token=token, library_name="glora-deploy")
        self._has_token = bool(token or get_token())
        self._delays_s = delays_s
        self._on_step = on_step

    def call(self, action: Callable[[HfApi], T]) -> T:
        """Run requests, again if the connection fails; the action must bear being repeated.

        Raises:
            HubError: If the Hub refuses, or does not answer after the last attempt.
            OSError: If a local file cannot be read or written.
        """
        for delay_s in (*self._delays_s, None):
            try:
                return action(self.api)
            except (OSError, EntryNotFoundError, RuntimeError, ValueError, _NO_ANSWER) as raised:
                error = _beneath(raised)
                if isinstance(error, OSError) and error.filename is not None:
                    raise  # of a local file
                if delay_s is None or not may_pass(error):
                    raise HubError(f"{self.repo}: {self._explain(error)}") from error
                self._on_step(f"{_one_line(error)}; trying again in {delay_s:g} s")
                time.sleep(delay_s)
        raise AssertionError("the last attempt returns or raises")

    def _explain(self, error: Exception) -> str:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        given = "one that the Hub refuses" if self._has_token else "none"
        match error:
            case GatedRepoError():
                page = f"{self.api.endpoint}/{self.repo}"
                return f"you must ask for access first, at {page}. {LOG_IN}."
            case RevisionNotFoundError():
                return "the revision must be a branch, tag or commit of the repository, none is."
            case RepositoryNotFoundError():
                seen = "your token" if self._has_token else "anyone without a token"
                return f"must be a model repository that {seen} can see, none is. {LOG_IN}."
            case LocalTokenNotFoundError():
                return f"needs a token, got none. {LOG_IN}."
            case _ if constants.HF_HUB_OFFLINE:
                return "must be in the local cache while HF_HUB_OFFLINE is set. Unset it."
            case _ if status == 401:
                return f"needs a valid token, got {given}. {LOG_IN}."
            case _ if status == 403:
                return "the token must be allowed to do this, it is not. Use one with write access."
            case EntryNotFoundError() if not may_pass(error):
                return f"a file must be there, it is not ({_one_line(error)})."
            case _ if may_pass(error):
                return f"the Hub did not answer ({_reason(error)}). Try again later."
            case _:
                return f"the Hub refused: {_one_line(error)}"


def fetch_file(api: HfApi, repo: str, name: str, revision: str | None) -> Path:
    """Bring one file into the local cache, of the commit that a revision stands for now.

    The client alone answers from its cache, so with any older commit, if the Hub cannot be reached
    or refuses the token. Here the cache is enough only for a full commit id, or while
    ``HF_HUB_OFFLINE`` is set. To be run by :meth:`HubClient.call`.

    Args:
        api: The client.
        repo: ``user/name``.
        name: Path of the file in the repository, ``/`` between parts.
        revision: Branch, tag or commit; the default branch if None.

    Returns:
        The folder of the whole commit in the cache; it has the name of the commit.
    """

    def fetch(at: str | None) -> Path:
        return Path(api.hf_hub_download(repo, name, revision=at)).parents[name.count("/")]

    if constants.HF_HUB_OFFLINE or (revision and _COMMIT.fullmatch(revision)):
        return fetch(revision)
    commit = api.model_info(repo, revision=revision).sha
    # Asked for by the revision's name, so that the cache knows offline what it stood for.
    folder = fetch(revision)
    return folder if folder.name == commit else fetch(commit)


def require_model_repo(repo: str) -> None:
    """Check that a text is the name of a model repository, ``user/name``.

    Raises:
        HubError: If it is not; names the rule.
    """
    kind = re.match(r"(datasets|spaces|kernels|buckets)/", repo)
    if kind and repo.count("/") > 1:
        raise HubError(f"{repo}: must be a model repository, got one of {kind[1]}. Give USER/NAME.")
    if repo.count("/") > 1:
        raise HubError(f"{repo!r}: must be USER/NAME, got {repo.count('/') + 1} parts")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(f"{repo!r}: must be USER/NAME, got: {_one_line(error)}") from error
    if repo.count("/") != 1:
        raise HubError(f"{repo!r}: must be USER/NAME, got no user or organisation")


def require_branch(repo: str, revision: str) -> None:
    """Check that a text can be the name of a branch: git's rules, and no quotes.

    Raises:
        HubError: If it cannot.
    """
    if _NO_BRANCH.search(revision):
        raise HubError(f"{repo}: the revision must be the name of a branch, got {revision!r}")


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    if isinstance(error, json.JSONDecodeError):  # a gateway's page instead of an answer
        return True
    refused = (ValueError, LocalTokenNotFoundError, OfflineModeIsEnabled)
    return not isinstance(error, refused) and not constants.HF_HUB_OFFLINE


def _beneath(error: Exception) -> Exception:
    """What made an upload fail; the client wraps it in a RuntimeError that says nothing."""
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, Exception) else error


def _reason(error: BaseException) -> str:
    """What lies at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
