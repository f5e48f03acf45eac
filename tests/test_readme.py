"""What README, docs and the other pages name exists: commands, options, targets, files."""

from __future__ import annotations

import re
import shlex
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

import glora_deploy.commands.main
import glora_deploy.export.cli.commands
import glora_deploy.serving.cli
import glora_deploy.training.cli
from tracked_files import ROOT, tracked_files

README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / ".github").rglob("*.yml")),
]
PROGRAMS = {
    "glora": glora_deploy.commands.main.app,
    "glora-export": glora_deploy.export.cli.commands.app,
    "glora-serve": glora_deploy.serving.cli.app,
    "glora-train": glora_deploy.training.cli.app,
    "python -m glora_deploy.export": glora_deploy.export.cli.commands.app,
    "python -m glora_deploy.serving": glora_deploy.serving.cli.app,
    "python -m glora_deploy.training": glora_deploy.training.cli.app,
}
OTHERS = {"docker", "git", "make", "pip", "python", "tritonserver"}
"""Programs that a page may start and that are not of this project."""

UsageError = typer.BadParameter.__bases__[0]
"""Typer brings a Click of its own in some releases, so it is found by what derives from it."""

FILE = re.compile(r"[\w.*-]+(/[\w.*-]+)*/?")
SOURCE_SUFFIXES = {".py", ".md", ".sh", ".yml", ".cff"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def shell_lines(text: str) -> list[str]:
    """Every ``$ command`` of the console blocks: continued lines joined, comments dropped."""
    blocks = "\n".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL))
    lines = re.findall(r"^\$ (.*)$", blocks.replace("\\\n", " "), re.MULTILINE)
    return [line.partition("  #")[0].strip() for line in lines]


def code_spans(text: str) -> list[str]:
    """What stands between single backquotes, on one line as a reader sees it."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def named_commands(text: str) -> list[str]:
    """Commands outside console blocks: indented lines and code spans that start a program."""
    indented = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    return [line for line in [*indented, *code_spans(text)] if program_of(line) and " " in line]


def without_folder(line: str) -> str:
    """``.venv/bin/python -m x`` as ``python -m x``."""
    return re.sub(r"^\S+/bin/", "", line)


def program_of(line: str) -> str | None:
    """The longest name of a program of ours that the line starts with."""
    started = [name for name in PROGRAMS if f"{without_folder(line)} ".startswith(f"{name} ")]
    return max(started, key=len, default=None)


def parse(command: Any, words: list[str]) -> None:
    """Parse the words as the program would, down to its subcommand.

    Raises:
        UsageError: If there is no such option or subcommand, or a value is none that it takes.
    """
    with command.make_context(command.name, list(words)) as context:
        rest = [*context._protected_args, *context.args]
        if rest:
            _, subcommand, rest = command.resolve_command(context, rest)
            parse(subcommand, rest)


def parsed(line: str) -> None:
    """Fail if the line starts no program that exists, or one that does not take its words."""
    program = program_of(line)
    line = without_folder(line)
    if program is not None:
        words = shlex.split(line.removeprefix(program))
        with suppress(typer.Exit):  # --help
            parse(typer.main.get_command(PROGRAMS[program]), words)
        return
    name, *words = shlex.split(line)
    assert name in OTHERS, f"{name} is no program of this project"
    if name == "make":
        for target in words:
            require_target(target)
    elif name == "python" and words[0] == "-m":
        assert find_spec(words[1]), f"{words[1]} is no module"
    elif name == "python":
        source = (ROOT / words[0]).read_text("utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, f"{words[0]} has no {option}"


def require_target(name: str) -> None:
    """Fail if the Makefile has no such target."""
    done = subprocess.run(
        ["make", "--dry-run", name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def lines_of_pages(find: Any) -> list[Any]:
    """One test case for each line that is found in a page."""
    return [
        pytest.param(line, id=f"{name_of(page)}: {line}")
        for page in PAGES
        for line in dict.fromkeys(find(page.read_text("utf-8")))
    ]


@pytest.fixture
def _trained_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings that a page may take to be there."""
    folder = tmp_path / "artifacts/digits/v1"
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text('task = "digits"\n')
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_trained_digits")
@pytest.mark.parametrize("line", lines_of_pages(shell_lines))
def test_every_command_of_a_console_block_parses(line: str) -> None:
    try:
        parsed(line)
    except UsageError as error:
        pytest.fail(error.format_message())


@pytest.mark.usefixtures("_trained_digits")
@pytest.mark.parametrize("line", lines_of_pages(named_commands))
def test_every_command_in_a_sentence_parses(line: str) -> None:
    try:
        parsed(line)
    except UsageError as error:
        # A sentence may leave out what does not matter to it: arguments, the value of an option.
        message = error.format_message()
        left_out = re.search(r"^Missing |requires an argument", message)
        if not left_out and type(error).__name__ != "NoArgsIsHelpError":
            pytest.fail(message)


def options_of(command: Any) -> set[str]:
    """Every option of the command and of what is below it."""
    own = {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}
    if not hasattr(command, "commands"):
        return own
    with command.make_context(command.name, [], resilient_parsing=True) as context:
        below = [command.resolve_command(context, [name])[1] for name in command.commands]
    return own.union(*map(options_of, below))


def named_options(text: str) -> set[str]:
    """Options that stand in a sentence by themselves, ``--fmt onnx``."""
    return {span.split()[0].partition("=")[0] for span in code_spans(text) if span.startswith("--")}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_in_a_sentence_is_one_of_a_program(page: Path) -> None:
    options = set[str]().union(
        *(options_of(typer.main.get_command(app)) for app in PROGRAMS.values())
    )
    assert named_options(page.read_text("utf-8")) - options == set()


def test_an_option_in_a_sentence_is_found() -> None:
    assert named_options("`--fmt onnx`, `--max-loss`; `a --b`") == {"--fmt", "--max-loss"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("glora list --no-such", "No such option"),
        ("glora no-such", "No such command"),
        ("glora-export --task digits --fmt no-such", "'no-such' is not one of"),
        ("python -m glora_deploy.export verify --task digits --no-such", "No such option"),
        (".venv/bin/glora show", "Missing argument"),
    ],
)
def test_a_command_that_the_program_refuses_is_found(line: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parsed(line)
    assert message in error.value.format_message()


@pytest.mark.parametrize(
    "line",
    ["no-such x", "make no-such", "python -m no_such", "python benchmarks/quantize.py --no-such"],
)
def test_a_program_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        parsed(line)


def test_the_readme_shows_the_way_from_images_to_answers() -> None:
    shown = [line.split()[:2] for line in shell_lines(README.read_text("utf-8"))]
    for command in ("train", "export", "predict", "pull", "list"):
        assert ["glora", command] in shown


@pytest.mark.parametrize(
    "target",
    [span.removeprefix("make ") for page in PAGES for span in code_spans(page.read_text("utf-8"))
     if re.fullmatch(r"make [a-z-]+", span)],
)  # fmt: skip
def test_every_make_target_in_a_sentence_exists(target: str) -> None:
    require_target(target)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text("utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    missing = [name for name in named_files(page.read_text("utf-8")) if not found(name)]
    assert missing == []


def test_a_file_that_does_not_exist_is_found() -> None:
    text = "`tests/none.py`, `none.py` and `store/none.py`, `docs/none/`; `tests/`, `cpu_kernel.py`"
    missing = ["tests/none.py", "none.py", "store/none.py", "docs/none/"]
    assert [name for name in named_files(text) if not found(name)] == missing


def named_files(text: str) -> list[str]:
    """Code spans that are a path below a folder of the repository, or a file of its sources."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    spans = [span for span in code_spans(text) if FILE.fullmatch(span)]
    return [
        span
        for span in spans
        if ("/" in span and span.split("/")[0] in folders) or Path(span).suffix in SOURCE_SUFFIXES
    ]


def found(name: str) -> bool:
    """Whether the path, or the end of one (``store/manifest.py``), is in the repository."""
    if any(ROOT.glob(name.rstrip("/"))):
        return True
    return any(f"/{path}".endswith(f"/{name}") for path in tracked_files())
