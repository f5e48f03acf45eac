"""A disk that fills up while something is written to it, said in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import GloraDeployError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def space_for(
    what: str, place: Path, whole: str, refusal: type[GloraDeployError]
) -> Iterator[None]:
    """Turn what the system says of a full disk, or of a quota, into a refusal.

    Args:
        what: Is written in the block.
        place: Written to.
        whole: What lies there, such as a store. The block leaves it as it was if it fails.
        refusal: Raised.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise refusal(
            f"{place}: no space left to write {what} ({error.strerror}); the {whole} is as it was. "
            "Free some space and try again."
        ) from error
