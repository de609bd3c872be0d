"""Tests the options of `roost bench` and what it checks before a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost_cli.bench import local_mesh, table
from roost_cli.commands import run
from roost_cli.connection import MeshTarget

# The workloads that write a table into a document, with the words of their commands.
WORKLOADS = ("home", "posts", "thread", "search", "login", "delivery", "stages", "start", "all", "growth", "fanout")


@pytest.mark.parametrize("workload", WORKLOADS)
def test_bench_document_without_markers_fails_before_measurement(
    workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing listens at this address, so a measurement would fail with another error.
    mesh = local_mesh.LocalMesh(MeshTarget("127.0.0.1:1", "token"), "127.0.0.1:1", "127.0.0.1:1", [1])
    monkeypatch.setattr(local_mesh, "find", lambda *_: mesh)
    document = tmp_path / "figures.md"
    document.write_text("# Figures\n")
    assert run(["bench", workload, "--markdown", str(document)]) == 2
    assert "the document lacks the markers of the table: add `<!-- roost bench " in capsys.readouterr().err
    assert document.read_text() == "# Figures\n"


def test_bench_all_names_missing_markers_of_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh = local_mesh.LocalMesh(MeshTarget("127.0.0.1:1", "token"), "127.0.0.1:1", "127.0.0.1:1", [1])
    monkeypatch.setattr(local_mesh, "find", lambda *_: mesh)
    document = tmp_path / "figures.md"
    tables = ("home", "thread", "search", "delivery", "stages", "posts")
    document.write_text("".join(f"{table.BEGIN.format(one)}\n{table.END.format(one)}\n" for one in tables))
    assert run(["bench", "all", "--markdown", str(document)]) == 2
    said = capsys.readouterr().err
    assert all(f"<!-- roost bench {one} -->" in said for one in ("login", "start"))
    assert "bench home" not in said


def test_bench_help_has_form_of_other_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--install-completion" not in said
    assert "╭" not in said
    assert run(["bench", "home", "--help"]) == 0
    assert "The address of the gateway [from the run file of the mesh]." in " ".join(capsys.readouterr().out.split())
