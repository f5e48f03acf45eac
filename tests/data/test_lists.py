from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from glora_deploy.data.load import TaskData, load_task
from glora_deploy.errors import DataError
from image_files import write_classes, write_lists

LISTS = {
    "train.txt": "a/0.png 0\na/1.png 0\nb/0.png 1\nb/1.png 1\n",
    "val.txt": "a/2.png 0\nb/2.png 1\n",
    "test.txt": "a/3.png 0\nb/3.png 1\n",
}


def load(root: Path, **changes: str | None) -> TaskData:
    lists = LISTS | {f"{name}.txt": text for name, text in changes.items() if text is not None}
    for name, text in changes.items():
        if text is None:
            del lists[f"{name}.txt"]
    write_lists(root, lists)
    return load_task(f"lists:{root}", seed=0)


def test_how_lists_were_read_is_said_in_one_line(tmp_path: Path) -> None:
    assert load(tmp_path).notes == (
        f"lists:{tmp_path}: 2 classes, 4 train images (train.txt), 2 val images (val.txt), "
        "2 test images (test.txt)",
    )


SPELLINGS = ("./a/0.png", "a//0.png", "b/../a/0.png", "./b/./..//a/0.png")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_file_in_two_splits_is_seen_however_it_is_spelled(
    tmp_path: Path, spelling: str
) -> None:
    (tmp_path / "b").mkdir()
    message = r"train and test must share no image, got 1 in both, such as a/0.png"
    with pytest.raises(DataError, match=message):
        load(tmp_path, test=f"{spelling} 0\nb/3.png 1")
    with pytest.raises(DataError, match=message):
        load(tmp_path, test=f"{tmp_path}/a/0.png 0\nb/3.png 1")


@pytest.mark.parametrize("spelling", ["a/0.png", *SPELLINGS])
def test_an_image_with_two_labels_is_refused(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "b").mkdir()
    message = (
        rf"^{tmp_path}/train.txt: an image must have one label, got 0 for a/0.png in line 1 and "
        "1 in line 4$"
    )
    with pytest.raises(DataError, match=message):
        load(tmp_path, train=f"a/0.png 0\n\nb/0.png 1\n{spelling} 1\n")


def test_a_line_that_repeats_an_image_is_told(tmp_path: Path) -> None:
    task = load(tmp_path, train="a/0.png 0\nb/0.png 1\n./a/0.png 0\n")
    assert len(task.train) == 3
    assert task.notes[1:] == (
        f"{tmp_path}/train.txt: 1 line with the image of an earlier one, which then counts again",
    )


OVERSAMPLED = "".join(
    f"c/{i}.png {i % 2}\n" + f"./c/{i}.png {i % 2}\n" * (2 * (i % 2)) for i in range(20)
)
"""Ten images of either class; those of class 1 stand in three lines each."""


@pytest.mark.parametrize("split", [None, "train=train.txt,val=0.2,test=0.3"])
def test_every_line_of_an_image_goes_to_the_split_that_the_image_is_drawn_for(
    tmp_path: Path, split: str | None
) -> None:
    write_lists(tmp_path, LISTS | {"train.txt": OVERSAMPLED})
    (tmp_path / "val.txt").unlink()
    task = load_task(f"lists:{tmp_path}" + (f"?split={split}" if split else ""), seed=0)
    files = {name: Counter(i.removeprefix("./") for i in s.ids) for name, s in task.splits()}
    drawn = ("train", "val", "test") if split else ("train", "val")
    for name in drawn:
        assert set(files[name].values()) == {1, 3}
    sizes = {name: len(files[name]) for name in drawn}  # images, of either class alike
    assert sizes == ({"train": 10, "val": 4, "test": 6} if split else {"train": 16, "val": 4})
    assert sum(sum(files[name].values()) for name in drawn) == 40
    assert Counter(task.val.labels.tolist()) == {0: 2, 1: 6}


def test_lists_that_share_an_image_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got 1 in both, .*\. Take what they share out of one of"):
        load(tmp_path, val="a/0.png 0\na/0.png 0\nb/2.png 1\n")


def test_the_hash_of_the_splits_takes_names_as_the_lists_spell_them(tmp_path: Path) -> None:
    plain = load(tmp_path / "x")
    dotted = load(tmp_path / "y", train=LISTS["train.txt"].replace("a/", "./a/"))
    assert dotted.train.ids[0] == "./a/0.png"
    assert plain.splits_sha256 != dotted.splits_sha256


@pytest.mark.parametrize("name", ["train.txt", "classes.txt"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, name: str) -> None:
    expected = load(tmp_path, classes="cat\ndog\n")
    path = tmp_path / name
    path.write_bytes("\ufeff".encode() + path.read_bytes())
    task = load_task(f"lists:{tmp_path}", seed=0)
    assert task.classes == ("cat", "dog")
    assert task.splits_sha256 == expected.splits_sha256
    assert task.train.image(0).size == (6, 4)


def test_a_blank_line_among_class_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes.txt: line 2 must be a name, got a blank line"):
        load(tmp_path, classes="cat\n\ndog\n")


def test_blank_lines_after_the_class_names_do_no_harm(tmp_path: Path) -> None:
    assert load(tmp_path, classes="cat\ndog\n\n\n").classes == ("cat", "dog")


def test_labels_from_1_are_explained_where_the_names_tell(tmp_path: Path) -> None:
    from_1 = {
        name.removesuffix(".txt"): text.replace(" 1", " 2").replace(" 0", " 1")
        for name, text in LISTS.items()
    }
    message = "must name each of the labels 0 to 2, .*got 2 names.*count from 0; these .* from 1"
    with pytest.raises(DataError, match=message):
        load(tmp_path, classes="cat\ndog\n", **from_1)


def test_a_missing_test_list_is_refused_with_the_way_out(tmp_path: Path) -> None:
    train = "".join(f"c/{i}.png {i % 2}\n" for i in range(10))
    with pytest.raises(DataError, match=r"test.txt, got train.txt and val.txt alone") as caught:
        load(tmp_path, train=train, test=None)
    offered = str(caught.value).rpartition("--split ")[2]
    task = load_task(f"lists:{tmp_path}?split={offered}", seed=0)
    assert task.test.ids == ("a/2.png", "b/2.png")
    assert (len(task.train), len(task.val)) == (8, 2)


def test_lists_that_are_missing_are_named_with_those_that_are_there(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    message = (
        rf"^lists:{tmp_path}: needs the lists train.txt, test.txt, got no train.txt, test.txt: "
        rf"{tmp_path} has no list\. If .* one folder per class, try folder:{tmp_path}$"
    )
    with pytest.raises(DataError, match=message):
        load_task(f"lists:{tmp_path}", seed=0)
    write_lists(tmp_path, LISTS | {"classes.txt": "cat\ndog\n"})
    with pytest.raises(DataError, match=r"got no nix: .* has test.txt, train.txt, val.txt\.$"):
        load_task(f"lists:{tmp_path}?split=train=nix,val=0.2,test=test.txt", seed=0)
