"""Writes the Kubernetes manifests of the services to `k8s/services/`.

Run it after a change of the catalog, of a `callers` list in a proto, of `k8s/needs.toml`, or after a service began to
use another stub. A test fails if the committed files differ from the generated ones.

All services use the kustomize component `k8s/service`. The manifest of a service patches it with the resources in
`k8s/needs.toml`, and with a network policy for the services that call it: those in the `callers` lists of its RPCs, and
those whose code uses its stubs.
"""

from __future__ import annotations

import ast
import functools
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from services.catalog import SERVICES
from services.platform.rpc.contract import called_by

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "k8s" / "services"
NEEDS = ROOT / "k8s" / "needs.toml"
SERVICES_FOLDER = ROOT / "services"
PORT = 50051

# The services that run on Kubernetes. The registry is not needed there, because Kubernetes' DNS has the addresses.
DEPLOYED = tuple(name for name in SERVICES if name != "registry")

HEADER = "# Written by scripts/manifests.py from the catalog, the protos, the code and k8s/needs.toml. Do not edit.\n"
SERVICE = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
components: [../../service]
configMapGenerator:
  - name: {name}
    options: {{disableNameSuffixHash: true, annotations: {{config.kubernetes.io/local-config: "true"}}}}
"""
ALL = """\
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
resources:
{resources}
patches:
  - target: {{kind: ConfigMap, name: roost}}
    # Addresses of the services: headless names, balanced by gRPC.
    patch: |-
      - op: add
        path: /data/ROOST_STATIC_PEERS
        value: {peers}
"""
PATCH = "  - target: {{kind: {kind}}}\n    patch: |-\n"
CONTAINER = "/spec/template/spec/containers/0/resources"


def manifests() -> Mapping[Path, str]:
    """Returns the text of every generated file by path. Raises ValueError if `k8s/needs.toml` contains an unknown
    service or key."""
    needs = tomllib.loads(NEEDS.read_text())
    if unknown := sorted(needs.keys() - set(DEPLOYED)):
        raise ValueError(
            f"k8s/needs.toml: no service {', '.join(unknown)} is deployed; there are {', '.join(DEPLOYED)}"
        )
    peers = ",".join(f"{name}=dns:///{name}:{PORT}" for name in DEPLOYED)
    resources = "\n".join(f"  - {name}" for name in DEPLOYED)
    found = {FOLDER / "kustomization.yaml": HEADER + ALL.format(resources=resources, peers=peers)}
    for name in DEPLOYED:
        found[FOLDER / name / "kustomization.yaml"] = (
            HEADER + SERVICE.format(name=name) + _patches(name, needs.get(name, {}))
        )
    return found


def stale() -> list[Path]:
    """Returns the paths of files in `k8s/services/` that differ from the generated ones, are missing, or belong to no
    service."""
    wanted = manifests()
    committed = {path: path.read_text() for path in FOLDER.rglob("*") if path.is_file()}
    return sorted(path for path in wanted.keys() | committed.keys() if wanted.get(path) != committed.get(path))


def callers_of(name: str) -> list[str]:
    """Returns the deployed services that may call the service `name`, in start order: the `callers` of its RPCs, and
    the services whose code uses its stubs."""
    return [other for other in DEPLOYED if other != name and name in called_by(other) | called_in_code(other)]


@functools.cache
def called_in_code(name: str) -> frozenset[str]:
    """Returns the services whose stubs are used by a process of the service `name`.

    The searched modules are those of the service, those that every process runs, and all modules that these import.
    """
    todo = [
        *(SERVICES_FOLDER / name).rglob("*.py"),
        SERVICES_FOLDER / "platform/process.py",
        SERVICES_FOLDER / "catalog.py",
    ]
    seen: set[Path] = set()
    found: set[str] = set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            imported, stubs = _read(path)
            todo += imported
            found |= stubs
    return frozenset(found)


@functools.cache
def _read(path: Path) -> tuple[tuple[Path, ...], frozenset[str]]:
    """Returns the files of `services` that a module imports, and the services whose stubs it uses. Imports inside
    functions count too."""
    text = path.read_text()
    files: set[Path] = set()
    stubs: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        for alias in node.names:
            dotted = f"{node.module}.{alias.name}"
            # For example `from roost.graph.v1 import graph_service_pb2_grpc`, or an import of a stub from such a
            # module.
            if dotted.startswith("roost.") and "_pb2_grpc" in dotted:
                if alias.name.endswith("Stub") or (alias.name.endswith("_grpc") and "Stub(" in text):
                    stubs.add(dotted.split(".")[1])
            elif dotted.startswith("services."):
                # In `from A import B`, either A is a module and B its member, or A is a package and B its module.
                places = (ROOT.joinpath(*name.split(".")) for name in (node.module, dotted))
                files.update(file for place in places for file in (place.with_suffix(".py"), place / "__init__.py"))
    return tuple(file for file in files if file.is_file()), frozenset(stubs)


def _patches(name: str, needs: Mapping[str, Any]) -> str:
    """Returns the patches of the service `name`, as YAML. `needs` is the service's table in `k8s/needs.toml`. Raises
    ValueError if it has an unknown key."""
    deployment: list[str] = []
    scaler: list[str] = []
    for key, value in needs.items():
        match key:
            case "cpu":
                deployment.append(_replace(f"{CONTAINER}/requests/cpu", value))
            case "memory":
                deployment.append(_replace(f"{CONTAINER}/requests/memory", value[0]))
                deployment.append(_replace(f"{CONTAINER}/limits/memory", value[1]))
            case "replicas":
                scaler.append(_replace("/spec/minReplicas", value[0]))
                scaler.append(_replace("/spec/maxReplicas", value[1]))
            case "cpu_percent":
                scaler.append(_replace("/spec/metrics/0/resource/target/averageUtilization", value))
            case _:
                raise ValueError(
                    f"k8s/needs.toml: {name}.{key} is not known; there are cpu, memory, replicas, cpu_percent"
                )
    policy = [
        "{op: add, path: /spec/ingress/0/from/-, value: "
        f"{{podSelector: {{matchLabels: {{app.kubernetes.io/name: {caller}}}}}}}}}"
        for caller in callers_of(name)
    ]
    kinds = (("Deployment", deployment), ("HorizontalPodAutoscaler", scaler), ("NetworkPolicy", policy))
    text = "".join(_patch(kind, operations) for kind, operations in kinds if operations)
    return f"patches:\n{text}" if text else ""


def _replace(path: str, value: str | int) -> str:
    return f"{{op: replace, path: {path}, value: {value}}}"


def _patch(kind: str, operations: Iterable[str]) -> str:
    return PATCH.format(kind=kind) + "".join(f"      - {operation}\n" for operation in operations)


def main() -> int:
    """Writes the files that differ, removes those that belong to no service, and prints the path of each. Returns the
    exit status."""
    try:
        wanted = manifests()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for path in stale():
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
            print(f"written: {os.path.relpath(path, ROOT)}")
        else:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
            print(f"removed: {os.path.relpath(path, ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
