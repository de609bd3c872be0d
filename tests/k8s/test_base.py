"""The manifests: valid for Kubernetes, complete by the registry, and as open as the contract says."""

from __future__ import annotations

import ast
import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from gateway_http import server as http_server
from services.catalog import KEY_SOURCE, SERVICES
from services.platform import process
from services.platform.config import Settings
from services.platform.process import callees_of
from services.platform.rpc.contract import called_by
from services.platform.transport import server as grpc_server

BASE = Path(__file__).resolve().parents[2] / "k8s" / "base"
SERVICES_FOLDER = Path(__file__).resolve().parents[2] / "services"
# The oldest that is still supported where people run it.
KUBERNETES = "1.34"
# The registry is for where there is no Kubernetes.
DEPLOYED = [name for name in SERVICES if name != "registry"]
KINDS = {"ServiceAccount", "Service", "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"}


def documents(path: Path) -> Iterator[dict[str, Any]]:
    yield from filter(None, yaml.safe_load_all(path.read_text()))


def of(name: str) -> dict[str, dict[str, Any]]:
    """One service's objects by kind."""
    return {found["kind"]: found for found in documents(BASE / f"{name}.yaml") if found["metadata"]["name"] == name}


def settings() -> Settings:
    """What the ConfigMap sets."""
    data = next(documents(BASE / "config.yaml"))["data"]
    prefix = "ROOST_"
    return Settings(
        **{key.removeprefix(prefix).lower(): value for key, value in data.items() if key.startswith(prefix)}
    )


def refused(document: dict[str, Any]) -> str:
    """What the schema says against it; empty where it is valid."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


@pytest.mark.parametrize("path", sorted(BASE.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_object_is_valid(path: Path) -> None:
    for document in documents(path):
        if document["kind"] != "Kustomization":
            assert not refused(document), document["metadata"]["name"]


def test_the_check_would_see_a_misspelt_probe() -> None:
    deployment = of("tweet")["Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")
    assert "livenesProbe" in refused(deployment)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
def test_kustomize_builds_it() -> None:
    built = subprocess.run(["kubectl", "kustomize", str(BASE)], check=True, capture_output=True, text=True)
    found = list(filter(None, yaml.safe_load_all(built.stdout)))
    assert {document["metadata"].get("namespace") for document in found if document["kind"] != "Namespace"} == {"roost"}
    assert sorted(d["metadata"]["name"] for d in found if d["kind"] == "Deployment") == sorted([*DEPLOYED, "gateway"])


def test_every_service_has_its_objects() -> None:
    listed = next(documents(BASE / "kustomization.yaml"))["resources"]
    for name in (*DEPLOYED, "gateway"):
        assert f"{name}.yaml" in listed
        assert set(of(name)) == KINDS, name


@pytest.mark.parametrize("name", [*DEPLOYED, "gateway"])
def test_the_objects_of_a_service_fit_together(name: str) -> None:
    found = of(name)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    label = {"app.kubernetes.io/name": name}
    assert label.items() <= labels.items()
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == label
    assert found["Service"]["spec"]["selector"] == label
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == label
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == label
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == name
    assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]
    # `kubectl apply` would set back what the autoscaler has set.
    assert "replicas" not in found["Deployment"]["spec"]
    ports = {port["name"] for port in container(found)["ports"]}
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} <= ports


def container(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (only,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(only)


@pytest.mark.parametrize("name", [*DEPLOYED, "gateway"])
def test_pods_run_restricted_with_probes_and_bounds(name: str) -> None:
    found = of(name)
    pod, only = found["Deployment"]["spec"]["template"]["spec"], container(found)
    assert only["args"][:2] == ["serve", name]
    assert {"cpu", "memory"} <= only["resources"]["requests"].keys()
    assert "memory" in only["resources"]["limits"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"]["readOnlyRootFilesystem"] is True
    assert only["securityContext"]["allowPrivilegeEscalation"] is False
    assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", [*DEPLOYED, "gateway"])
def test_probes_and_scrapes_go_to_the_ops_port(name: str) -> None:
    found = of(name)
    only = container(found)
    paths = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert {probe: only[probe]["httpGet"] for probe in paths} == {
        probe: {"path": path, "port": "ops"} for probe, path in paths.items()
    }
    port = next(port["containerPort"] for port in only["ports"] if port["name"] == "ops")
    assert settings().ops_address == f"0.0.0.0:{port}"
    annotations = found["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(port),
        "prometheus.io/path": "/metrics",
    }
    # And nobody else: a Service would offer it to the whole cluster.
    targets = {
        port["targetPort"]
        for document in documents(BASE / f"{name}.yaml")
        if document["kind"] == "Service"
        for port in document["spec"]["ports"]
    }
    assert "ops" not in targets


def modules_of(name: str) -> Iterator[Path]:
    """Every module of `services` that is in the process of a service: its own, the process itself, and what they import."""
    todo = [
        *(SERVICES_FOLDER / name).rglob("*.py"),
        SERVICES_FOLDER / "platform" / "process.py",
        SERVICES_FOLDER / "catalog.py",
    ]
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        yield path
        for module, imported in imports_of(path):
            for dotted in (module, f"{module}.{imported}"):
                place = SERVICES_FOLDER.parent.joinpath(*dotted.split("."))
                todo += [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]


@functools.cache
def imports_of(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every `from module import name`, wherever it is in the file."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [(node.module, alias.name) for node in nodes if node.module for alias in node.names]


@functools.cache
def called_in_code(name: str) -> set[str]:
    """The services whose stubs are in the process of a service."""
    found = set()
    for path in modules_of(name):
        text = path.read_text()
        for module, imported in imports_of(path):
            # `from roost.graph.v1 import graph_service_pb2_grpc`, or a stub out of that module.
            generated = f"{module}.{imported}".startswith("roost.") and "_pb2_grpc" in f"{module}.{imported}"
            if generated and (imported.endswith("Stub") or (imported.endswith("_grpc") and "Stub(" in text)):
                found.add(module.split(".")[1])
    return found


@pytest.mark.parametrize("name", DEPLOYED)
def test_network_policies_let_in_whom_contract_and_code_let_call(name: str) -> None:
    callers = {caller for caller in DEPLOYED if name in called_by(caller) | called_in_code(caller)}
    rule, scrapes = of(name)["NetworkPolicy"]["spec"]["ingress"]
    allowed = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in rule["from"]}
    assert allowed == {"gateway", *callers} - {name}
    assert rule["ports"] == [{"port": "grpc"}]
    assert scrapes["ports"] == [{"port": "ops"}]


@pytest.mark.parametrize("name", DEPLOYED)
def test_a_process_follows_the_peers_that_its_code_calls(name: str) -> None:
    assert called_in_code(name) - {name, "registry"} <= callees_of(name, KEY_SOURCE.service)


def test_settings_are_known_and_name_every_service() -> None:
    assert settings().backend == "cluster"
    assert settings().static_peers == {name: f"dns:///{name}:50051" for name in DEPLOYED}


def test_no_replica_of_fan_out_is_without_a_partition() -> None:
    partitions = int(next(documents(BASE / "config.yaml"))["data"]["ROOST_KAFKA_PARTITIONS"])
    assert of("fanout")["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] == partitions


def test_grace_outlasts_every_step_of_a_stop() -> None:
    drain_s = float(next(documents(BASE / "config.yaml"))["data"]["ROOST_DRAIN_S"])
    # In this order, none at the same time as another: drain, requests, workers, calls, stores.
    longest_s = drain_s + http_server.GRACE_S + process.STOP_WITHIN_S + grpc_server.GRACE_S + process.STOP_WITHIN_S
    for name in (*DEPLOYED, "gateway"):
        pod = of(name)["Deployment"]["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > longest_s


def test_the_drain_outlasts_the_probes_that_must_see_it() -> None:
    drain_s = float(next(documents(BASE / "config.yaml"))["data"]["ROOST_DRAIN_S"])
    for name in (*DEPLOYED, "gateway"):
        only = container(of(name))
        probe = only["readinessProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] < drain_s
        # The process drains by itself: a hook would hold it up twice.
        assert "lifecycle" not in only
