"""Tests that `roost migrate` applies all missing migrations and reports them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

import pytest

from roost_cli.commands import run
from services import catalog
from tests.cluster import Namespace

pytestmark = pytest.mark.cluster

ONE = "CREATE TABLE IF NOT EXISTS one (id bigint PRIMARY KEY)"
TWO = "CREATE TABLE IF NOT EXISTS two (id bigint PRIMARY KEY)"


@pytest.fixture
def say(namespace: Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    """Runs the command in the namespace with the given migrations of one service; returns exit code, stdout and
    stderr."""
    for name, value in namespace.environment.items():
        monkeypatch.setenv(name, value)
    # A prefix of its own: other tests use the keyspaces of the namespace.
    monkeypatch.setenv("ROOST_KEYSPACE_PREFIX", f"{namespace.settings['keyspace_prefix']}_{uuid.uuid4().hex[:8]}")

    def run_with(scripts: Sequence[str], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(catalog, "migrations", lambda: {"tweet": tuple(scripts)})
        code = run(["migrate", *arguments])
        said = capsys.readouterr()
        return code, said.out.splitlines()[-1].partition(": ")[2] if said.out else "", said.err

    return run_with


def test_migrate_dry_run_lists_then_run_applies_then_nothing_left(say) -> None:  # type: ignore[no-untyped-def]
    assert say([ONE, TWO], "--dry-run")[:2] == (0, "2 missing (of 2)")
    assert say([ONE])[:2] == (0, "1 applied (of 1)")
    assert say([ONE, TWO], "--dry-run")[:2] == (0, "1 missing (of 2)")
    assert say([ONE, TWO])[:2] == (0, "1 applied (of 2)")
    assert say([ONE, TWO])[:2] == (0, "up to date (of 2)")
    code, _, words = say([ONE])
    assert code == 1
    assert "a newer release migrated" in words


def test_migrate_applies_when_migrate_at_start_is_off(say, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("ROOST_MIGRATE_AT_START", "false")
    assert say([ONE])[0] == 0


def test_migrate_without_server_names_address(say, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("ROOST_CASSANDRA_CONTACT_POINTS", "127.0.0.1:1")
    assert say([ONE]) == (2, "", "roost: Cassandra cannot be reached at 127.0.0.1:1\n")


STATEMENT = re.compile(r"(CREATE (TABLE|INDEX|CUSTOM INDEX)|ALTER TABLE \w+ ADD) IF NOT EXISTS ", re.IGNORECASE)


def test_migrate_every_script_is_idempotent() -> None:
    for service, scripts in catalog.migrations().items():
        for number, script in enumerate(scripts, 1):
            for statement in filter(None, map(str.strip, script.split(";"))):
                assert STATEMENT.match(statement), f"{service} {number}: {statement}"
