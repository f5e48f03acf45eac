"""What is wrong with a request, and which of its settings is to blame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SettingError(ValueError):
    """A setting that cannot be meant, or that would do nothing.

    Args:
        message: What is wrong, whole.
        settings: Fields of the configuration that are to blame.
    """

    def __init__(self, message: str, *settings: str) -> None:
        super().__init__(message)
        self.settings = settings


@contextmanager
def blamed_on(*settings: str) -> Iterator[None]:
    """Turn a ``ValueError`` of the library into one that names the settings to blame.

    Raises:
        SettingError: For a ValueError.
    """
    try:
        yield
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(str(error), *settings) from error
