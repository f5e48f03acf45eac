"""What a client sees differ between Triton and our server: the table of docs/triton.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """One on purpose; a row of the table in docs/triton.md."""

    triton: str
    ours: str
    why: str
    http: tuple[str, ...] = ()
    """Calls over HTTP that show it, ``group/name``; ``*`` stands for any text."""
    grpc: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    """Of the answer."""


DIFFERENCES = (
    Difference(
        triton="says `triton`, 2.51.0 and its extensions; platform `onnxruntime_onnx`",
        ours="says `glora-deploy`, its version and the extensions it has; platform `glora_deploy`",
        why="it is another server; no client chooses by these",
        http=("health/server", "models/metadata*"),
        grpc=("health/server", "models/metadata*"),
        paths=("*.name", "*.version", "*.extensions.*", "*.platform"),
    ),
    Difference(
        triton="sends few headers, and a `content-type` with empty bodies",
        ours="none with an empty body; also the time, the request's id, what a browser may do "
        "with the answer, `allow` and `vary` where HTTP wants them, and which delta answered",
        why="proxies, caches and browsers go by them",
        http=("*/*",),
        paths=tuple(
            f"headers.{name}"
            for name in (
                "content-type", "date", "x-request-id", "cache-control", "x-content-type-options",
                "content-security-policy", "cross-origin-resource-policy", "referrer-policy",
                "allow", "vary", "glora-task", "glora-version", "glora-delta",
            )
        ),
    ),
    Difference(
        triton="has shared memory, tracing and logging calls",
        ours="404, UNIMPLEMENTED",
        why="a client's memory and the server's settings are not a client's to touch",
        http=("health/shared memory", "health/trace", "health/logging"),
        grpc=("health/shared memory", "health/trace", "health/logging"),
        paths=("status 200 -> 404", "code OK -> UNIMPLEMENTED"),
    ),
    Difference(
        triton="takes the preprocessed `image` and gives `logits`",
        ours="also takes encoded images as `image_bytes`, and gives `probabilities`",
        why="clients need no preprocessing of their own; where no output is named, both come",
        http=(
            "models/metadata*", "infer/no outputs*", "infer/encoded image", "lengths/raw",
            "outputs/probabilities", "outputs/empty",
        ),
        grpc=(
            "models/metadata*", "infer/no outputs", "infer/encoded image", "outputs/probabilities",
        ),
        paths=(
            "*.inputs.1.*", "*.outputs.1.*", "status 400 -> 200", "code INVALID_ARGUMENT -> OK",
        ),
    ),
    Difference(
        triton="shows its whole configuration: instances, warm-up, optimization, queues",
        ours="shows inputs, outputs, `max_batch_size` and which delta, backbone and preprocessing",
        why="there is nothing else to configure per task; either input alone is a whole call",
        http=("models/config*",),
        grpc=("models/config*",),
        paths=tuple(
            f"*.{field}"
            for field in (
                "platform", "backend", "runtime", "version_policy.*", "instance_group*",
                "model_warmup*", "optimization.*", "dynamic_batching*", "batch_input",
                "batch_output", "cc_model_filenames", "default_model_filename", "metric_tags",
                "input.?.*", "output.?.*", "parameters.precision.*", "parameters.backbone.*",
            )
        ),
    ),
    Difference(
        triton="has one configuration for all versions: `parameters` name the newest delta, and "
        "`versions` in them each number's",
        ours="names the delta of the version that was asked for",
        why="config.pbtxt is one file",
        http=("models/config*",),
        grpc=("models/config*",),
        paths=tuple(
            f"*.parameters.{field}.*" for field in ("version", "versions", "adapter_sha256")
        ),
    ),
    Difference(
        triton="knows versions by number alone",
        ours="takes the store's names too: `v1` and `1` are one",
        why="what `glora list` prints can be asked for",
        http=("*/* v1",),
        grpc=("*/* v1",),
        paths=("status 404 -> 200", "code INVALID_ARGUMENT -> OK"),
    ),
    Difference(
        triton="500, INTERNAL, where a request cannot be parsed or names no model to load",
        ours="400 or 404, INVALID_ARGUMENT or NOT_FOUND",
        why="the mistake is the client's, and sending it again does not help",
        http=(
            "index/ready as text", "index/broken", "load/unknown", "load/broken",
            "load/unknown parameter", "load/file", "load/escaped dots", "lengths/stated '1.5'",
            "lengths/stated '5'", "lengths/stated '151'", "lengths/stated '153'",
            "lengths/not stated", "lengths/negative", "lengths/text", "parameters/id as number",
            "parameters/priority 'x'", "parameters/priority -1", "parameters/timeout 'x'",
            "parameters/a list", "outputs/an object", "outputs/no name", "outputs/classes -1",
            "outputs/classes 'x'", "outputs/classes 1.5", "inputs/not there", "inputs/an object",
            "inputs/datatype 'INT32'", "inputs/datatype 'BYTES'", "inputs/datatype 5",
            "inputs/shape without a batch", "inputs/shape of fewer pixels",
            "inputs/shape of more pixels", "inputs/shape negative", "inputs/shape of strings",
            "inputs/shape of floats", "inputs/shape null", "inputs/shape text",
            "inputs/shape negative as bytes", "inputs/shape of strings as bytes",
            "inputs/shape of floats as bytes", "inputs/shape null as bytes",
            "inputs/shape text as bytes", "data/short", "data/ragged", "data/strings",
            "data/booleans", "data/nulls", "data/object", "data/NaN in json", "bodies/array",
            "bodies/broken", "bodies/text", "bodies/no utf-8", "bodies/trailing",
        ),
        grpc=("load/unknown", "load/file", "load/no name"),
        paths=(
            "status 500 -> 400", "status 500 -> 404", "code INTERNAL -> INVALID_ARGUMENT",
            "code INTERNAL -> NOT_FOUND",
        ),
    ),
    Difference(
        triton="400, INVALID_ARGUMENT, for statistics of what is not there",
        ours="404, NOT_FOUND",
        why="as for everything else that is not there",
        http=("statistics/of one 9", "statistics/of one of another"),
        grpc=("statistics/of one 9", "statistics/of one of another"),
        paths=("status 400 -> 404", "code INVALID_ARGUMENT -> NOT_FOUND"),
    ),
    Difference(
        triton="NOT_FOUND for a name that no model can have",
        ours="INVALID_ARGUMENT, with the rule for names",
        why="it is refused before anything is looked up",
        grpc=("models/* of no name", "models/* of dots", "infer/no model"),
        paths=("code NOT_FOUND -> INVALID_ARGUMENT",),
    ),
    Difference(
        triton="no `memory_usage`",
        ours="bytes held for each version",
        why="which tasks are in memory is what operators ask",
        http=("statistics/*",),
        grpc=("statistics/*",),
        paths=("*.memory_usage*",),
    ),
    Difference(
        triton="forgets a model that was unloaded: 404 or 400 for its metadata, configuration and "
        "statistics, 404 for its inference",
        ours="still describes it; inference is 503, UNAVAILABLE",
        why="the store still has it, and it may come back: a client may try again",
        http=(
            "load/metadata unloaded", "load/config unloaded", "load/statistics unloaded",
            "load/infer unloaded",
        ),
        grpc=(
            "load/metadata unloaded", "load/config unloaded", "load/statistics unloaded",
            "load/infer unloaded",
        ),
        paths=(
            "status 404 -> 200", "status 400 -> 200", "status 404 -> 503", "code * -> OK",
            "code NOT_FOUND -> UNAVAILABLE",
        ),
    ),
    Difference(
        triton="unloads a model that is not there, and with parameters that mean nothing",
        ours="404, NOT_FOUND; 400, INVALID_ARGUMENT",
        why="a misspelt name would seem to have worked",
        http=("load/unload unknown", "load/unload unknown parameter"),
        grpc=("load/unload unknown", "load/unload unknown parameter"),
        paths=(
            "status 200 -> 404", "status 200 -> 400", "code OK -> NOT_FOUND",
            "code OK -> INVALID_ARGUMENT",
        ),
    ),
    Difference(
        triton="computes NaN and infinity",
        ours="400, INVALID_ARGUMENT",
        why="an answer is never NaN",
        http=("data/too large", "data/not a number"),
        grpc=("inputs/not a number",),
        paths=("status 200 -> 400", "code OK -> INVALID_ARGUMENT"),
    ),
    Difference(
        triton="ignores `timeout`, unless a queue policy in config.pbtxt allows it",
        ours="503, DEADLINE_EXCEEDED, once it has passed in the queue",
        why="who waits no longer needs no answer",
        http=("parameters/timeout 1",),
        grpc=("parameters/timeout 1",),
        paths=("status 200 -> 503", "code OK -> DEADLINE_EXCEEDED"),
    ),
    Difference(
        triton="takes an output that is named twice, bytes of more inputs than there are, and an "
        "index request that is no object",
        ours="400, INVALID_ARGUMENT",
        why="it is a mistake; newer versions of Triton refuse the first too",
        http=("outputs/twice", "index/array"),
        grpc=("outputs/twice", "inputs/bytes of one more"),
        paths=("status 200 -> 400", "code OK -> INVALID_ARGUMENT"),
    ),
    Difference(
        triton="of a key that is twice in JSON the first counts",
        ours="the last counts",
        why="as in every parser of Python",
        http=("bodies/a key twice",),
        paths=("status 400 -> 200",),
    ),
    Difference(
        triton="over gRPC refuses `classification` 0, over HTTP takes it for none",
        ours="takes it for none over both",
        why="one meaning",
        grpc=("outputs/classes 0",),
        paths=("code INVALID_ARGUMENT -> OK",),
    ),
)  # fmt: skip
