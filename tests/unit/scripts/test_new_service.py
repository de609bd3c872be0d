"""`scripts/new-service` in a copy of the tree: what it writes passes the checks and the tests of a service, and answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import new_service

ROOT = Path(__file__).resolve().parents[3]
COPIED = (
    "gateway_http",
    "k8s",
    "protos",
    "roost_cli",
    "roost_client",
    "scripts",
    "services",
    "tests",
    "pyproject.toml",
)
# Type check and tests take about a minute on a machine with nothing else to do.
WITHIN_S = 500
# Sorts after `platform`, unlike the name in the templates: so the order of their imports must change.
NAME = "survey"
# What `docs/add-a-service.md` says of the files that are written.
NEW_FILES = 17
CHANGED_FILES = {
    "services/catalog.py",
    "tests/functional/test_routes.py",
    "k8s/services/kustomization.yaml",
    # It may be asked for the keys that verify access tokens.
    "k8s/services/identity/kustomization.yaml",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the tree that new services may be written to."""
    ignored = shutil.ignore_patterns("__pycache__", ".*cache")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(source, tmp_path / name)
    if (ROOT / ".mypy_cache").exists():
        shutil.copytree(ROOT / ".mypy_cache", tmp_path / ".mypy_cache")
    return tmp_path


def run(tree: Path, *arguments: str, timeout_s: float = WITHIN_S) -> subprocess.CompletedProcess[str]:
    """Runs Python with the copy's packages in place of the installed ones. Its output is part of a failure's message."""
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'protos'}"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )


def files(tree: Path) -> dict[str, str]:
    """Returns the text of every file that people or generators commit, by path."""
    return {
        path.relative_to(tree).as_posix(): path.read_text(errors="replace")
        for path in tree.rglob("*")
        if path.is_file() and "_pb2" not in path.name and not {"__pycache__", ".git", ".mypy_cache"} & set(path.parts)
    }


@pytest.mark.slow
def test_new_service_passes_its_checks_and_answers(tree: Path) -> None:
    before = files(tree)
    made = run(tree, "scripts/new_service.py", NAME)
    assert made.returncode == 0, made.stdout
    after = files(tree)
    new = after.keys() - before.keys()
    changed = {path for path in before if after[path] != before[path]}
    assert not before.keys() - after.keys()
    assert len(new) == NEW_FILES, sorted(new)
    assert changed == CHANGED_FILES
    assert all(f"written: {path}" in made.stdout for path in new if not path.startswith("k8s/"))
    mine = [f"services/{NAME}", f"tests/unit/services/{NAME}", f"tests/contract/{NAME}"]
    for check in (
        ("-m", "ruff", "check", *mine, "services/catalog.py", "tests/functional/test_routes.py"),
        ("-m", "ruff", "format", "--check", *mine, "services/catalog.py", "tests/functional/test_routes.py"),
        ("-m", "mypy", "-p", f"services.{NAME}"),
        ("-c", "import sys; from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"),
        ("-m", "pytest", "-q", *mine[1:], "tests/unit/protos"),
        ("-m", "pytest", "-q", "tests/unit/test_house.py", "-k", "service"),
        ("-m", "pytest", "-q", "tests/k8s", "-k", f"generated or {NAME}"),
        # The whole way: HTTP, gateway, the service in a mesh, its store, and that no route is left untried.
        ("-m", "pytest", "-q", "tests/functional/test_routes.py", "-k", "SetNote or cover"),
    ):
        done = run(tree, *check)
        assert done.returncode == 0, f"{' '.join(check)}\n{done.stdout}"
    again = run(tree, "scripts/new_service.py", NAME)
    assert again.returncode == 2
    assert again.stdout == f"there is already a service `{NAME}`: choose another name\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tweet", "there is already a service `tweet`"),
        ("Notice", "lowercase letters"),
        ("my_notice", "lowercase letters"),
        ("no/../tice", "lowercase letters"),
        ("no", "3 to 20"),
        ("n" * 21, "3 to 20"),
        ("", "lowercase letters"),
        ("import", "another meaning"),
        ("gateway", "another meaning"),
        ("platform", "another meaning"),
        ("roost", "another meaning"),
        ("google", "another meaning"),
        ("buf", "another meaning"),
        ("log", "another meaning"),
        ("mesh", "another meaning"),
        ("null", "another meaning"),
        ("true", "another meaning"),
        ("tweets", "there is a service `tweet` already; names are singular"),
        ("searches", "there is a service `search` already; names are singular"),
        ("identities", "there is a service `identity` already; names are singular"),
    ],
)
def test_new_service_bad_name_is_refused(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (new_service.CATALOG, new_service.ROUTES)}
    assert new_service.main([name]) == 2
    assert words in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(("fault", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left", "x"), 1)])
def test_new_service_stopped_while_writing_leaves_nothing(
    fault: BaseException,
    code: int,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("ROOT", "SERVICES", "PROTOS", "CATALOG", "ROUTES"):
        monkeypatch.setattr(new_service, name, tree / getattr(new_service, name).relative_to(ROOT))
    before, folders = files(tree), {path for path in tree.rglob("*") if path.is_dir()}
    write_text = Path.write_text

    def failing(path: Path, text: str) -> int:
        written = write_text(path, text)
        if path == new_service.CATALOG and NAME in text:
            raise fault
        return written

    monkeypatch.setattr(Path, "write_text", failing)
    assert new_service.main([NAME]) == code
    assert "nothing was written" in capsys.readouterr().err
    assert files(tree) == before
    assert {path for path in tree.rglob("*") if path.is_dir()} == folders


def test_new_service_interrupted_while_generating_names_way_on_and_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    assert new_service.generated(NAME) == 130
    said = capsys.readouterr().err
    assert "scripts/generate.py" in said
    assert "git checkout -- services/catalog.py" in said


def test_new_service_without_name_prints_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert new_service.main([]) == 2
    assert "usage: scripts/new-service NAME" in capsys.readouterr().err
    assert new_service.main(["--help"]) == 0
    assert "usage: scripts/new-service NAME" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [(["--help"], 0, "usage: "), ([], 2, "usage: "), (["tweets"], 2, "names are singular"), (["No"], 2, "letters")],
)
def test_new_service_checks_before_it_installs(tree: Path, arguments: list[str], code: int, words: str) -> None:
    before = files(tree)
    done = subprocess.run(
        [tree / "scripts" / "new-service", *arguments],
        env=os.environ | {"PYTHON": sys.executable},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WITHIN_S,
    )
    assert (done.returncode, words in done.stdout) == (code, True), done.stdout
    assert not (tree / ".venv").exists()
    assert files(tree) == before


def test_new_service_undo_command_restores_tree(tree: Path) -> None:
    for command in (["init", "-q"], ["add", "--force", "k8s", "services", "tests", "scripts"]):
        subprocess.run(["git", *command], cwd=tree, check=True)
    before = files(tree)
    made = run(tree, "scripts/new_service.py", NAME)
    assert made.returncode == 0, made.stdout
    assert str(tree) not in made.stdout
    assert "written: k8s/services/kustomization.yaml" in made.stdout
    assert files(tree) != before
    undo = made.stdout.rstrip().splitlines()[-1].strip()
    assert undo.startswith("git checkout -- ")
    subprocess.run(undo, shell=True, cwd=tree, check=True)  # noqa: S602
    assert files(tree) == before
