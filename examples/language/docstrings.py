"""A text task that needs no download: which package a docstring was written for.

The names of the packages are taken out of the texts. Whole modules go to one split, and a text that
shares most of its words, in order, with one that was kept before is left out: many docstrings are
copies of each other with another class name.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from warnings import catch_warnings

from glora_deploy.errors import DataError

PACKAGES = ("numpy", "scipy", "sklearn", "torch", "sympy", "networkx", "timm", "transformers")
"""All of them come with ``glora-deploy[demo]`` and transformers."""

SHARES = {"train": 6, "val": 2, "test": 2}
"""Tenths of the modules in each split."""

MIN_WORDS = 8
MAX_CHARACTERS = 400
PER_MODULE = 12
"""Most texts that one module gives."""
SHINGLE = 3
"""Words in a row by which two texts are compared."""

_ALIASES = r"np|scikit-learn|scikits?|pytorch|nx|hf|hugging ?face"
_END_OF_PROSE = re.compile(r"\n\s*(?:[-=~]{3,}|>>>|\.\. |Args:|Parameters|Returns|Examples?\b)")


@dataclass(frozen=True, slots=True)
class TextSplit:
    """Texts and the number of the class of each."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class TextTask:
    """A classification task: disjoint splits of texts."""

    classes: tuple[str, ...]
    train: TextSplit
    val: TextSplit
    test: TextSplit

    @property
    def sha256(self) -> str:
        """Of every text with its class, in order: other versions of the packages are another."""
        splits = [(each.texts, each.labels) for each in (self.train, self.val, self.test)]
        return hashlib.sha256(json.dumps([self.classes, splits]).encode()).hexdigest()


def read_docstrings(
    packages: Sequence[str] = PACKAGES, *, per_class: Mapping[str, int]
) -> TextTask:
    """Docstrings of public functions and classes, the same for the same versions of the packages.

    Args:
        packages: Importable names; nothing of them is imported. They are the classes.
        per_class: How many texts of each class ``train``, ``val`` and ``test`` get.

    Raises:
        DataError: If a package is not installed or has too few docstrings.
    """
    modules = {package: _modules_by_split(package) for package in packages}
    names = re.compile(rf"\b(?:{'|'.join((*packages, _ALIASES))})\b[.'’]?s?", re.IGNORECASE)
    kept = _Kept()
    splits = {}
    for split, n_wanted in per_class.items():
        pairs: list[tuple[str, int]] = []
        for label, package in enumerate(packages):
            texts: list[str] = []
            for path in modules[package][split]:
                n_missing = min(PER_MODULE, n_wanted - len(texts))
                texts += islice(filter(kept.takes, _texts_of(path, names)), n_missing)
                if len(texts) == n_wanted:
                    break
            if len(texts) < n_wanted:
                raise DataError(
                    f"{package}: {split} must have {n_wanted} docstrings, got {len(texts)}. "
                    "Ask for fewer."
                )
            pairs += [(text, label) for text in texts]
        pairs.sort(key=lambda pair: _order(pair[0]))
        texts_of, labels_of = zip(*pairs, strict=True)
        splits[split] = TextSplit(texts_of, labels_of)
    return TextTask(tuple(packages), **splits)


class _Kept:
    """The texts of all splits so far, by what stands in them."""

    def __init__(self) -> None:
        self._texts_with: dict[tuple[str, ...], list[int]] = {}
        self._n = 0

    def takes(self, text: str) -> bool:
        """Keep a text, unless more than half of its shingles stand in one that is kept."""
        words = re.findall(r"[a-z]+", text.lower())
        shingles = {tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}
        shared = Counter(
            index for shingle in shingles for index in self._texts_with.get(shingle, ())
        )
        if shared and 2 * max(shared.values()) > len(shingles):
            return False
        for shingle in shingles:
            self._texts_with.setdefault(shingle, []).append(self._n)
        self._n += 1
        return True


def _modules_by_split(package: str) -> dict[str, list[Path]]:
    """The files of a package by split, in an order that says nothing of what is in them."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{package}: must be an installed package: pip install {package}")
    root = Path(next(iter(spec.submodule_search_locations)))
    modules = {path.relative_to(root.parent).as_posix(): path for path in root.rglob("*.py")}
    found: dict[str, list[Path]] = {split: [] for split in SHARES}
    for module in sorted(modules, key=_order):
        if "test" not in module:
            found[_split_of(module)].append(modules[module])
    return found


def _split_of(module: str) -> str:
    tenth = int(_order(module), 16) % sum(SHARES.values())
    for split, share in SHARES.items():
        if tenth < share:
            return split
        tenth -= share
    raise AssertionError(module)


def _texts_of(path: Path, names: re.Pattern[str]) -> Iterator[str]:
    try:
        with catch_warnings(action="ignore"):  # of escapes in strings that other people wrote
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates, and sources of another Python
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        prose = _END_OF_PROSE.split(ast.get_docstring(node) or "", maxsplit=1)[0]
        text = " ".join(names.sub(" ", prose).split())[:MAX_CHARACTERS]
        if len(text.split()) >= MIN_WORDS:
            yield text


def _order(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
