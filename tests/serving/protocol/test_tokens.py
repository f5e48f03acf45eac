"""Tokens: one to ask, one to change what is served."""

from __future__ import annotations

import base64

import pytest

from glora_deploy.serving.protocol.tokens import Realm, Tokens, Verdict

BOTH = Tokens(inference="asking-token", management="changing-token")


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("tokens", "realm", "shown", "verdict"),
    [
        (Tokens(), "inference", None, "allowed"),
        (Tokens(), "management", "Bearer anything", "off"),
        (Tokens(inference="asking-token"), "management", "Bearer asking-token", "off"),
        (BOTH, "inference", None, "missing"),
        (BOTH, "inference", "Bearer asking-token", "allowed"),
        (BOTH, "inference", "bearer  asking-token", "allowed"),
        (BOTH, "inference", basic("anyone:asking-token"), "allowed"),
        (BOTH, "inference", "Bearer changing-token", "allowed"),
        (BOTH, "inference", "Bearer asking-tokens", "wrong"),
        (BOTH, "inference", "Bearer äöü", "wrong"),
        (BOTH, "inference", "Bearer ", "missing"),
        (BOTH, "inference", "Basic !", "missing"),
        (BOTH, "inference", basic("asking-token"), "missing"),
        (BOTH, "inference", "asking-token", "missing"),
        (BOTH, "management", "Bearer asking-token", "wrong"),
        (BOTH, "management", "Bearer changing-token", "allowed"),
    ],
)
def test_who_may_go_on(tokens: Tokens, realm: Realm, shown: str | None, verdict: Verdict) -> None:
    assert tokens.verdict(realm, shown) == verdict


@pytest.mark.parametrize("token", ["", "short", "with\nbreak", "schlüssel-lang"])
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="inference token must be 8 or more"):
        Tokens(inference=token)


def test_one_token_for_both_is_refused() -> None:
    with pytest.raises(ValueError, match="must differ"):
        Tokens(inference="same-token", management="same-token")


def test_a_token_is_never_printed() -> None:
    assert "token'" not in repr(BOTH)
    assert "asking" not in repr(BOTH)
