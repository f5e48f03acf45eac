"""The tutorial's commands, run in their order on a folder of small pictures."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner, Result

from glora_deploy.commands.main import app
from glora_deploy.store.store import ArtifactStore

PAGE = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text("utf-8")
CLASSES = ("good", "hole", "scratch")
INSTALL = "python -m venv"
"""What only a reader without an environment needs."""


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if not line.startswith(INSTALL)]


def picture(rng: np.random.Generator, kind: str) -> Image.Image:
    """A grey part, with a dark hole or a bright scratch somewhere in it."""
    image = Image.fromarray(np.clip(rng.normal(150, 12, (64, 72, 3)), 0, 255).astype(np.uint8))
    x, y = (int(value) for value in rng.integers(16, 44, 2))
    draw = ImageDraw.Draw(image)
    if kind == "hole":
        draw.ellipse((x - 10, y - 10, x + 10, y + 10), fill=(10, 10, 10))
    if kind == "scratch":
        draw.line((x - 14, y - 14, x + 14, y + 14), fill=(250, 250, 250), width=5)
    return image


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Result]]:
    """Each command with what came of it, in a folder with the images of the page."""
    rng = np.random.default_rng(0)
    results: dict[str, Result] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        patch.delenv("GLORA_STORE", raising=False)
        for kind in CLASSES:
            (Path("parts") / kind).mkdir(parents=True)
            for index in range(12):
                picture(rng, kind).save(Path("parts") / kind / f"{index}.png")
        Path("new").mkdir()
        picture(rng, "hole").save("new/one.png")
        picture(rng, "scratch").save("new/two.png")
        for number, line in enumerate(commands()):
            program, *words = shlex.split(line)
            assert program == "glora"
            results[f"{number}: {line}"] = CliRunner().invoke(app, words)
        yield results


def of(done: dict[str, Result], start: str) -> list[str]:
    """What the commands that begin so have printed."""
    return [one.output for line, one in done.items() if line.partition(": ")[2].startswith(start)]


def test_every_command_of_the_tutorial_succeeds(done: dict[str, Result]) -> None:
    assert len(done) >= 8
    assert {line: one.output for line, one in done.items() if one.exit_code} == {}


def test_what_the_tutorial_says_of_them_is_so(done: dict[str, Result]) -> None:
    store = ArtifactStore.open("artifacts")
    first, second = (store.get("parts", version).manifest for version in ("v1", "v2"))
    assert (first.training.method, second.training.method) == ("glora", "lora")
    assert set(first.labels) == set(CLASSES)
    assert store.get("parts").version == "v1"  # after the rollback
    before, after = of(done, "glora list")
    assert "parts/v1" in before
    assert "parts/v2" not in before
    assert "parts/v2" in after
    (answers,) = of(done, "glora predict")
    assert "one.png" in answers
    assert "two.png" in answers
    # It trained on pictures like these: it cannot but tell a hole from a scratch.
    found = {
        line.split()[0].rpartition("/")[2]: line for line in answers.splitlines() if ".png" in line
    }
    assert "hole" in found["one.png"]
    assert "scratch" in found["two.png"]


def test_the_lines_of_python_run(
    done: dict[str, Result], capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 1
    names: dict[str, Any] = {}
    exec(blocks[0], names)
    assert names["answer"].label == "hole"
    assert capsys.readouterr().out.startswith("hole ")
