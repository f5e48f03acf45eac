from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glora_deploy.data.built_in_tasks import BUILT_IN_TASKS
from glora_deploy.data.image_set import ArrayImages, split_by_class
from glora_deploy.data.load import ImageSet, TaskData, load_task
from glora_deploy.errors import DataError


def write_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (value, value, value)).save(path)


def write_class_folders(root: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        for i in range(count):
            write_image(root / name / f"{i:02}.png", value=i)


def write_lists(root: Path, lists: dict[str, str]) -> None:
    for name, text in lists.items():
        (root / name).write_text(text)


def make_set(ids: str, labels: list[int]) -> ImageSet:
    pixels = np.zeros((len(ids), 2, 2, 3), np.uint8)
    return ImageSet(np.array(labels, np.int64), tuple(ids), ArrayImages(pixels))


def make_task(**splits: ImageSet) -> TaskData:
    parts = {
        "train": make_set("ab", [0, 1]),
        "val": make_set("c", [0]),
        "test": make_set("d", [1]),
    } | splits
    return TaskData(name="t", spec="t", seed=0, classes=("no", "yes"), **parts)


def test_a_folder_with_three_splits_is_read_as_it_is(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", {"dog": 2, "cat": 3})
    write_class_folders(tmp_path / "val", {"cat": 1})
    write_class_folders(tmp_path / "test", {"dog": 1, "cat": 1})
    task = load_task(f"folder:{tmp_path}", seed=0)
    assert task.classes == ("cat", "dog")
    assert task.n_classes == 2
    assert task.name == tmp_path.name
    assert task.train.ids == (
        "train/cat/00.png",
        "train/cat/01.png",
        "train/cat/02.png",
        "train/dog/00.png",
        "train/dog/01.png",
    )
    np.testing.assert_array_equal(task.train.labels, [0, 0, 0, 1, 1])
    assert task.train.labels.dtype == np.int64
    assert task.val.ids == ("val/cat/00.png",)
    assert task.test.ids == ("test/cat/00.png", "test/dog/00.png")
    assert task.train.image(2).getpixel((0, 0)) == (2, 2, 2)


def test_a_fifth_of_each_class_is_drawn_where_val_is_missing(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", {"a": 10, "b": 20})
    write_class_folders(tmp_path / "test", {"a": 1})
    task = load_task(f"folder:{tmp_path}", seed=0)
    assert Counter(task.val.labels.tolist()) == {0: 2, 1: 4}
    assert Counter(task.train.labels.tolist()) == {0: 8, 1: 16}
    again, other = (load_task(f"folder:{tmp_path}", seed=seed) for seed in (0, 1))
    assert again.splits_sha256 == task.splits_sha256 != other.splits_sha256


def test_a_folder_of_classes_is_split_60_20_20(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"a": 10, "b": 5})
    write_image(tmp_path / ".hidden" / "0.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    task = load_task(f"folder:{tmp_path}", seed=3)
    assert task.classes == ("a", "b")
    parts = [Counter(split.labels.tolist()) for split in (task.train, task.val, task.test)]
    assert parts == [{0: 6, 1: 3}, {0: 2, 1: 1}, {0: 2, 1: 1}]
    everything = task.train.ids + task.val.ids + task.test.ids
    assert len(set(everything)) == 15
    again, other = (load_task(f"folder:{tmp_path}", seed=seed) for seed in (3, 4))
    assert again.splits_sha256 == task.splits_sha256 != other.splits_sha256


def test_files_in_deeper_folders_and_with_upper_case_suffixes_count(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"a": 5, "b": 5})
    write_image(tmp_path / "a" / "more" / "x.PNG")
    task = load_task(f"folder:{tmp_path}", seed=0)
    assert "a/more/x.PNG" in task.train.ids + task.val.ids + task.test.ids


def test_an_unreadable_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", {"a": 1, "b": 1})
    write_class_folders(tmp_path / "val", {"a": 1})
    write_class_folders(tmp_path / "test", {"a": 1})
    (tmp_path / "train" / "b" / "00.png").write_bytes(b"no image")
    task = load_task(f"folder:{tmp_path}", seed=0)
    with pytest.raises(DataError, match=rf"^{tmp_path}/train/b/00.png: must be a whole"):
        task.train.image(1)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="must hold one folder of images per class, got no image"):
        load_task(f"folder:{tmp_path}", seed=0)


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"only": 10})
    with pytest.raises(DataError, match=r"2 classes, got 1: only\. .* must hold one folder"):
        load_task(f"folder:{tmp_path}", seed=0)


def test_a_missing_test_split_is_refused(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", {"a": 5, "b": 5})
    with pytest.raises(DataError, match="there must be test images, got none"):
        load_task(f"folder:{tmp_path}", seed=0)


def test_a_test_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", {"a": 5, "b": 5})
    write_class_folders(tmp_path / "test", {"a": 1, "zebra": 1})
    with pytest.raises(DataError, match="classes in test must also be in train, got zebra"):
        load_task(f"folder:{tmp_path}", seed=0)


@pytest.mark.parametrize("kind", ["folder", "lists", "vtab"])
def test_a_missing_path_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=rf"PATH must be a folder, got '{tmp_path}/none'"):
        load_task(f"{kind}:{tmp_path}/none", seed=0)


@pytest.mark.parametrize("spec", ["cifar10", "", "zip:/tmp", "folder"])
def test_an_unknown_task_is_refused_with_what_there_is(spec: str) -> None:
    with pytest.raises(DataError, match=r"one of digits, photos, position, orientation, or folder"):
        load_task(spec, seed=0)


def test_an_empty_path_is_not_the_current_folder() -> None:
    with pytest.raises(DataError, match=r"^folder:: PATH must be .* got none\..* folder:\.$"):
        load_task("folder:", seed=0)


def test_vtab_lists_are_read_with_the_known_class_count(tmp_path: Path) -> None:
    root = tmp_path / "svhn"
    write_image(root / "images" / "train" / "000000.jpg")
    write_lists(
        root,
        {
            "train800.txt": "images/train/000000.jpg 3\nimages/train/000001.jpg 4\n",
            "val200.txt": "images/val/000000.jpg 0\n",
            "test.txt": "images/test/000000.jpg 7\n\n",
        },
    )
    task = load_task(f"vtab:{root}", seed=0)
    assert task.name == "svhn"
    assert task.classes == tuple("0123456789")
    assert task.train.ids == ("images/train/000000.jpg", "images/train/000001.jpg")
    np.testing.assert_array_equal(task.train.labels, [3, 4])
    np.testing.assert_array_equal(task.test.labels, [7])
    assert task.train.image(0).size == (3, 2)


def test_vtab_without_its_val_list_is_refused(tmp_path: Path) -> None:
    write_lists(tmp_path, {"train800.txt": "a.jpg 0\nb.jpg 1", "test.txt": "c.jpg 0"})
    with pytest.raises(DataError, match=r"needs the lists .*, got no val200.txt: .* has test"):
        load_task(f"vtab:{tmp_path}", seed=0)


def test_lists_draw_val_and_count_classes_by_the_largest_label(tmp_path: Path) -> None:
    train = "".join(f"my pictures/{i}.jpg\t{i % 2}\n" for i in range(20))
    write_lists(tmp_path, {"train.txt": train, "test.txt": "t.jpg 2"})
    task = load_task(f"lists:{tmp_path}", seed=0)
    assert task.classes == ("0", "1", "2")
    assert (len(task.train), len(task.val), len(task.test)) == (16, 4, 1)
    assert all(image_id.startswith("my pictures/") for image_id in task.train.ids)
    again, other = (load_task(f"lists:{tmp_path}", seed=seed) for seed in (0, 1))
    assert again.splits_sha256 == task.splits_sha256 != other.splits_sha256


def test_a_task_keeps_how_it_was_loaded(tmp_path: Path) -> None:
    root = tmp_path / "a:b"  # only the first colon ends the kind
    write_class_folders(root / "folder", {"a": 5, "b": 5})
    (root / "lists").mkdir()
    train = "".join(f"{i}.png {i % 2}\n" for i in range(10))
    write_lists(root / "lists", {"train.txt": train, "test.txt": "t.png 0"})
    for kind in ("folder", "lists"):
        task = load_task(f"{kind}:{root / kind}", seed=11)
        assert (task.name, task.spec, task.seed) == (kind, f"{kind}:{root / kind}", 11)


def test_a_built_in_task_is_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = make_task()
    seeds = []

    def draw(seed: int) -> TaskData:
        seeds.append(seed)
        return drawn

    monkeypatch.setitem(BUILT_IN_TASKS, "digits", draw)
    assert load_task("digits", seed=5) is drawn
    assert seeds == [5]


def test_classes_are_named_by_their_file(tmp_path: Path) -> None:
    lists = {"train.txt": "a 0\nb 1", "val.txt": "c 0", "test.txt": "d 1"}
    write_lists(tmp_path, lists | {"classes.txt": "red\ngreen\n"})
    assert load_task(f"lists:{tmp_path}", seed=0).classes == ("red", "green")


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    lists = {"train.txt": "a 0\nb 1", "val.txt": "c 0", "test.txt": "d 2"}
    write_lists(tmp_path, lists | {"classes.txt": "red\ngreen\n"})
    message = rf"^{tmp_path}/classes.txt: must name each of the labels 0 to 2, .* got 2 names.$"
    with pytest.raises(DataError, match=message):
        load_task(f"lists:{tmp_path}", seed=0)


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg -1", "a.jpg x", "3", "a.jpg 1.0", "a.jpg 100000"])
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    write_lists(tmp_path, {"train.txt": f"a 0\n\n{line}\n", "test.txt": "d 1"})
    with pytest.raises(DataError, match=rf"^{tmp_path}/train.txt: line 3 must be 'FILE LABEL'"):
        load_task(f"lists:{tmp_path}", seed=0)


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_lists(tmp_path, {"train.txt": "", "test.txt": "d 1"})
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=rf"^{tmp_path}/train.txt: must be a readable UTF-8 text"):
        load_task(f"lists:{tmp_path}", seed=0)


def test_empty_lists_are_refused(tmp_path: Path) -> None:
    write_lists(tmp_path, {"train.txt": "", "val.txt": "", "test.txt": ""})
    with pytest.raises(DataError, match="at least 2 classes"):
        load_task(f"lists:{tmp_path}", seed=0)


def test_an_image_in_two_splits_is_refused() -> None:
    with pytest.raises(DataError, match=r"train and test must share no image, got 1 in both.*b"):
        make_task(test=make_set("b", [1]))


def test_the_splits_hash_depends_on_images_labels_order_and_splits() -> None:
    tasks = [
        make_task(),
        make_task(train=make_set("ab", [1, 1])),
        make_task(train=make_set("ba", [0, 1])),
        make_task(train=make_set("abx", [0, 1, 1])),
        make_task(val=make_set("d", [1]), test=make_set("c", [0])),
    ]
    assert len({task.splits_sha256 for task in tasks}) == len(tasks)
    assert make_task().splits_sha256 == make_task().splits_sha256


def test_train_val_is_train_then_val() -> None:
    pixels = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(3, axis=3)
    images = ImageSet(np.array([0, 1, 0]), ("a", "b", "c"), ArrayImages(pixels))
    task = make_task(train=images.select([2, 0]), val=images.select([1]))
    both = task.train_val
    assert both.ids == ("c", "a", "b")
    np.testing.assert_array_equal(both.labels, [0, 0, 1])
    assert [both.image(i).getpixel((0, 0)) for i in range(3)] == [(2,) * 3, (0,) * 3, (1,) * 3]


def test_image_sets_survive_pickling() -> None:
    both = make_task().train_val
    copy = pickle.loads(pickle.dumps(both))
    assert copy.ids == both.ids
    assert copy.image(2).size == (2, 2)


def test_a_set_needs_one_label_per_image() -> None:
    with pytest.raises(ValueError, match=r"labels must have shape \(n,\)=\(2,\), got \(1,\)"):
        make_set("ab", [0])


def test_splitting_by_class_deals_out_every_sample_once() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 1])
    first, second, rest = split_by_class(labels, (0.2, 0.5), np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second, rest])), np.arange(31))
    np.testing.assert_array_equal(np.bincount(labels[first]), [2, 4])
    np.testing.assert_array_equal(np.bincount(labels[second]), [5, 10])
    np.testing.assert_array_equal(np.bincount(labels[rest]), [3, 6, 1])


def test_splits_of_stored_tasks_keep_their_hash(tmp_path: Path) -> None:
    """As the first release read these: a store's version names them by their hash."""
    classes = {"ant": 7, "Bee": 12, "bee": 4, "cafe\u0301": 6}
    write_class_folders(tmp_path / "flat", classes)
    for name in ("ant/deep/a.JPG", "ant/deep-er/a.webp", "ant/deep.tif", "Bee/x y.gif"):
        write_image(tmp_path / "flat" / name)
    (tmp_path / "flat" / "ant" / "notes.txt").write_text("x")
    for split, n in (("train", 9), ("val", 2), ("test", 3)):
        write_class_folders(tmp_path / "three" / split, {"a": n, "b": n + 1})
    for split, n in (("train", 9), ("test", 3)):
        write_class_folders(tmp_path / "two" / split, {"a": n, "b": n + 1})
    write_class_folders(tmp_path / "two" / "extra", {"z": 1})
    train = "".join(f"./x/{i}.png {i % 3}\n" for i in range(15))
    lists = {"train.txt": train, "test.txt": "y/0.png 0\ny/1.png 2\n"}
    named = lists | {"val.txt": "z/ a.png\t1\n", "classes.txt": "c\nb\na\n"}
    vtab = {"train800.txt": "a.jpg 4\nb.jpg 46\n", "val200.txt": "c.jpg 0", "test.txt": "d.jpg 1"}
    for folder, texts in (("lists", lists), ("named", named), ("dtd", vtab)):
        (tmp_path / folder).mkdir()
        write_lists(tmp_path / folder, texts)
    for kind, folder, digest in (
        ("folder", "flat", "153a9a2880c9a654babd962527d20b48f385f0e291b809eec21979a344a3aec8"),
        ("folder", "three", "d3e80dde2fe97d370a45680c2261bea323b5c522fa5d0cd902d975fddc749f45"),
        ("folder", "two", "fa2630117ce2f4385082df67c32a8b9650c9d3f5ba3187e48397ffef8ed4727b"),
        ("lists", "lists", "f2eae9f4cbda5e3ff5925fb561d3f4844b6940c0cbe74498970014dbd8bc4039"),
        ("lists", "named", "a6ba322f45e85f0f26497b807e5f3387a089b4c7a26b48aa00b92e8963c23458"),
        ("vtab", "dtd", "37f69229b023c648bdae699cf0b101ff13a1cd7d91176b5a82e7e2018de73870"),
    ):
        task = load_task(f"{kind}:{tmp_path / folder}", seed=7)
        assert task.splits_sha256 == digest, folder
