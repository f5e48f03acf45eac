"""What a public repository has beside its code is well formed, and says the same in each place."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import glora_deploy
from tracked_files import ROOT, tracked_files

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
YAML = [name for name in tracked_files() if Path(name).suffix in {".yml", ".yaml", ".cff"}]
JSON = [name for name in tracked_files() if name.endswith(".json")]
BINARY = {".safetensors", ".png"}
TEXT = [name for name in tracked_files() if Path(name).suffix not in BINARY]
MAX_BYTES = 2 << 20  # as --maxkb of check-added-large-files
FORM_KEYS = {
    "markdown": {"value"},
    "input": {"label"},
    "textarea": {"label"},
    "dropdown": {"label", "options"},
    "checkboxes": {"label", "options"},
}
"""What each element of an issue form must say, and there are no other elements."""


class UniqueKeys(yaml.SafeLoader):
    """YAML in which no key may stand twice: the last would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands twice in {keys}"
        return super().construct_mapping(node, deep)


def read_yaml(name: str) -> Any:
    (document,) = read_documents(name)
    return document


def read_documents(name: str) -> list[Any]:
    return list(yaml.load_all((ROOT / name).read_text("utf-8"), UniqueKeys))  # a SafeLoader


@pytest.mark.parametrize("name", YAML)
def test_every_yaml_file_can_be_read(name: str) -> None:
    found = read_documents(name)
    assert found
    assert all(isinstance(document, dict) for document in found)


@pytest.mark.parametrize("name", JSON)
def test_every_json_file_can_be_read(name: str) -> None:
    json.loads((ROOT / name).read_text("utf-8"))


def test_text_files_are_clean() -> None:
    unclean = []
    for name in TEXT:
        text = (ROOT / name).read_bytes()
        golden = name.startswith("tests/golden/")  # their bytes are the test
        unclean += [
            f"{name}: {what}"
            for what, found in {
                "no UTF-8": text.decode("utf-8", "replace").encode() != text,
                "white space at the end of a line": not golden and re.search(rb"[ \t]\n", text),
                "no single newline at the end": not golden and text and not _ends_well(text),
                "carriage return": not golden and b"\r" in text,
                "mark of a merge": re.search(rb"^(<{7} |={7}\n|>{7} )", text, re.MULTILINE),
            }.items()
            if found
        ]
    assert unclean == []


def _ends_well(text: bytes) -> bool:
    return text.endswith(b"\n") and not text.endswith(b"\n\n")


def test_no_file_is_large_and_no_two_names_differ_in_case_alone() -> None:
    large = [name for name in tracked_files() if (ROOT / name).stat().st_size > MAX_BYTES]
    assert large == []
    assert len({name.casefold() for name in tracked_files()}) == len(tracked_files())


def test_the_hooks_before_a_commit_are_what_make_check_runs() -> None:
    hooks = {
        hook["id"]: hook
        for repo in read_yaml(".pre-commit-config.yaml")["repos"]
        for hook in repo["hooks"]
    }
    makefile = (ROOT / "Makefile").read_text("utf-8")
    run_by_make = re.findall(r"^\t\$\(BIN\)/((?:ruff|mypy).*)$", makefile, re.MULTILINE)
    run_by_hooks = [
        hooks[name]["entry"].removeprefix(".venv/bin/").replace(" --force-exclude", "")
        for name in ("ruff", "ruff-format", "mypy")
    ]
    # make names the folder, and a hook is given the files.
    assert run_by_hooks == [command.removesuffix(" .") for command in run_by_make]
    assert hooks["check-added-large-files"]["args"] == [f"--maxkb={MAX_BYTES >> 10}"]
    hygiene = {"trailing-whitespace", "end-of-file-fixer", "mixed-line-ending", "check-yaml"}
    assert hygiene <= set(hooks)


def test_the_workflow_checks_every_python_with_the_oldest_and_the_newest_versions() -> None:
    workflow = read_yaml(".github/workflows/check.yml")
    assert workflow["permissions"] == {"contents": "read"}
    job = workflow["jobs"]["check"]
    matrix = job["strategy"]["matrix"]
    pythons = [
        name.rpartition(" ")[2]
        for name in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", name)
    ]
    # One more may be tried before it is promised.
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert set(pythons) <= set(matrix["python"])
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert matrix["versions"] == ["newest", "oldest"]
    by_version = {case["versions"]: case for case in matrix["include"]}
    assert by_version["newest"]["resolution"] == "highest"
    assert by_version["newest"]["target"] == "check"
    assert by_version["oldest"]["resolution"] == "lowest-direct"
    assert by_version["oldest"]["target"] == "test"


def test_the_workflow_runs_targets_and_variables_that_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    jobs = read_yaml(".github/workflows/check.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    made = [command for command in commands if command.startswith("make ")]
    targets = {case["target"] for case in jobs["check"]["strategy"]["matrix"]["include"]}
    targets |= {command.split()[1] for command in made} - {"${{"}
    assert targets == {"install", "check", "test", "docs", "dist"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for variable in [*jobs["check"]["env"], *re.findall(r" ([A-Z]+)=", " ".join(made))]:
        assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), variable


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_form_asks_for_what_is_needed_to_answer(name: str) -> None:
    form = read_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    for element in form["body"]:
        assert FORM_KEYS[element["type"]] <= set(element["attributes"])
    asked = {element["id"] for element in form["body"] if element["type"] != "markdown"}
    required = {
        element["id"] for element in form["body"] if element.get("validations", {}).get("required")
    }
    needed = {"bug": {"command", "error", "versions"}, "feature": {"goal", "versions"}}[name]
    assert needed <= required <= asked


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["abstract"] == PROJECT["description"]
    (paper,) = citation["references"]
    assert paper["title"].startswith("One-for-All: Generalized LoRA")
    assert paper["url"] == "https://arxiv.org/abs/2306.07967"
    assert [author["family-names"] for author in paper["authors"]] == [
        "Chavan", "Liu", "Gupta", "Xing", "Shen",
    ]  # fmt: skip


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT.get("dynamic", [])
    source = Path(glora_deploy.__file__).read_text("utf-8")
    assert PROJECT["version"] not in source
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(
        rf"^## (Unreleased|{re.escape(PROJECT['version'])})\b", changelog, re.MULTILINE
    )


def test_vulnerabilities_are_reported_in_private() -> None:
    security = (ROOT / "SECURITY.md").read_text("utf-8")
    assert "Report a vulnerability" in security
    assert not re.search(r"\S+@\S+\.\S+", security)
    assert "SECURITY.md" in (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text("utf-8")
