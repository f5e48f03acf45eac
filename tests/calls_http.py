"""Calls over HTTP as bytes, by group and name; each group leaves a server as it found it."""

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype("<f4")
LENGTH = "Inference-Header-Content-Length"
MODEL = "/v2/models/pets"
INFER = f"{MODEL}/infer"
LOGITS = [{"name": "logits"}]
N = IMAGES.size


@dataclass(frozen=True, slots=True)
class HttpCall:
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def get(path: str) -> HttpCall:
    return HttpCall("GET", path)


def post(path: str, record: Any = None, **headers: str) -> HttpCall:
    """JSON, or bytes as they are; nothing if None."""
    body = record if isinstance(record, bytes) else b"" if record is None else dumped(record)
    return HttpCall("POST", path, body, {key.replace("_", "-"): v for key, v in headers.items()})


def dumped(record: Any) -> bytes:
    return json.dumps(record).encode()


def listed(values: NDArray[Any] = IMAGES, **changed: Any) -> dict[str, Any]:
    """An input with its values in JSON."""
    return announced(values, data=values.reshape(-1).tolist()) | changed


def announced(values: NDArray[Any] = IMAGES, **changed: Any) -> dict[str, Any]:
    """An input without values."""
    return {"name": "image", "shape": list(values.shape), "datatype": "FP32"} | changed


def sized(values: NDArray[Any] = IMAGES, **changed: Any) -> dict[str, Any]:
    """An input with its values behind the JSON."""
    return announced(values, parameters={"binary_data_size": values.nbytes}) | changed


def infer(path: str = INFER, *, outputs: Any = LOGITS, **record: Any) -> HttpCall:
    """A call with values in JSON."""
    record = {"inputs": [listed()]} | record
    return post(path, record if outputs is None else record | {"outputs": outputs})


def binary(record: Any, tail: bytes, *, length: str | None = None, **headers: str) -> HttpCall:
    """A call whose tensors are behind its JSON."""
    head = dumped({"outputs": LOGITS} | record)
    stated = {LENGTH: str(len(head)) if length is None else length}
    return HttpCall(
        "POST", INFER, head + tail, stated | {k.replace("_", "-"): v for k, v in headers.items()}
    )


def output(**parameters: Any) -> list[dict[str, Any]]:
    return [{"name": "logits", "parameters": parameters}]


def packed(call: HttpCall, encoding: str, body: bytes) -> HttpCall:
    return HttpCall("POST", call.path, body, {**call.headers, "Content-Encoding": encoding})


def encoded_image() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def cases() -> dict[str, dict[str, HttpCall]]:
    raw = IMAGES.tobytes()
    whole = binary({"inputs": [sized()]}, raw)
    in_json = infer()
    to_bytes_or_json = {
        as_bytes: {"inputs": [sized()], "outputs": output(binary_data=as_bytes)}
        for as_bytes in (True, False)
    }
    png = encoded_image()
    length = int(whole.headers[LENGTH])
    not_finite = IMAGES.copy()
    not_finite[0, 0, 0, 0] = np.nan
    many = np.zeros((33, 3, 32, 32), "<f4")
    half = IMAGES.astype("<f2")
    shapes: dict[str, Any] = {
        "flat": [N],
        "without a batch": [3, 32, 32],
        "of fewer pixels": [2, 3, 32, 31],
        "of more pixels": [2, 3, 32, 33],
        "negative": [-1, 3, 32, 32],
        "of strings": ["2", 3, 32, 32],
        "of floats": [2.0, 3, 32, 32],
        "with five dimensions": [1, 2, 3, 32, 32],
        "huge": [1 << 40, 1 << 40, 3, 32],
        "null": None,
        "text": "x",
        "empty": [],
    }
    by_version = {"": MODEL, " 1": f"{MODEL}/versions/1", " 2": f"{MODEL}/versions/2"}
    odd_version = {" 9": f"{MODEL}/versions/9", " v1": f"{MODEL}/versions/v1"}
    odd_version |= {" of none": f"{MODEL}/versions/", " of another": "/v2/models/dogs"}
    versions = by_version | odd_version
    cars, load = "/v2/models/cars", "/v2/repository/models"
    return {
        "health": {
            "live": get("/v2/health/live"),
            "ready": get("/v2/health/ready"),
            "live by POST": post("/v2/health/live"),
            "server": get("/v2"),
            "server with a slash": get("/v2/"),
            "unknown path": get("/v2/nothing"),
            "unknown root": get("/v3"),
            "shared memory": get("/v2/systemsharedmemory/status"),
            "trace": get("/v2/trace/setting"),
            "logging": get("/v2/logging"),
        },
        "models": {
            **{f"metadata{name}": get(path) for name, path in versions.items()},
            **{f"ready{name}": get(f"{path}/ready") for name, path in versions.items()},
            **{f"config{name}": get(f"{path}/config") for name, path in versions.items()},
            "metadata by POST": post(MODEL),
        },
        "statistics": {
            **{
                f"first infer{name}": infer(f"{path}/infer")
                for name, path in (by_version | {" cars": cars}).items()
            },
            "all": get("/v2/models/stats"),
            **{f"of one{name}": get(f"{path}/stats") for name, path in versions.items()},
        },
        "index": {
            "empty body": post("/v2/repository/index"),
            "ready": post("/v2/repository/index", {"ready": True}),
            "not ready": post("/v2/repository/index", {"ready": False}),
            "ready as text": post("/v2/repository/index", {"ready": "x"}),
            "broken": post("/v2/repository/index", b"{"),
            "array": post("/v2/repository/index", []),
            "by GET": get("/v2/repository/index"),
        },
        "load": {
            "load": post(f"{load}/cars/load", {}),
            "empty body": post(f"{load}/cars/load"),
            "unknown": post(f"{load}/dogs/load", {}),
            "broken": post(f"{load}/cars/load", b"{"),
            "unknown parameter": post(f"{load}/cars/load", {"parameters": {"x": "1"}}),
            "file": post(f"{load}/cars/load", {"parameters": {"file:1/model.onnx": "QUJD"}}),
            "dots": post(f"{load}/../load", {}),
            "escaped dots": post(f"{load}/%2e%2e/load", {}),
            "by GET": get(f"{load}/cars/load"),
            "unload": post(f"{load}/cars/unload", {}),
            "infer unloaded": infer(f"{cars}/infer"),
            "infer unloaded 1": infer(f"{cars}/versions/1/infer"),
            "ready unloaded": get(f"{cars}/ready"),
            "ready unloaded 1": get(f"{cars}/versions/1/ready"),
            "metadata unloaded": get(cars),
            "config unloaded": get(f"{cars}/config"),
            "statistics unloaded": get(f"{cars}/stats"),
            "server ready unloaded": get("/v2/health/ready"),
            "index unloaded": post("/v2/repository/index"),
            "index ready unloaded": post("/v2/repository/index", {"ready": True}),
            "unload again": post(f"{load}/cars/unload"),
            "unload unknown": post(f"{load}/dogs/unload", {}),
            "unload dependents": post(
                f"{load}/cars/unload", {"parameters": {"unload_dependents": True}}
            ),
            "unload unknown parameter": post(f"{load}/cars/unload", {"parameters": {"x": True}}),
            "load back": post(f"{load}/cars/load", {}),
            "infer again": infer(f"{cars}/infer"),
        },
        "infer": {
            "json": in_json,
            "binary": whole,
            "binary to binary": binary(to_bytes_or_json[True], raw),
            "binary to json": binary(to_bytes_or_json[False], raw),
            "json to binary": infer(outputs=output(binary_data=True)),
            "json to json": infer(outputs=output(binary_data=False)),
            "no outputs": infer(outputs=None),
            "no outputs as bytes": infer(outputs=None, parameters={"binary_data_output": True}),
            "all as bytes but one": infer(
                parameters={"binary_data_output": True}, outputs=output(binary_data=False)
            ),
            "nested": infer(inputs=[announced(data=IMAGES.tolist())]),
            "version 1": infer(f"{MODEL}/versions/1/infer"),
            "version 9": infer(f"{MODEL}/versions/9/infer"),
            "version v1": infer(f"{MODEL}/versions/v1/infer"),
            "another model": infer("/v2/models/dogs/infer"),
            "encoded image": binary(
                {
                    "inputs": [
                        {
                            "name": "image_bytes",
                            "datatype": "BYTES",
                            "shape": [1, 1],
                            "parameters": {"binary_data_size": len(png) + 4},
                        }
                    ]
                },
                len(png).to_bytes(4, "little") + png,
            ),
            "by GET": get(INFER),
            "slash": infer(f"{INFER}/"),
            "as json": post(INFER, in_json.body, content_type="application/json"),
            "as octets": post(INFER, in_json.body, content_type="application/octet-stream"),
            "32 images": binary({"inputs": [sized(many[:32])]}, many[:32].tobytes()),
        },
        "compression": {
            "gzip": packed(whole, "gzip", gzip.compress(whole.body)),
            "deflate": packed(whole, "deflate", zlib.compress(whole.body)),
            "gzip of json": packed(in_json, "gzip", gzip.compress(in_json.body)),
            "identity": packed(whole, "identity", whole.body),
            "unknown": packed(whole, "br", whole.body),
            "gzip cut off": packed(whole, "gzip", gzip.compress(whole.body)[:200]),
            "no gzip at all": packed(whole, "gzip", whole.body),
            **{
                f"accept {accepted}": binary({"inputs": [sized()]}, raw, accept_encoding=accepted)
                for accepted in (
                    "gzip",
                    "deflate",
                    "br",
                    "gzip, deflate",
                    "identity",
                    "*",
                    "gzip;q=0",
                )
            },
            "accept gzip of json": post(INFER, in_json.body, accept_encoding="gzip"),
        },
        "lengths": {
            "raw": HttpCall("POST", INFER, IMAGES[:1].tobytes(), {LENGTH: "0"}),
            "raw of two": HttpCall("POST", INFER, raw, {LENGTH: "0"}),
            "raw cut off": HttpCall("POST", INFER, IMAGES[:1].tobytes()[:-4], {LENGTH: "0"}),
            **{
                f"stated {stated!r}": binary({"inputs": [sized()]}, raw, length=stated)
                for stated in (
                    "-1",
                    "abc",
                    "",
                    "1.5",
                    "5",
                    "99999999",
                    "9" * 23,
                    str(length - 1),
                    str(length + 1),
                )
            },
            "not stated": HttpCall("POST", INFER, whole.body),
            "left over": binary({"inputs": [sized()]}, raw + b"1234"),
            "missing": binary({"inputs": [sized()]}, raw[:-4]),
            "too small": binary(
                {"inputs": [announced(parameters={"binary_data_size": len(raw) - 4})]}, raw[:-4]
            ),
            "negative": binary({"inputs": [announced(parameters={"binary_data_size": -1})]}, raw),
            "text": binary({"inputs": [announced(parameters={"binary_data_size": "x"})]}, raw),
            "and data": binary({"inputs": [sized(data=[1])]}, raw),
        },
        "parameters": {
            "id": infer(id="seven"),
            "empty id": infer(id=""),
            "id as number": infer(id=7),
            **{
                f"{name} {value!r}": infer(parameters={name: value})
                for name, value in (
                    ("priority", 1),
                    ("priority", "x"),
                    ("priority", -1),
                    ("timeout", 20_000_000),
                    ("timeout", "x"),
                    ("timeout", 1),
                    ("mine", "x"),
                    ("mine", 1.5),
                    ("mine", True),
                    ("mine", {}),
                    ("sequence_id", 0),
                    ("sequence_start", True),
                    ("triton_x", 1),
                    ("headers", "x"),
                )
            },
            "a list": infer(parameters=[]),
        },
        "outputs": {
            "twice": infer(outputs=LOGITS * 2),
            "unknown": infer(outputs=[{"name": "x"}]),
            "probabilities": infer(outputs=[{"name": "probabilities"}]),
            "empty": infer(outputs=[]),
            "an object": infer(outputs={}),
            "no name": infer(outputs=[{}]),
            **{
                f"classes {k!r}": infer(outputs=output(classification=k))
                for k in (1, 2, 0, 99, -1, "x", 1.5)
            },
            "classes as bytes": infer(outputs=output(classification=2, binary_data=True)),
        },
        "inputs": {
            "another name": infer(inputs=[listed(name="x")]),
            "not there": post(INFER, {}),
            "none": infer(inputs=[]),
            "two": infer(inputs=[listed(), listed()]),
            "one more": infer(inputs=[listed(), listed(name="x")]),
            "an object": infer(inputs={}),
            **{
                f"datatype {datatype!r}": infer(inputs=[listed(datatype=datatype)])
                for datatype in ("FP64", "INT32", "FP16", "BYTES", "FP31", "", 5)
            },
            "datatype FP16 as bytes": binary(
                {"inputs": [sized(half, datatype="FP16")]}, half.tobytes()
            ),
            **{
                f"shape {name}": infer(inputs=[listed(shape=shape)])
                for name, shape in shapes.items()
            },
            **{
                f"shape {name} as bytes": binary({"inputs": [sized(shape=shape)]}, raw)
                for name, shape in shapes.items()
            },
            "no image": infer(inputs=[listed(IMAGES[:0])]),
            "33 images": binary({"inputs": [sized(many)]}, many.tobytes()),
        },
        "data": {
            "short": infer(inputs=[announced(data=[1.0])]),
            "ragged": infer(inputs=[announced(data=[[1.0], [1.0, 2.0]])]),
            "strings": infer(inputs=[announced(data=["1"] * N)]),
            "integers": infer(inputs=[announced(data=[1] * N)]),
            "booleans": infer(inputs=[announced(data=[True] * N)]),
            "not there": infer(inputs=[announced()]),
            "nulls": infer(inputs=[announced(data=[None] * N)]),
            "object": infer(inputs=[announced(data={})]),
            "too large": infer(inputs=[announced(data=[1e300] * N)]),
            "nested otherwise": infer(inputs=[announced(data=IMAGES.reshape(2, -1).tolist())]),
            "not a number": binary({"inputs": [sized()]}, not_finite.tobytes()),
            "NaN in json": post(INFER, in_json.body.replace(b'"data": [', b'"data": [NaN, ', 1)),
        },
        "bodies": {
            "empty": post(INFER),
            "array": post(INFER, b"[]"),
            "broken": post(INFER, b'{"inputs":'),
            "deep": post(INFER, b'{"inputs":' + b"[" * 200 + b"]" * 200 + b"}"),
            "text": post(INFER, b'"x"'),
            "no utf-8": post(INFER, b'{"id":"\xff"}'),
            "a key twice": post(INFER, b'{"inputs":[],' + in_json.body[1:]),
            "trailing": post(INFER, in_json.body + b"x"),
            "unknown key": post(INFER, b'{"other":1,' + in_json.body[1:]),
        },
    }


def answer_of(address: str, call: HttpCall) -> tuple[dict[str, Any], Mapping[str, str]]:
    """What a server answers: what of it is compared, and all headers."""
    connection = http.client.HTTPConnection(address)
    headers = {"Authorization": "Bearer changing-token", **call.headers}
    connection.request(call.method, call.path, call.body or None, headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    told = {key.lower(): value for key, value in response.getheaders()}
    encoding = told.get("content-encoding")
    body = gzip.decompress(body) if encoding == "gzip" else body
    body = zlib.decompress(body) if encoding == "deflate" else body
    stated = told.get(LENGTH.lower())
    end = len(body) if stated is None else int(stated)
    record = json.loads(body[:end]) if end else None
    found = {
        "status": response.status,
        "content-type": told.get("content-type") if record is not None else None,
        "content-encoding": encoding,
        "headers": dict.fromkeys(told, "sent"),
        "json": record,
    }
    if isinstance(record, dict):
        at = end
        for tensor in record.get("outputs", ()):
            if isinstance(tensor, dict) and "data" not in tensor and "parameters" in tensor:
                size = tensor["parameters"]["binary_data_size"]
                tensor["bytes"] = decoded(tensor["datatype"], body[at : at + size])
                at += size
        assert at == len(body)
    return found, told


def decoded(datatype: str, raw: bytes) -> list[Any]:
    """The values of a tensor's bytes."""
    if datatype == "FP32":
        values: list[Any] = np.frombuffer(raw, "<f4").tolist()
        return values
    found, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        found.append(raw[at + 4 : end].decode())
        at = end
    return found
