"""The files of ``deploy/`` are what their published schemas allow and what the program takes."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from compose_pydantic import ComposeSpecification
from pydantic import ValidationError

from glora_deploy.serving.cli import app, to_bytes

DEPLOY = Path(__file__).parents[2] / "deploy"
KSERVE_CRD = "GLORA_KSERVE_CRD"
"""Variable that names serving.kserve.io_inferenceservices.yaml of a KServe release: 2 MB, so it is
not kept here."""
KUBERNETES = "1.37"
OF_KSERVE = {"minReplicas", "maxReplicas", "timeout"}
"""Fields of a predictor that are KServe's; all others are a pod's."""


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


def deployment() -> dict[str, Any]:
    (found,) = [one for one in documents("kubernetes.yaml") if one["kind"] == "Deployment"]
    return found


def predictor() -> dict[str, Any]:
    (service,) = documents("kserve.yaml")
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    found: dict[str, Any] = service["spec"]["predictor"]
    return found


def pod_of(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "glora"}, "spec": spec}


def pods() -> dict[str, dict[str, Any]]:
    own = {key: value for key, value in predictor().items() if key not in OF_KSERVE}
    return {"kubernetes": deployment()["spec"]["template"]["spec"], "kserve": own}


def commands() -> dict[str, list[str]]:
    found = {name: pod["containers"][0]["args"] for name, pod in pods().items()}
    (compose,) = documents("compose.yaml")
    return found | {"compose": compose["services"]["glora"]["command"]}


def seconds_to_drain(arguments: list[str]) -> float:
    (stated,) = [one for one in arguments if one.startswith("--drain-s=")]
    return float(stated.partition("=")[2])


def budget(arguments: list[str]) -> int:
    (stated,) = [one for one in arguments if one.startswith("--memory-budget=")]
    return to_bytes(stated.partition("=")[2])


def misspelt(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every field of a document, as the keys that lead to it and its name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if path and isinstance(key, str) and "/" not in key:
                yield path, key
            yield from misspelt(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from misspelt(inner, (*path, index))


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_kubernetes_takes_every_document() -> None:
    kinds = [one["kind"] for one in documents("kubernetes.yaml")]
    assert kinds == ["Service", "PodDisruptionBudget", "Deployment"]
    for document in documents("kubernetes.yaml"):
        validate(document)


def test_the_predictor_of_kserve_is_a_pod() -> None:
    assert set(predictor()) >= OF_KSERVE
    validate(pod_of(pods()["kserve"]))


def refuse_unknown_fields(schema: Any) -> None:
    """Turn Kubernetes' dialect of JSON schema into one that names every field it does not know."""
    if isinstance(schema, list):
        for each in schema:
            refuse_unknown_fields(each)
    if not isinstance(schema, dict):
        return
    open_ended = ("additionalProperties", "x-kubernetes-preserve-unknown-fields")
    if "properties" in schema and not any(schema.get(name) for name in open_ended):
        schema["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("anyOf", None)
        schema["type"] = ["integer", "string"]
    for each in schema.values():
        refuse_unknown_fields(each)


def problems_for_kserve(document: dict[str, Any], crd: dict[str, Any]) -> list[str]:
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1beta1"]
    schema = copy.deepcopy(version["schema"]["openAPIV3Schema"])
    refuse_unknown_fields(schema)
    schema["properties"]["metadata"] = {}  # Kubernetes' own
    return [each.message for each in jsonschema.Draft202012Validator(schema).iter_errors(document)]


@pytest.mark.skipif(KSERVE_CRD not in os.environ, reason=f"{KSERVE_CRD} names no CRD of KServe")
def test_kserve_takes_its_file() -> None:
    crd = yaml.safe_load(Path(os.environ[KSERVE_CRD]).read_text("utf-8"))
    (document,) = documents("kserve.yaml")
    assert problems_for_kserve(document, crd) == []
    document["spec"]["predictor"]["minReplica"] = 1
    (problem,) = problems_for_kserve(document, crd)
    assert "minReplica" in problem


def test_compose_takes_its_file() -> None:
    (document,) = documents("compose.yaml")
    ComposeSpecification.model_validate(document)
    document["services"]["glora"]["read_onli"] = True
    with pytest.raises(ValidationError, match="read_onli"):
        ComposeSpecification.model_validate(document)


def test_a_field_that_is_misspelt_is_noticed() -> None:
    whole = deployment()
    noticed = 0
    for path, key in misspelt(whole):
        if path[-1] in ("labels", "annotations", "matchLabels", "limits", "requests"):
            continue  # any name may stand there
        changed = copy.deepcopy(whole)
        at = changed
        for step in path:
            at = at[step]
        at[f"{key}x"] = at.pop(key)
        with pytest.raises(kubernetes_validate.ValidationError):
            validate(changed)
        noticed += 1
    assert noticed > 40


@pytest.mark.parametrize("name", ["kubernetes", "kserve", "compose"])
def test_the_program_takes_the_arguments(name: str) -> None:
    command = typer.main.get_command(app)
    command.make_context("glora serve", list(commands()[name]))
    with pytest.raises(Exception, match="No such option"):
        command.make_context("glora serve", [*commands()[name], "--memory-budgets=1GiB"])


@pytest.mark.parametrize("name", ["kubernetes", "kserve"])
def test_a_pod_may_drain_before_it_is_killed(name: str) -> None:
    pod = pods()[name]
    hook = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {})
    (_, pause) = hook.get("command", ["sleep", "0"])
    needed = seconds_to_drain(commands()[name]) + float(pause)
    assert pod["terminationGracePeriodSeconds"] > needed


def test_so_may_a_container_of_compose() -> None:
    (document,) = documents("compose.yaml")
    grace = document["services"]["glora"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > seconds_to_drain(commands()["compose"])


def test_memory_has_room_for_the_budget_and_a_backbone() -> None:
    (compose,) = documents("compose.yaml")
    limits = {
        **{
            name: pod["containers"][0]["resources"]["limits"]["memory"]
            for name, pod in pods().items()
        },
        "compose": compose["services"]["glora"]["mem_limit"].upper() + "iB",
    }
    for name, limit in limits.items():
        there = to_bytes(limit if limit.endswith("B") else f"{limit}B")
        # Backbone and one task of a ViT-B, and what Python and a batch take.
        assert there >= budget(commands()[name]) + 2 * 350_000_000 + 500_000_000, name


@pytest.mark.parametrize("name", ["kubernetes", "kserve"])
def test_a_pod_may_do_nothing_but_serve(name: str) -> None:
    pod = pods()[name]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(mount.get("readOnly") for mount in container["volumeMounts"][:-1])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"].startswith("/v2/health/")


def test_all_run_the_image_that_the_dockerfile_makes() -> None:
    (compose,) = documents("compose.yaml")
    images = {pod["containers"][0]["image"] for pod in pods().values()}
    images.add(compose["services"]["glora"]["image"])
    (image,) = images
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text("utf-8")
    assert re.search(rf"--target server -t {re.escape(image)} ", dockerfile)
