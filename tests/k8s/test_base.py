"""The manifests: generated, valid for Kubernetes, complete by the catalog, and as open as the contract says.

`kubectl kustomize` renders them once; it needs no cluster.
"""

from __future__ import annotations

import copy
import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from gateway_http import server as http_server
from scripts import manifests
from scripts.manifests import DEPLOYED, called_in_code
from services.catalog import KEY_SOURCE
from services.platform import lifecycle
from services.platform.callees import callees_of
from services.platform.config import Settings
from services.platform.rpc.contract import called_by
from services.platform.transport import server as grpc_server

BASE = Path(__file__).resolve().parents[2] / "k8s" / "base"
# The oldest that is still supported where people run it.
KUBERNETES = "1.34"
KINDS = {"ServiceAccount", "Service", "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"}


@functools.cache
def rendered() -> tuple[dict[str, Any], ...]:
    """Returns every object that `kubectl apply -k k8s/base` would apply."""
    if shutil.which("kubectl") is None:
        if os.environ.get("ROOST_REQUIRE"):
            pytest.fail("kubectl is not installed, and ROOST_REQUIRE lets nothing be skipped")
        pytest.skip("kubectl is not installed")
    built = subprocess.run(["kubectl", "kustomize", str(BASE)], check=True, capture_output=True, text=True)
    return tuple(filter(None, yaml.safe_load_all(built.stdout)))


def of(name: str) -> dict[str, dict[str, Any]]:
    """Returns a copy of one service's objects by kind."""
    return {found["kind"]: copy.deepcopy(found) for found in rendered() if found["metadata"]["name"] == name}


def config() -> dict[str, str]:
    return dict(of("roost")["ConfigMap"]["data"])


def settings() -> Settings:
    """What the ConfigMap sets."""
    prefix = "ROOST_"
    return Settings(
        **{key.removeprefix(prefix).lower(): value for key, value in config().items() if key.startswith(prefix)}
    )


def refused(document: dict[str, Any]) -> str:
    """What the schema says against it; empty where it is valid."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


def test_generated_manifests_match_catalog_contract_and_needs() -> None:
    assert not manifests.stale(), "run .venv/bin/python scripts/manifests.py and commit what it writes"


def test_stale_manifests_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(manifests.FOLDER, tmp_path / "services")
    monkeypatch.setattr(manifests, "FOLDER", tmp_path / "services")
    assert not manifests.stale()
    changed, missing, left = (
        tmp_path / "services" / name / "kustomization.yaml" for name in ("tweet", "graph", "gone")
    )
    changed.write_text(changed.read_text() + "# by hand")
    missing.unlink()
    left.parent.mkdir()
    left.touch()
    assert manifests.stale() == sorted([changed, missing, left])
    assert manifests.main() == 0
    assert not manifests.stale()
    assert not left.parent.exists()


@pytest.mark.parametrize("wrong", ["[twete]\ncpu = '1'\n", "[tweet]\ncpus = '1'\n"])
def test_needs_that_name_nothing_are_refused(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "NEEDS", tmp_path / "needs.toml")
    manifests.NEEDS.write_text(wrong)
    with pytest.raises(ValueError, match="there are"):
        manifests.manifests()


def test_every_object_is_valid() -> None:
    for document in rendered():
        assert not refused(document), document["metadata"]["name"]


def test_the_check_would_see_a_misspelt_probe() -> None:
    deployment = of("tweet")["Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")
    assert "livenesProbe" in refused(deployment)


def test_every_service_has_its_objects() -> None:
    assert {found["metadata"].get("namespace") for found in rendered() if found["kind"] != "Namespace"} == {"roost"}
    deployed = sorted(found["metadata"]["name"] for found in rendered() if found["kind"] == "Deployment")
    assert deployed == sorted([*DEPLOYED, "gateway"])
    for name in deployed:
        assert set(of(name)) == KINDS, name
    # The component's own words are nowhere left.
    assert not [found for found in rendered() if found["metadata"]["name"] == "service"]


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
        for document in rendered()
        if document["kind"] == "Service" and document["spec"]["selector"]["app.kubernetes.io/name"] == name
        for port in document["spec"]["ports"]
    }
    assert "ops" not in targets


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
    partitions = int(config()["ROOST_KAFKA_PARTITIONS"])
    assert of("fanout")["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] == partitions


def test_grace_outlasts_every_step_of_a_stop() -> None:
    drain_s = float(config()["ROOST_DRAIN_S"])
    # In this order, none at the same time as another: drain, requests, workers, calls, stores.
    longest_s = drain_s + http_server.GRACE_S + lifecycle.STOP_WITHIN_S + grpc_server.GRACE_S + lifecycle.STOP_WITHIN_S
    for name in (*DEPLOYED, "gateway"):
        pod = of(name)["Deployment"]["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > longest_s


def test_the_drain_outlasts_the_probes_that_must_see_it() -> None:
    drain_s = float(config()["ROOST_DRAIN_S"])
    for name in (*DEPLOYED, "gateway"):
        only = container(of(name))
        probe = only["readinessProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] < drain_s
        # The process drains by itself: a hook would hold it up twice.
        assert "lifecycle" not in only
