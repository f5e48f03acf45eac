from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glora_deploy.data import check as data_check
from glora_deploy.data.check import CheckedData, check_data, skipped_images
from glora_deploy.data.load import TaskData, load_task
from glora_deploy.errors import DataError
from image_files import write_classes, write_image, write_lists
from tasks import make_task


def write_splits(root: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        write_classes(root / split, {"a": count, "b": count})


def load(root: Path) -> TaskData:
    return load_task(f"folder:{root}", seed=0)


def check(root: Path, **options: Any) -> CheckedData:
    return check_data(load(root), **options)


def test_nothing_is_said_about_clean_data(tmp_path: Path) -> None:
    write_splits(tmp_path)
    data = load(tmp_path)
    told: list[tuple[int, int]] = []
    checked = check_data(data, report=lambda done, total: told.append((done, total)))
    assert checked.data is data
    assert (checked.skipped, checked.notes) == ({}, ())
    assert told == [(8, 18), (12, 18), (18, 18)]


def test_images_in_memory_need_no_check() -> None:
    task = make_task()
    assert check_data(task).data is task


def test_every_unreadable_image_is_named_at_once(tmp_path: Path) -> None:
    write_splits(tmp_path)
    bad = ("train/a/00.png", "train/b/03.png", "val/a/01.png", "test/b/02.png")
    for name in bad[:2]:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    (tmp_path / bad[2]).write_bytes(b"no image")
    (tmp_path / bad[3]).unlink()
    (tmp_path / bad[3]).symlink_to(tmp_path / "nowhere")
    message = (
        rf"^folder:{tmp_path}: every image must be readable, got 4 of 18 that are not: "
        rf"{tmp_path}/train/a/00.png: must be a whole .*; also train/b/03.png, val/a/01.png, "
        r"test/b/02.png. Mend or remove them, or leave them out with --skip-unreadable.$"
    )
    with pytest.raises(DataError, match=message):
        check(tmp_path)


def test_the_reason_of_the_first_unreadable_image_goes_on_to_the_others(tmp_path: Path) -> None:
    write_splits(tmp_path)
    pixels = Image.fromarray(np.ones((4, 4), np.float32))
    for name in ("0.tiff", "1.tiff"):
        pixels.save(tmp_path / "train" / "b" / name)
    with pytest.raises(DataError, match=r"with 8 or 16 bits; also train/b/1.tiff\. Mend or"):
        check(tmp_path)
    (tmp_path / "train/b/1.tiff").unlink()
    with pytest.raises(DataError, match=r"with 8 or 16 bits\. Mend or"):
        check(tmp_path)


def test_folders_of_which_one_has_images_are_no_task(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_classes(tmp_path / split, {"images": 3, "labels": 0})
        (tmp_path / split / "labels" / "0.txt").write_text("0 0.5 0.5 1 1")
    message = (
        r"none for 1 class of 2: labels\. Only images has any; a task needs 2 classes that have"
    )
    with pytest.raises(DataError, match=message):
        check(tmp_path)


def test_unreadable_images_are_left_out_where_asked(tmp_path: Path) -> None:
    write_splits(tmp_path)
    for name in ("train/a/00.png", "train/b/03.png", "test/b/02.png"):
        (tmp_path / name).write_bytes(b"no image")
    checked = check(tmp_path, skip_unreadable=True)
    assert checked.skipped == {"train": [0, 7], "test": [5]}
    assert checked.notes == (
        "left out 3 unreadable images: train/a/00.png, train/b/03.png, test/b/02.png",
    )
    assert checked.data.train.ids == (
        *(f"train/a/0{i}.png" for i in (1, 2, 3)),
        *(f"train/b/0{i}.png" for i in (0, 1, 2)),
    )
    assert checked.data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with Image.open(tmp_path / "train/b/02.png") as expected:
        np.testing.assert_array_equal(checked.data.train.image(5), expected)


def test_what_was_left_out_is_left_out_again(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 20, "b": 20})
    for name in ("a/07.png", "b/11.png", "b/12.png"):
        (tmp_path / name).write_bytes(b"no image")
    checked = check(tmp_path, skip_unreadable=True)
    settings = {"epochs": 3, data_check.SKIPPED_IMAGES: checked.skipped}
    again = load_task(f"folder:{tmp_path}", seed=0, skipped=skipped_images(settings))
    assert again.splits_sha256 == checked.data.splits_sha256 != load(tmp_path).splits_sha256
    assert sum(len(images) for _, images in again.splits()) == 37
    assert skipped_images({"epochs": 3}) == {}


@pytest.mark.parametrize("value", [["train"], {"train": 3}, {"train": ["a"]}, {"train": [True]}])
def test_a_malformed_record_of_what_was_left_out_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="skipped_images: must be places"):
        skipped_images({"skipped_images": value})


@pytest.mark.parametrize("skipped", [{"train": [8]}, {"train": [-1]}, {"training": [0]}])
def test_images_that_do_not_exist_cannot_be_left_out(
    tmp_path: Path, skipped: dict[str, list[int]]
) -> None:
    write_splits(tmp_path)
    with pytest.raises(DataError, match=r"no such image in train(ing)? to leave out"):
        load_task(f"folder:{tmp_path}", seed=0, skipped=skipped)


def test_too_many_unreadable_images_are_refused_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_splits(tmp_path)
    monkeypatch.setattr(data_check, "MAX_SKIPPED", 1)
    for name in ("train/a/00.png", "val/a/00.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"got 2 of 18 .* At most 1 can be left out\.$"):
        check(tmp_path, skip_unreadable=True)


def test_leaving_out_all_images_of_a_class_leaves_it_empty(tmp_path: Path) -> None:
    write_splits(tmp_path)
    for i in range(4):
        (tmp_path / "train" / "b" / f"0{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="must have training images, got none for 1 class of 2: b"):
        check(tmp_path, skip_unreadable=True)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_a_picture_in_two_splits_is_refused(tmp_path: Path, split: str, suffix: str) -> None:
    write_splits(tmp_path)
    with Image.open(tmp_path / "train/b/01.png") as image:
        image.save(tmp_path / split / "b" / f"other{suffix}")
    message = (
        rf"the splits must share no picture, got 1 {split} image that train has too: "
        rf"{split}/b/other{suffix} = train/b/01.png. What was trained on .* --allow-duplicates.$"
    )
    with pytest.raises(DataError, match=message):
        check(tmp_path)


def test_pictures_in_two_splits_are_allowed_where_asked(tmp_path: Path) -> None:
    write_splits(tmp_path)
    for i in range(2):
        shutil.copy(tmp_path / f"val/a/0{i}.png", tmp_path / f"test/a/copy{i}.png")
    shutil.copy(tmp_path / "train/a/00.png", tmp_path / "val/b/copy.png")
    checked = check(tmp_path, allow_duplicates=True)
    assert len(checked.data.test) == 8
    assert checked.notes == (
        "allowed, although the splits must share no picture, got 1 val image that train has too: "
        "val/b/copy.png = train/a/00.png; 2 test images that val has too: test/a/copy0.png = "
        "val/a/00.png, test/a/copy1.png = val/a/01.png",
    )


def test_the_same_pixels_in_another_shape_are_another_picture(tmp_path: Path) -> None:
    write_splits(tmp_path)
    Image.new("RGB", (4, 6), (50, 60, 70)).save(tmp_path / "train/a/x.png")
    Image.new("RGB", (6, 4), (50, 60, 70)).save(tmp_path / "test/a/x.png")
    assert check(tmp_path).notes == ()


def test_copies_within_a_split_are_told(tmp_path: Path) -> None:
    write_splits(tmp_path)
    for copy in ("a/x.png", "a/y.png"):
        shutil.copy(tmp_path / "train/a/00.png", tmp_path / "train" / copy)
    assert check(tmp_path).notes == (
        "train repeats 2 pictures, such as train/a/00.png = train/a/x.png",
    )
    shutil.copy(tmp_path / "train/a/01.png", tmp_path / "train/b/z.png")
    assert check(tmp_path).notes == (
        "train repeats 3 pictures, 1 of them under two classes, such as "
        "train/a/01.png = train/b/z.png",
    )


def test_a_class_without_training_images_is_refused_or_allowed(tmp_path: Path) -> None:
    write_splits(tmp_path)
    write_classes(tmp_path / "train", {"empty": 0, "heic": 0})
    (tmp_path / "train/heic/0.heic").write_bytes(b"x")
    write_classes(tmp_path / "test", {"empty": 1})
    words = "every class must have training images, got none for 2 classes of 4: empty, heic"
    with pytest.raises(DataError, match=rf"{words}. Add images.*--allow-empty-classes"):
        check(tmp_path)
    checked = check(tmp_path, allow_empty_classes=True)
    assert checked.data.classes == ("a", "b", "empty", "heic")
    assert checked.notes == (f"allowed, although {words}",)
    assert "skipped 1 file: train/heic/0.heic" in checked.data.notes[0]


def make_lists(first: int) -> dict[str, str]:
    return {
        f"{split}.txt": "".join(f"{split}/{i}.png {first + i % 3}\n" for i in range(6))
        for split in ("train", "val", "test")
    }


def test_lists_that_count_from_1_are_refused_with_the_reason(tmp_path: Path) -> None:
    write_lists(tmp_path / "from0", make_lists(0))
    check_data(load_task(f"lists:{tmp_path}/from0", seed=0))
    write_lists(tmp_path / "from1", make_lists(1))
    task = load_task(f"lists:{tmp_path}/from1", seed=0)
    with pytest.raises(DataError, match=r"no image with label 0: these seem to count from 1\. Sub"):
        check_data(task)
    assert check_data(task, allow_empty_classes=True).data.n_classes == 4


def test_more_names_than_labels_are_refused(tmp_path: Path) -> None:
    write_lists(tmp_path, make_lists(0) | {"classes.txt": "x\ny\nz\nzebra\n"})
    with pytest.raises(DataError, match=r"got none for 1 class of 4: zebra"):
        check_data(load_task(f"lists:{tmp_path}", seed=0))


def test_a_published_benchmark_is_taken_with_its_faults(tmp_path: Path) -> None:
    root = tmp_path / "kitti"
    lists = {
        "train800.txt": "a.png 0\nb.png 1\n",
        "val200.txt": "c.png 2\n",
        "test.txt": "d.png 0\ne.png 1\n",
    }
    write_lists(root, lists)
    shutil.copy(root / "a.png", root / "d.png")
    checked = check_data(load_task(f"vtab:{root}", seed=0))
    assert [note.partition(",")[0] for note in checked.notes] == ["allowed"] * 2
    assert "got none for 2 classes of 4: 2, 3" in checked.notes[0]
    assert "d.png = a.png" in checked.notes[1]
    (root / "d.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="must be readable, got 1 of 5"):
        check_data(load_task(f"vtab:{root}", seed=0))


@pytest.mark.parametrize(("bits", "factor"), [(10, 64), (12, 16), (14, 4), (15, 2)])
def test_sixteen_bit_images_that_use_fewer_are_told(tmp_path: Path, bits: int, factor: int) -> None:
    write_splits(tmp_path)
    rng = np.random.default_rng(5)
    for i in range(4):
        values = rng.integers(0, 2**bits, (9, 7), dtype=np.uint16)
        values[0, i] = 2**bits - 1
        Image.fromarray(values).save(tmp_path / f"train/a/deep{i}.png")
    assert check(tmp_path).notes == (
        f"dark, with no value above {2**bits - 1:,} of 65,535: all of 4 16-bit images: "
        f"train/a/deep0.png, train/a/deep1.png, train/a/deep2.png and 1 more. If {bits} bits are "
        f"their whole range, save them with their values times {factor}",
    )
    Image.fromarray(values * np.uint16(factor)).save(tmp_path / "val/a/bright.png")
    assert not any("dark" in note for note in check(tmp_path).notes)


def test_images_that_come_out_black_are_told(tmp_path: Path) -> None:
    write_splits(tmp_path)
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(mask).save(tmp_path / "test/b/mask.png")
    Image.fromarray(mask + 1).save(tmp_path / "test/b/brighter.png")
    assert check(tmp_path).notes == (
        "nearly black, with no value above 15 of 255: 1 image: test/b/mask.png",
    )


def test_images_with_transparent_pixels_are_told(tmp_path: Path) -> None:
    write_splits(tmp_path)
    for alpha, name in ((255, "opaque"), (128, "clear")):
        Image.new("RGBA", (4, 4), (90, alpha, 7, alpha)).save(tmp_path / f"val/a/{name}.png")
    assert check(tmp_path).notes == (
        "transparent pixels, which are read with the colours that they hide: in 1 image: "
        "val/a/clear.png",
    )


def test_names_are_shown_so_that_they_can_be_printed(tmp_path: Path) -> None:
    write_splits(tmp_path)
    write_image(tmp_path / "train/a/x\ny.png", like="twin")
    write_image(tmp_path / "test/a/z.png", like="twin")
    with pytest.raises(DataError, match=r"test/a/z.png = train/a/x\\ny.png"):
        check(tmp_path)
