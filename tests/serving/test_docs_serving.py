"""What docs/serving.md shows is what the server does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from glora_deploy.serving.cli import app as program
from glora_deploy.serving.http import inference, page, predict, repository
from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.http.schemas import Predictions
from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.settings import ServerSettings
from http_server import Served, serving
from toy_engine import ToyEngine, sha256_of

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
TOKEN = "changing-token"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """The tasks of the page, in a folder with its image."""
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "seven.png")
    monkeypatch.chdir(tmp_path)
    engine = ToyEngine({"digits": ["v1", "v2"]})
    with serving(build_app(engine, ServerSettings(tokens=Tokens(management=TOKEN)))) as running:
        yield running
    engine.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_for_curl_are_answered(served: Served) -> None:
    (block,) = blocks("bash")
    done = subprocess.run(
        ["bash", "-ec", f"URL={served.url}\n" + block.replace("\ncurl", "\necho; curl")],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["version"], len(first["predictions"][0]["top"])) == ("v2", 3)
    assert (second["version"], len(second["predictions"])) == ("v1", 2)
    (shown,) = blocks("json")
    Predictions.model_validate_json(shown)


def test_the_lines_for_nvidias_client_are_answered(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    ask, load = blocks("python")
    names: dict[str, Any] = {"ADDRESS": served.address, "MANAGEMENT_TOKEN": TOKEN}
    exec(ask, names)
    printed = capsys.readouterr().out
    assert re.search(r"b'0\.\d{6}:\d:\w+'", printed)
    assert sha256_of("digits", "v2") in printed
    exec(load, names)
    exec(ask, names)
    assert sha256_of("digits", "v1") in capsys.readouterr().out
    names["client"].close()


def test_every_option_that_is_named_is_there_and_every_default_true() -> None:
    text = CliRunner().invoke(program, ["--help"], env={"COLUMNS": "200"}).output
    named = set(re.findall(r"`(--[a-z-]+)", PAGE)) - {"--no-deps"}
    assert len(named) > 15
    missing = {option for option in named if option not in text}
    assert missing == set()
    for option, default in re.findall(r"`(--[a-z-]+)` (\d+\w*)", PAGE):
        (panel,) = re.findall(rf"│ {option} .*?(?=\n│ --|\n╰)", text, re.DOTALL)
        assert f"[default: {default}" in panel or default == "50", option


def test_every_route_is_on_the_page() -> None:
    routers = (inference.router, repository.router, repository.managed, predict.router)
    paths = {
        route.path
        for router in (*routers, page.metrics)
        for route in router.routes
        if isinstance(route, APIRoute)
    }
    spelled = PAGE.replace("[/versions/{version}]", "")
    for path in paths:
        plain = path.replace("/versions/{version}", "")
        last = plain.rpartition("/")[2]
        assert f"{plain}" in spelled or f"`…/{last}" in spelled, path


def test_every_metric_that_is_named_is_there() -> None:
    engine = ToyEngine()
    with TestClient(build_app(engine), "http://127.0.0.1") as client:
        text = client.get("/metrics").text
    engine.close()
    for name in re.findall(r"`(glora_\w+)", PAGE):
        assert re.search(rf"^# TYPE {name.removesuffix('_total')}(_total)? ", text, re.M), name
