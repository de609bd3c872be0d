"""The manifests: valid for Kubernetes, complete by the registry, and as open as the contract says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from roost.options.v1 import options_pb2

from services.common.config import Settings
from services.common.contract import methods
from services.registry import SERVICES

BASE = Path(__file__).resolve().parents[2] / "k8s" / "base"
# The oldest that is still supported where people run it.
KUBERNETES = "1.34"
# The registry is for where there is no Kubernetes.
DEPLOYED = [name for name in SERVICES if name != "mesh"]
KINDS = {"ServiceAccount", "Service", "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"}


def documents(path: Path) -> Iterator[dict[str, Any]]:
    yield from filter(None, yaml.safe_load_all(path.read_text()))


def of(name: str) -> dict[str, dict[str, Any]]:
    """One service's objects by kind."""
    return {found["kind"]: found for found in documents(BASE / f"{name}.yaml") if found["metadata"]["name"] == name}


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
    assert found["Deployment"]["spec"]["replicas"] == scaler["minReplicas"]
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
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= only.keys()
    assert {"cpu", "memory"} <= only["resources"]["requests"].keys()
    assert "memory" in only["resources"]["limits"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"]["readOnlyRootFilesystem"] is True
    assert only["securityContext"]["allowPrivilegeEscalation"] is False
    assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", DEPLOYED)
def test_network_policies_let_in_whom_the_contract_lets_call(name: str) -> None:
    callers = {
        caller
        for method in methods().values()
        if method.folder == name and method.policy.access == options_pb2.ACCESS_MESH
        for caller in method.policy.callers
    }
    (rule,) = of(name)["NetworkPolicy"]["spec"]["ingress"]
    allowed = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in rule["from"]}
    assert allowed == {"gateway", *(callers & set(DEPLOYED))} - {name}


def test_settings_are_known_and_name_every_service() -> None:
    data = next(document for document in documents(BASE / "config.yaml"))["data"]
    settings = Settings(**{key.removeprefix("ROOST_").lower(): value for key, value in data.items()})
    assert settings.family == "cluster"
    assert settings.peers == {name: f"dns:///{name}:50051" for name in DEPLOYED}


def test_no_replica_of_fan_out_is_without_a_partition() -> None:
    partitions = int(next(documents(BASE / "config.yaml"))["data"]["ROOST_KAFKA_PARTITIONS"])
    assert of("fanout")["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] == partitions


def test_grace_outlasts_the_drain() -> None:
    drain_s = float(next(documents(BASE / "config.yaml"))["data"]["ROOST_DRAIN_S"])
    for name in (*DEPLOYED, "gateway"):
        assert of(name)["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain_s + 40
