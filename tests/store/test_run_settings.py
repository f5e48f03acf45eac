from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, strategies as st

from glora_deploy.errors import ArtifactError
from glora_deploy.store.run_settings import (
    read_settings,
    renamed_settings,
    shared_settings,
    write_settings,
)

VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs",))),
    st.lists(st.text(st.characters(exclude_categories=("Cs",)))),
    st.lists(st.integers(-(2**62), 2**62)),
)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z-]{0,9}", fullmatch=True), VALUES))
def test_any_setting_is_read_as_it_was_written(settings: dict[str, Any]) -> None:
    data = write_settings(settings)
    assert tomllib.loads(data.decode()) == read_settings(data, "run.toml") == settings


@pytest.mark.parametrize(
    ("settings", "shared"),
    [
        ({"data": "digits", "seed": 1}, {"data": "digits", "seed": 1}),
        (
            {"data": "folder:/home/ann/acme", "split": "train=acme,val=0.2,test=b", "lr": 0.1},
            {"data": "folder", "lr": 0.1},
        ),
        ({"checkpoint": "/home/ann/dino.pth#teacher"}, {"checkpoint": "dino.pth#teacher"}),
        ({"checkpoint": r"C:\\ann\\dino.pth"}, {"checkpoint": "dino.pth"}),
        ({"checkpoint": "random:3"}, {"checkpoint": "random:3"}),
    ],
)
def test_what_others_see_names_no_place(settings: dict[str, Any], shared: dict[str, Any]) -> None:
    assert read_settings(shared_settings(write_settings(settings)), "") == shared


def test_another_name_is_another_task_of_the_same_settings() -> None:
    data = write_settings({"task": "pets", "lr": 0.1})
    assert read_settings(renamed_settings(data, "dogs"), "") == {"task": "dogs", "lr": 0.1}


@pytest.mark.parametrize("data", [b"task = ", b"a = 1\na = 2\n", b"\xff"])
def test_what_is_no_toml_is_named(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"mine.toml: must be TOML: "):
        read_settings(data, "mine.toml")
