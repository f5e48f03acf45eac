from __future__ import annotations

from pathlib import Path

import pytest

from glora_deploy.data.spec import DataSpec, Splits, with_splits
from glora_deploy.errors import DataError

USUAL = "train=train,val=0.2,test=val"


def test_a_spec_names_a_folder_and_its_splits(tmp_path: Path) -> None:
    spec = with_splits(f"folder:{tmp_path}", USUAL)
    assert spec == f"folder:{tmp_path}?split={USUAL}"
    splits = Splits(train="train", val=0.2, test="val")
    assert DataSpec.parse(spec) == DataSpec("folder", tmp_path, splits)
    assert DataSpec.parse(f"vtab:{tmp_path}") == DataSpec("vtab", tmp_path, None)


def test_splits_are_read_as_they_are_written() -> None:
    splits = Splits(train=".", val="held out/a", test=0.25)
    assert Splits.parse(str(splits)) == splits
    assert Splits.parse("test=./b/,train=a//c,val=0.5") == Splits(train="a/c", val=0.5, test="b")


def test_question_marks_and_percents_in_names_survive(tmp_path: Path) -> None:
    root = tmp_path / "what?"
    root.mkdir()
    spec = with_splits(f"folder:{root}", "train=50%?,val=0.2,test=100%25")
    assert DataSpec.parse(spec).splits == Splits(train="50%?", val=0.2, test="100%25")
    assert DataSpec.parse(f"folder:{root}") == DataSpec("folder", root, None)


def test_a_folder_that_is_called_like_an_option_is_a_folder(tmp_path: Path) -> None:
    root = tmp_path / f"a?split={USUAL}"
    root.mkdir()
    assert DataSpec.parse(f"folder:{root}") == DataSpec("folder", root, None)


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("train=a,val=0.3", "train=a,val=0.3,test=0.2"),
        ("val=2", "train=.,val=0.2,test=0.2"),
        ("val=0.9,test=0.9", "train=.,val=0.2,test=0.2"),
        ("train=../up", "train=.,val=0.2,test=0.2"),
        ("nonsense", "train=train,val=0.2,test=0.2"),
    ],
)
def test_the_example_that_a_refusal_gives_is_no_nonsense(text: str, example: str) -> None:
    with pytest.raises(DataError) as refused:
        Splits.parse(text)
    assert f"such as {example}, where" in str(refused.value)
    Splits.parse(example)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=a,val=0.2", "must give train, val and test once each"),
        ("train=a,val=0.2,test=b,test=c", "must give train, val and test once each"),
        ("", "must give train, val and test once each"),
        ("train=0.6,val=0.2,test=0.2", "train must be a folder or list, got the share 0.6"),
        ("train=a,val=0,test=b", "val must be a share above 0 and below 1, got 0"),
        ("train=a,val=b,test=1.0", r"test must be a share .* A folder .* is written ./1.0"),
        ("train=a,val=nan,test=b", "val must be a share above 0 and below 1, got nan"),
        ("train=a,val=0.5,test=0.5", "the shares must leave something for train"),
        ("train=a,val=b,test=./a", "the three must be different places"),
        ("train=a,val=b/,test=b", "the three must be different places"),
        ("train=../a,val=0.2,test=b", r"train must be a place below PATH, got '../a'"),
        ("train=a,val=/b,test=c", "val must be a place below PATH"),
        ("train=a,val=,test=c", "val must be a place below PATH, got ''"),
    ],
)
def test_a_malformed_choice_of_splits_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"split: {message}"):
        with_splits(f"folder:{tmp_path}", text)
    with pytest.raises(DataError, match=message):
        DataSpec.parse(f"folder:{tmp_path}?split={text}")


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("train=nix", "train=nix,val=0.2,test=0.2"),
        ("val=0.3,test=b", "train=train,val=0.3,test=b"),
        ("train", "train=train,val=0.2,test=0.2"),
        ("0.2", "train=train,val=0.2,test=0.2"),
        ("train=a,train=b", "train=b,val=0.2,test=0.2"),
    ],
)
def test_what_a_choice_of_splits_lacks_is_filled_in(text: str, example: str) -> None:
    with pytest.raises(DataError, match=r"Give all three, such as \S+, where a number") as caught:
        Splits.parse(text)
    offered = str(caught.value).partition("such as ")[2].partition(", where")[0]
    assert offered == example
    Splits.parse(offered)


@pytest.mark.parametrize("spec", ["digits", "vtab:/tmp", "folder"])
def test_splits_go_with_folders_and_lists_only(spec: str) -> None:
    with pytest.raises(DataError, match=r"goes with folder:PATH or lists:PATH, got"):
        with_splits(spec, USUAL)


def test_splits_are_given_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be given once"):
        with_splits(with_splits(f"folder:{tmp_path}", USUAL), USUAL)


def test_vtab_has_splits_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vtab has its own splits.*lists:.*train800.txt"):
        DataSpec.parse(f"vtab:{tmp_path}?split={USUAL}")


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"what follows \? must be split=..., got 'splits=a'"):
        DataSpec.parse(f"folder:{tmp_path}?splits=a")


def test_a_path_that_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"PATH must be UTF-8.*got '/tmp/caf\\udce9'"):
        DataSpec.parse("folder:/tmp/caf\udce9")
