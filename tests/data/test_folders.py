from __future__ import annotations

import os
import shlex
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from glora_deploy.data.load import TaskData, load_task
from glora_deploy.errors import DataError
from image_files import write_classes, write_image

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def load(root: Path, split: str | None = None) -> TaskData:
    return load_task(f"folder:{root}" + (f"?split={split}" if split else ""), seed=0)


def sizes(task: TaskData) -> tuple[int, int, int]:
    return len(task.train), len(task.val), len(task.test)


def every_id(task: TaskData) -> list[str]:
    return sorted(image_id for _, images in task.splits() for image_id in images.ids)


HIDDEN = (
    "a/.ipynb_checkpoints/00-checkpoint.png",
    "a/._00.png",
    "a/deep/.cache/00.png",
    "a/@eaDir/00.png/SYNOPHOTO_THUMB_XL.jpg",
    "__MACOSX/a/._00.png",
    "__MACOSX/b/00.png",
    ".thumbnails/00.png",
    "$RECYCLE.BIN/00.png",
    "a/__macosx/00.png",
)


def test_what_programs_leave_among_images_is_no_data(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    expected, digest = every_id(load(tmp_path)), load(tmp_path).splits_sha256
    for name in HIDDEN:
        write_image(tmp_path / name)
    for name in ("a/Thumbs.db", "b/desktop.ini", "b/.DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    task = load(tmp_path)
    assert task.classes == ("a", "b")
    assert every_id(task) == expected
    assert task.splits_sha256 == digest
    assert "skipped" not in task.notes[0]


def test_a_hidden_folder_above_the_data_hides_nothing(tmp_path: Path) -> None:
    write_classes(tmp_path / ".cache" / "pets", {"a": 5, "b": 5})
    assert sizes(load(tmp_path / ".cache" / "pets")) == (6, 2, 2)


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "VAL", "valid", "Validation", "dev"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_the_usual_names_of_splits_are_known_in_any_case(
    tmp_path: Path, train: str, val: str, test: str
) -> None:
    for name, count in ((train, 3), (val, 2), (test, 1)):
        write_classes(tmp_path / name, {"a": count, "b": count})
    task = load(tmp_path)
    assert task.classes == ("a", "b")
    assert sizes(task) == (6, 4, 2)
    assert {i.split("/")[0] for i in task.val.ids} == {val}
    assert task.notes == (
        f"folder:{tmp_path}: 2 classes, 6 train images ({train}/), 4 val images ({val}/), "
        f"2 test images ({test}/)",
    )


def test_how_a_folder_was_read_is_said_in_one_line(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 5, "b": 5})
    write_classes(tmp_path / "test", {"a": 1, "b": 1})
    write_classes(tmp_path / "extra", {"a": 1})
    for name in ("train/a/x.heic", "train/a/notes.txt", "train/b/x.txt", "test/b/y.txt"):
        (tmp_path / name).write_bytes(b"x")
    write_image(tmp_path / "train" / "loose.png")
    assert load(tmp_path).notes == (
        f"folder:{tmp_path}: 2 classes, 8 train images (train/), 2 val images (drawn, 20%), "
        "2 test images (test/); not read: extra/; skipped 5 files: train/loose.png, "
        "train/a/notes.txt, train/a/x.heic and 2 more; HEIC is not read, convert it, for instance "
        "with ImageMagick: magick mogrify -format jpg FOLDER/*.heic",
    )


def test_classes_alone_are_said_to_be_split(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    assert load(tmp_path).notes == (
        f"folder:{tmp_path}: 2 classes, 6 train images (PATH itself), 2 val images (drawn, 20%), "
        "2 test images (drawn, 20%)",
    )


def test_train_and_val_without_test_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 10, "b": 10})
    write_classes(tmp_path / "val", {"a": 3, "b": 2})
    with pytest.raises(DataError, match=r"test images.*train/ and val/ alone") as caught:
        load(tmp_path)
    offered = str(caught.value).rpartition("--split ")[2]
    assert offered == "train=train,val=0.2,test=val"
    task = load(tmp_path, offered)
    assert sizes(task) == (16, 4, 5)
    assert Counter(task.val.labels.tolist()) == {0: 2, 1: 2}
    assert all(image_id.startswith("val/") for image_id in task.test.ids)


@pytest.mark.parametrize(
    ("folders", "message", "offered"),
    [
        (("train",), "the folder has train/ alone", "train=train,val=0.2,test=0.2"),
        (("Val", "Test"), "must be train images, got only Test, Val", None),
        (("train", "val", "valid", "test"), "val must be one folder, got val and valid", "val=val"),
        (("Train", "train", "test"), "train must be one folder, got Train and train", "test=test"),
        (("bus", "car", "train"), "train beside bus, car must be clear", "train=.,"),
        (("cat", "dog", "test"), "test beside cat, dog must be clear", "train=.,"),
        (("ops", "sales", "dev"), "dev beside ops, sales must be clear", "train=.,"),
        (("train", "val", "extra"), "train, val beside extra must be clear", "test=val"),
    ],
)
def test_an_unclear_layout_is_refused_with_the_way_out(
    tmp_path: Path, folders: tuple[str, ...], message: str, offered: str | None
) -> None:
    for folder in folders:
        write_classes(tmp_path / folder, {"a": 5, "b": 5})
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    if offered is not None:
        assert offered in str(caught.value).partition("--split ")[2]


@pytest.mark.parametrize("split_like", ["train", "val", "test", "dev"])
def test_only_a_train_folder_of_classes_is_offered_as_a_split(
    tmp_path: Path, split_like: str
) -> None:
    write_classes(tmp_path, {"bus": 5, "car": 5, split_like: 5})
    with pytest.raises(DataError, match=f"{split_like} beside bus, car must be clear") as caught:
        load(tmp_path)
    (offered,) = str(caught.value).split("--split ")[1:]
    assert load(tmp_path, offered).classes == tuple(sorted(("bus", "car", split_like)))


def test_a_train_folder_of_classes_beside_others_is_offered_as_a_split_too(tmp_path: Path) -> None:
    write_classes(tmp_path, {"bus": 5, "train/a": 5, "train/b": 5})
    with pytest.raises(DataError, match="train beside bus must be clear") as caught:
        load(tmp_path)
    _, as_classes, as_split = str(caught.value).split("--split ")
    assert load(tmp_path, as_classes.partition(";")[0]).classes == ("bus", "train")
    assert load(tmp_path, as_split).classes == ("a", "b")


def test_splits_below_the_classes_are_not_mixed(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_classes(tmp_path / name, {"Train": 5, "test": 2})
    with pytest.raises(DataError, match=r"splits must be above the classes, such as Train/cat"):
        load(tmp_path)
    assert sum(sizes(load(tmp_path, "train=.,val=0.2,test=0.2"))) == 14


@pytest.mark.parametrize("around", ["archive", "archive/my data", "a/b/c"])
@pytest.mark.parametrize("splits", [("train", "val", "test"), ("Train", "Test"), ()])
def test_a_folder_around_the_data_is_no_class(
    tmp_path: Path, around: str, splits: tuple[str, ...]
) -> None:
    for split in splits or (".",):
        write_classes(tmp_path / "kg" / around / split, {"a": 5, "b": 5})
    (tmp_path / "kg" / around / "readme.txt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"at least 2 classes, got 1: a\w*\. ") as caught:
        load(tmp_path / "kg")
    offered = shlex.split(str(caught.value).rpartition(": give ")[2])
    assert offered == [f"folder:{tmp_path}/kg/{around}"]
    task = load_task(offered[0], seed=0)
    assert task.classes == ("a", "b")
    assert len(every_id(task)) == 10 * len(splits or (".",))


def test_a_folder_around_the_data_may_have_others_without_images_beside_it(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_classes(tmp_path / "archive" / split, {"a": 5, "b": 5})
    (tmp_path / "docs").mkdir()
    with pytest.raises(DataError, match=rf"\. Give folder:{tmp_path}/archive$"):
        load(tmp_path)


def test_classes_below_one_folder_of_every_split_are_offered(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_classes(tmp_path / split / "images", {"a": 5, "b": 4})
    with pytest.raises(DataError, match="at least 2 classes, got 1: images") as caught:
        load(tmp_path)
    offered = str(caught.value).rpartition("--split ")[2]
    assert offered == "train=train/images,val=valid/images,test=test/images"
    assert sizes(load(tmp_path, offered)) == (9, 9, 9)
    (tmp_path / "test" / "images").rename(tmp_path / "test" / "pictures")
    with pytest.raises(DataError, match=rf"lie deeper, in {tmp_path}/train/images: move them up"):
        load(tmp_path)


def test_images_without_class_folders_are_said_to_need_them(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_classes(tmp_path / split, {"images": 5})
    with pytest.raises(
        DataError,
        match=rf"got 1: images\. {tmp_path}/train must hold one folder of images per class",
    ):
        load(tmp_path)


def test_a_folder_within_a_class_may_be_called_test(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 5, "dog": 5, "cat/test": 5})
    assert sum(sizes(load(tmp_path))) == 15


def test_a_class_called_train_is_read_as_one_where_asked(tmp_path: Path) -> None:
    write_classes(tmp_path, {"bus": 5, "car": 5, "train": 5})
    task = load(tmp_path, "train=.,val=0.2,test=0.2")
    assert task.classes == ("bus", "car", "train")
    assert sizes(task) == (9, 3, 3)


def test_asking_for_the_usual_splits_changes_nothing(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 10, "b": 7})
    asked = load(tmp_path, "train=.,val=0.2,test=0.2")
    assert asked.splits_sha256 == load(tmp_path).splits_sha256


def test_a_split_beside_the_classes_is_no_class(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 10, "b": 10})
    write_classes(tmp_path / "held out" / "x", {"a": 2, "b": 1})
    task = load(tmp_path, "train=.,val=0.2,test=held out/x")
    assert task.classes == ("a", "b")
    assert sizes(task) == (16, 4, 3)


def test_a_place_that_is_missing_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 5, "b": 5})
    with pytest.raises(
        DataError, match=rf"split: no must be a folder in {tmp_path}, which has train$"
    ):
        load(tmp_path, "train=train,val=0.2,test=no")


@pytest.mark.parametrize(("train", "test"), [(NFC, NFD), (NFD, NFC)])
def test_one_name_in_two_unicode_forms_is_one_class(tmp_path: Path, train: str, test: str) -> None:
    write_classes(tmp_path / "train", {train: 5, "b": 5})
    write_classes(tmp_path / "val", {test: 1, "b": 1})
    write_classes(tmp_path / "test", {test: 2, "b": 1})
    task = load(tmp_path)
    assert task.classes == tuple(sorted((train, "b")))
    assert sizes(task) == (10, 2, 3)
    assert Counter(task.test.labels.tolist())[task.classes.index(train)] == 2


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, {NFC: 5, NFD: 5})
    with pytest.raises(DataError, match=r"got 'cafe\\u0301' and 'caf\\xe9', which look alike"):
        load(tmp_path)


@pytest.mark.parametrize(
    "suffix", [".jfif", ".jpe", ".JPG", ".jp2", ".j2k", ".avif", ".ppm", ".pgm", ".tga", ".mpo"]
)
def test_every_suffix_of_an_image_counts(tmp_path: Path, suffix: str) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    for i in range(5):
        write_image(tmp_path / "c" / f"{i}{suffix}")
    task = load(tmp_path)
    assert task.classes == ("a", "b", "c")
    assert Counter(task.train.labels.tolist())[2] == 3
    index = task.train.labels.tolist().index(2)
    assert task.train.image(index).size == (6, 4)


@pytest.mark.parametrize("suffix", [".eps", ".pdf", ".mpg", ".h5", ".fits", ".txt", ""])
def test_other_files_are_skipped_and_counted(tmp_path: Path, suffix: str) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / f"x{suffix}").write_bytes(b"x")
    assert load(tmp_path).notes[0].endswith(f"; skipped 1 file: a/x{suffix}")


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    write_classes(tmp_path / "data", {"a": 5})
    write_classes(tmp_path / "else", {"b": 5, "more": 2})
    (tmp_path / "data" / "b").symlink_to(tmp_path / "else" / "b")
    (tmp_path / "data" / "a" / "x").symlink_to(tmp_path / "else" / "more")
    task = load(tmp_path / "data")
    assert task.classes == ("a", "b")
    assert [i for i in every_id(task) if "x" in i] == ["a/x/00.png", "a/x/01.png"]
    assert len(every_id(task)) == 12


@pytest.mark.parametrize("target", ["data", "data/train", "data/train/a", "data/train/a/deep"])
def test_a_link_that_leads_back_up_is_skipped(tmp_path: Path, target: str) -> None:
    train = tmp_path / "data" / "train"
    write_classes(train, {"a": 3, "b": 3, "a/deep": 1})
    write_classes(tmp_path / "data" / "test", {"a": 1, "b": 1})
    (train / "a" / "deep" / "up").symlink_to(tmp_path / target)
    task = load(tmp_path / "data")
    assert len(task.train) + len(task.val) == 7
    assert task.notes[0].endswith("; skipped 1 file: train/a/deep/up")


def test_a_link_to_itself_does_no_harm(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    for place in (tmp_path / "self", tmp_path / "a" / "self"):
        place.symlink_to(place)
    assert load(tmp_path).notes[0].endswith("; skipped 1 file: a/self")


def test_a_link_to_nowhere_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert "a/gone.png" in every_id(load(tmp_path))


@pytest.mark.parametrize("name", [b"a/caf\xe9.png", b"caf\xe9/00.png"])
def test_names_that_are_no_text_are_shown_with_their_bytes(tmp_path: Path, name: bytes) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    write_image(tmp_path / os.fsdecode(name))
    with pytest.raises(DataError, match=r"names must be UTF-8, got 1 .*caf\\xe9.*convmv"):
        load(tmp_path)


def test_images_are_ordered_part_by_part(tmp_path: Path) -> None:
    names = ("a/b/1.png", "a/b.png", "a/b-c/1.png", "a/B.png")
    for name in names:
        write_image(tmp_path / "train" / name)
    write_classes(tmp_path / "train", {"z": 1})
    for split in ("val", "test"):
        write_classes(tmp_path / split, {"a": 1})
    paths = [Path("train") / name for name in names]
    assert load(tmp_path).train.ids[:4] == tuple(path.as_posix() for path in sorted(paths))


def test_images_outside_of_class_folders_are_said_to_be_why_there_are_none(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_image(tmp_path / split / "0.png")
    with pytest.raises(DataError, match=r"got no image in such a folder; skipped 2 files: train/0"):
        load(tmp_path)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_images_to_draw_from_are_refused_with_what_is_enough(
    tmp_path: Path, n: int
) -> None:
    write_classes(tmp_path, {"a": n, "b": 1})
    noun = "1 image" if n == 1 else "2 images"
    message = (
        rf"there must be val images, got none: no class has more than {noun} to draw from, "
        r"0\.2 for val and 0\.2 for test\. Put at least 3 in each, or say where such images are: "
        r"--split train=TRAIN,val=VAL,test=TEST$"
    )
    with pytest.raises(DataError, match=message):
        load(tmp_path)
    write_classes(tmp_path, {"a": 3, "b": 3})
    assert sizes(load(tmp_path)) == (2, 2, 2)


@pytest.mark.parametrize(
    ("split", "none_of", "least"),
    [
        ("train=.,val=0.05,test=0.2", "val", 11),
        ("train=.,val=0.2,test=0.001", "test", 501),
        ("train=.,val=0.5,test=0.49", "train", 100),
    ],
)
def test_what_is_enough_to_draw_from_follows_from_the_shares(
    tmp_path: Path, split: str, none_of: str, least: int
) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    with pytest.raises(DataError, match=rf"be {none_of} images, got none.* at least {least} in"):
        load(tmp_path, split)


@pytest.mark.parametrize("suffix", [".heic", ".HEIC", ".heif"])
def test_a_class_of_heic_files_alone_is_told_how_to_convert_them(
    tmp_path: Path, suffix: str
) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "c").mkdir()
    for i in range(9):
        (tmp_path / "c" / f"{i}{suffix}").write_bytes(b"x")
    assert "; HEIC is not read, convert it, for instance with" in load(tmp_path).notes[0]
    for name in ("a", "b"):
        shutil.rmtree(tmp_path / name)
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"got no image in such a folder.*; HEIC is not read"):
        load(tmp_path)
