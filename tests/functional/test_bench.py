"""`roost bench home` with wrk, against a mesh in a process of its own whose users follow one another."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from roost_cli.bench import table
from roost_cli.commands import run
from roost_cli.drill.single_process_mesh import MeshLauncher
from roost_cli.load import command, edge_list

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not on PATH (apt-get install wrk)"),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time is read from /proc"),
]

DOCUMENT = f"{table.BEGIN.format('home')}\n{table.END.format('home')}\n"


@pytest.mark.embedded  # The mesh runs in its own process, always on embedded stores.
async def test_bench_home_loaded_mesh_writes_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOST_CLOCK_MARGIN_S", "0.05")
    child = await MeshLauncher(tmp_path).start()
    try:
        graph = edge_list.parse(["1 2", "2 3", "3 1"])
        usable, blank = command.tweet_lines(b"one\ntwo\nthree\nfour\n", "t.txt")
        await command._load(child.target, graph, usable, blank, seed=1, concurrency=4)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
        document = tmp_path / "benchmarks.md"
        document.write_text(DOCUMENT)
        argv = ["bench", "home", "--rounds", "1", "--seconds", "1", "--connections", "2", "--markdown", str(document)]
        assert await asyncio.to_thread(run, [*argv, "--posts", "0"]) == 0
        without = _lines(document)
        assert await asyncio.to_thread(run, [*argv, "--posts", "10"]) == 0
    finally:
        await child.stop()
    output = capsys.readouterr().out
    assert "3 readers, 4.0 tweets a page; 1 × 1 s" in output
    for lines in (without, _lines(document)):
        assert all(figure > 0 for name in ("requests/s", "CPU µs a request") for figure in lines[name])
    mesh, bare_server, _ = without["bytes an answer"]
    # The bare server sends a recorded page of about the mean size of all pages.
    assert abs(mesh - bare_server) < 100
    assert len(_lines(document)["bytes an answer"]) == 4


def _lines(document: Path) -> dict[str, list[float]]:
    """Returns the figures of the table by the name of their row."""
    lines = [line.split("|")[1:-1] for line in document.read_text().splitlines() if line.startswith("|")]
    return {line[0].strip(): [_figure(cell) for cell in line[1:]] for line in lines[2:]}


def _figure(cell: str) -> float:
    """Returns the median, without the range in parentheses that may follow it."""
    return float(cell.split("(")[0].replace(",", ""))
