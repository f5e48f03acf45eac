"""Who may ask, and who may change what is served: two tokens that know nothing of each other."""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Realm: TypeAlias = Literal["inference", "management"]
Verdict: TypeAlias = Literal["allowed", "off", "missing", "wrong"]

MIN_CHARS = 8


def is_strong(token: str) -> bool:
    """Whether it can be a token: nobody guesses it, and a header can hold it."""
    return len(token) >= MIN_CHARS and token.isascii() and token.isprintable()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a client must show in ``authorization``."""

    inference: str | None = field(default=None, repr=False)
    """For everything that changes nothing; None lets anyone."""
    management: str | None = field(default=None, repr=False)
    """For loading, unloading, pinning; None lets nobody. Allows inference too."""

    def __post_init__(self) -> None:
        for name in ("inference", "management"):
            token = getattr(self, name)
            if token is not None and not is_strong(token):
                raise ValueError(
                    f"the {name} token must be {MIN_CHARS} or more printable ASCII characters"
                )
        if self.inference is not None and self.inference == self.management:
            raise ValueError("the inference and the management token must differ")

    def verdict(self, realm: Realm, authorization: str | None) -> Verdict:
        """Whether a request may go on.

        Args:
            realm: What it wants.
            authorization: The header or the metadata of this name: ``Bearer TOKEN``, or ``Basic``
                with the token as its password.
        """
        if realm == "management" and self.management is None:
            return "off"
        if realm == "inference" and self.inference is None:
            return "allowed"
        shown = _token_of(authorization)
        if shown is None:
            return "missing"
        accepted = [self.management] if realm == "management" else [self.inference, self.management]
        # Every comparison is made, so that time tells nothing about which failed.
        matches = [
            hmac.compare_digest(shown.encode(), token.encode()) for token in accepted if token
        ]
        return "allowed" if any(matches) else "wrong"


def _token_of(authorization: str | None) -> str | None:
    scheme, _, rest = (authorization or "").partition(" ")
    rest = rest.strip()
    match scheme.lower():
        case "bearer":
            return rest or None
        case "basic":
            try:
                user_and_password = base64.b64decode(rest, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError, ValueError):
                return None
            return user_and_password.partition(":")[2] or None
    return None
