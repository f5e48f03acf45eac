"""What docs/triton.md shows is what the servers do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

import calls_grpc
import calls_http
from glora_deploy.export.cli.commands import app as export_app
from glora_deploy.serving.cli import app as serving_app
from glora_deploy.serving.grpc.errors import CODES
from grpc_server import ServedGrpc
from toy_engine import SIZE, sha256_of
from triton_differences import DIFFERENCES

PAGE = (Path(__file__).parents[3] / "docs" / "triton.md").read_text("utf-8")


def test_the_table_of_differences_is_the_one_that_is_tested() -> None:
    rows = PAGE.partition("| Triton | ours | why |\n|---|---|---|\n")[2].splitlines()
    assert rows == [f"| {one.triton} | {one.ours} | {one.why} |" for one in DIFFERENCES]


def test_as_many_calls_are_compared_as_it_says() -> None:
    groups = [*calls_http.cases().values(), *calls_grpc.cases().values()]
    assert f"sends the same {sum(map(len, groups))} calls to both" in PAGE


def test_every_code_is_on_the_page() -> None:
    table = PAGE.partition("| code | when |")[2].partition("##")[0]
    for _, code in CODES:
        assert code.name in table


def test_every_option_that_is_named_is_there() -> None:
    known = {
        flag
        for app in (export_app, serving_app)
        for option in typer.main.get_command(app).params
        for flag in option.opts
    }
    ours = PAGE.replace("--model-repository", "").replace("--model-control-mode", "")
    named = set(re.findall(r"(?<![-\w])(--[a-z][a-z-]+)", ours.replace("--load-model", "")))
    assert len(named) > 5
    assert named <= known


def test_the_lines_for_nvidias_client_are_answered(
    served: ServedGrpc, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"GRPC_ADDRESS": served.address}
    exec(block.replace("32, 32", f"{SIZE}, {SIZE}"), names)
    names["client"].close()
    printed = capsys.readouterr().out
    assert len(re.findall(r"b'-?\d\.\d{6}:\d:\w+'", printed)) == 3
    assert sha256_of("digits", "v1") in printed
