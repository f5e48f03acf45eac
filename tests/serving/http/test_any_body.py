"""Whatever comes as a request of a route that is documented, the answer blames it if anybody."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from pydantic import ValidationError
from starlette.testclient import TestClient

from glora_deploy.serving.http.app import build_app
from glora_deploy.serving.http.schemas import Error
from glora_deploy.serving.protocol.tokens import Tokens
from glora_deploy.serving.settings import ServerSettings
from toy_engine import SIZE, ToyEngine

MANAGEMENT = "changing-token"
QUICK = settings(deadline=None, max_examples=500)


@pytest.fixture(scope="module")
def anyone() -> Iterator[TestClient]:
    engine = ToyEngine()
    app = build_app(engine, ServerSettings(tokens=Tokens(management=MANAGEMENT)))
    with TestClient(app, "http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client
    engine.close()


def routes() -> list[tuple[str, str]]:
    """Every method and path that is documented; those that read most come up most often."""
    engine = ToyEngine()
    document = build_app(engine).openapi()
    engine.close()
    return [
        (method, path)
        for path, methods in document["paths"].items()
        for method in methods
        for _ in range(10 if path.endswith(("/infer", "/predict")) else 1)
    ]


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (1, 2, 3)).save(file, kind)
    return file.getvalue()


PICTURES = [encoded(kind) for kind in ("PNG", "JPEG", "WEBP")]
NAMES = st.sampled_from([*["pets"] * 9, "digits", "cars", "..", "stats", "a b"])
VERSIONS = st.sampled_from(["1", "1", "1", "1", "v1", "2", "9", "..", "0"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["image", "image_bytes", "FP32", "BYTES", "logits", "INT8", "FP16", "BOOL"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@st.composite
def nearly_right(draw: st.DrawFn) -> Any:
    """A call of inference in which some values are replaced by any others."""

    def maybe(right: Any) -> Any:
        return draw(JSON) if draw(st.integers(0, 11)) == 0 else right

    tensor: dict[str, Any] = {
        "name": maybe("image"),
        "datatype": maybe("FP32"),
        "shape": maybe([1, 3, maybe(SIZE), SIZE]),
        "data": maybe([0.5] * (3 * SIZE * SIZE)),
        "parameters": maybe({"binary_data_size": maybe(4)}),
    }
    for key in draw(st.lists(st.sampled_from(sorted(tensor)), max_size=2)):
        tensor.pop(key, None)
    parameters = {"priority": maybe(1), "timeout": maybe(10**7), "binary_data_output": maybe(True)}
    output = {"name": maybe("logits"), "parameters": maybe({"classification": maybe(2)})}
    return {
        "id": maybe("a"),
        "parameters": maybe(parameters),
        "inputs": maybe([tensor] * draw(st.integers(0, 2))),
        "outputs": maybe([output] * draw(st.integers(0, 2))),
        "ready": maybe(True),
    }


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A picture in which bytes are replaced, or that is cut."""
    picture = bytearray(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.integers(0, 3))):
        picture[draw(st.integers(0, len(picture) - 1))] = draw(st.integers(0, 255))
    return bytes(picture[: draw(st.integers(0, len(picture)))])


@st.composite
def form(draw: st.DrawFn) -> bytes:
    parts = draw(st.lists(spoiled() | st.binary(max_size=20), max_size=5))
    head = draw(
        st.sampled_from([b'; name="i"; filename="f"', b'; name="i"', b"", b'; filename=""'])
    )
    inner = b"".join(
        b"--b\r\nContent-Disposition: form-data" + head + b"\r\n\r\n" + part + b"\r\n"
        for part in parts
    )
    return inner + draw(st.sampled_from([b"--b--\r\n", b"--b", b""]))


BODIES = (
    st.binary(max_size=64)
    | nearly_right().map(lambda body: json.dumps(body).encode())
    | nearly_right().map(lambda body: json.dumps(body).encode())
    | JSON.map(lambda body: json.dumps(body).encode())
    | spoiled()
    | form()
    | nearly_right().map(lambda body: gzip.compress(json.dumps(body).encode()))
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(
            ["image/png", "multipart/form-data; boundary=b", "multipart/form-data", "text/plain"]
        ),
        "content-encoding": st.sampled_from(["gzip", "deflate", "br", ""]),
        "accept-encoding": st.sampled_from(["gzip", "deflate;q=0", "*", "\xff"]),
        "inference-header-content-length": st.integers(-1, 300).map(str) | st.just("x"),
        "authorization": st.sampled_from([f"Bearer {MANAGEMENT}", "Basic !", "Bearer \xe9", ""]),
        "x-request-id": st.sampled_from(["a", "\xff", "a b", "x" * 500]),
        "traceparent": st.sampled_from(["00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x"]),
    },
)
QUERY = st.fixed_dictionaries(
    {},
    optional={
        "top_k": st.sampled_from(["1", "0", "x", "99999999999", "-1"]),
        "version": VERSIONS | st.just(""),
    },
)


@QUICK
@given(
    route=st.sampled_from(routes()),
    name=NAMES,
    version=VERSIONS,
    body=BODIES,
    headers=HEADERS,
    query=QUERY,
)
def test_nothing_that_comes_is_our_own_fault(
    anyone: TestClient,
    route: tuple[str, str],
    name: str,
    version: str,
    body: bytes,
    headers: dict[str, str],
    query: dict[str, str],
) -> None:
    method, path = route
    url = path.format(model=name, task=name, version=version)
    sent = {key: value.encode("latin1") for key, value in headers.items()}
    response = anyone.request(method, url, content=body, headers=sent, params=query)
    assert response.status_code < 500 or response.status_code in (501, 503)
    if response.status_code != 200:
        try:
            Error.model_validate_json(response.content)
        except ValidationError:
            pytest.fail(f"{response.status_code}: {response.content!r}")
    assert anyone.get("/v2/health/live").status_code == 200
