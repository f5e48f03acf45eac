from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from glora_deploy.errors import DataError
from language.docstrings import read_docstrings

PER_CLASS = {"train": 6, "val": 2, "test": 2}
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
Package = Callable[[str, dict[str, str]], None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Writes a package of these modules, one function with this docstring in each."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, docstrings: dict[str, str]) -> None:
        for module, docstring in docstrings.items():
            path = tmp_path / name / f"{module}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'def f():\n    """{docstring}"""\n', "utf-8")

    return write


def docstrings(kind: str, n: int = 60) -> dict[str, str]:
    """Texts of which no two share three words in a row."""
    return {
        f"part_{i}": " ".join(
            f"{kind}{chr(97 + i % 26)}{chr(97 + i // 26)}{word}" for word in WORDS
        )
        for i in range(n)
    }


def test_every_class_has_as_many_texts_as_asked_and_no_text_is_in_two_splits(
    package: Package,
) -> None:
    package("lions", docstrings("l"))
    package("tigers", docstrings("t"))
    task = read_docstrings(("lions", "tigers"), per_class=PER_CLASS)
    splits = {"train": task.train, "val": task.val, "test": task.test}
    for name, split in splits.items():
        assert sorted(split.labels) == [0] * PER_CLASS[name] + [1] * PER_CLASS[name]
        assert all(
            text[0] == "lt"[label] for text, label in zip(split.texts, split.labels, strict=True)
        )
    texts = [text for split in splits.values() for text in split.texts]
    assert len(set(texts)) == len(texts) == 20
    assert read_docstrings(("lions", "tigers"), per_class=PER_CLASS) == task


def test_the_names_of_the_packages_are_taken_out(package: Package) -> None:
    named = {m: f"Lions and tigers' {t}, lions.den of PyTorch" for m, t in docstrings("l").items()}
    package("lions", named)
    package("tigers", docstrings("t"))
    task = read_docstrings(("lions", "tigers"), per_class=PER_CLASS)
    for text, label in zip(task.train.texts, task.train.labels, strict=True):
        if label == 0:
            assert text.startswith("and l")
            assert "den of" in text
            assert not {"lions", "tigers", "pytorch"} & set(text.lower().replace(".", " ").split())


def test_copies_with_another_name_in_them_are_left_out(package: Package) -> None:
    copies = {f"part_{i}": f"Constructs the {w} of a model from its settings" for i, w in
              enumerate(docstrings("x", 60))}  # fmt: skip
    package("lions", copies)
    package("tigers", docstrings("t"))
    with pytest.raises(
        DataError, match=r"lions: train must have 6 docstrings, got 1\. Ask for fewer"
    ):
        read_docstrings(("lions", "tigers"), per_class=PER_CLASS)


def test_a_module_of_tests_and_what_is_no_python_give_nothing(package: Package) -> None:
    found = docstrings("l")
    package("lions", {f"test_{module}": text for module, text in found.items()})
    with pytest.raises(DataError, match="got 0"):
        read_docstrings(("lions",), per_class=PER_CLASS)
    package("lions", {"broken": '"""\nno python: ('})
    with pytest.raises(DataError, match="got 0"):
        read_docstrings(("lions",), per_class=PER_CLASS)


def test_a_package_that_is_not_installed_is_told_with_its_remedy() -> None:
    with pytest.raises(DataError, match="pip install no_such_package"):
        read_docstrings(("no_such_package",), per_class=PER_CLASS)
