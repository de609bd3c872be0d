"""Tests the script for wrk, its options, and the parsing of its output."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from roost_cli.bench import wrk
from roost_cli.exit_codes import CommandError

SAID = """Running 6s test @ http://127.0.0.1:8080/v1/timelines/home
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.26ms    6.61ms  80.07ms   93.69%
Requests/sec:   4021.50

roost-bench {"requests": 24129, "duration_us": 6000123, "bytes": 278521047, "p50_us": 3921, "p99_us": 11870, "refused": 3, "broken": 1}
"""


def test_parse_reads_figures_from_marked_line() -> None:
    assert wrk.parse(SAID) == wrk.Figures(
        requests=24_129, seconds=6.000123, bytes=278_521_047, p50_ms=3.921, p99_ms=11.87, refused=3, broken=1
    )


def test_parse_failed_run_shows_output_of_wrk() -> None:
    with pytest.raises(CommandError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_script_contains_every_token() -> None:
    script = wrk.script(["/v1/a?b=c&d=e%20f"], ["a.b-c_d", "e.f.g"])
    assert '"a.b-c_d",\n"e.f.g"\n}' in script
    assert 'paths = {\n"/v1/a?b=c&d=e%20f"\n}' in script
    assert 'io.write("roost-post\\n")' in script
    # `%%` in the Python format became `%` in Lua.
    assert "last, sent = last % count + 1, sent + 1" in script
    assert r'io.write("\nroost-bench ", string.format(' in script
    assert '"requests": %.0f' in script


def test_script_rejects_token_with_quote() -> None:
    for paths, tokens in ((["/x"], ['x"; os.execute("true") --']), (['/x"'], ["x"])):
        with pytest.raises(AssertionError):
            wrk.script(paths, tokens)


def test_program_missing_wrk_error_names_install_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match="apt-get install wrk"):
        wrk.program()


async def test_run_passes_options_to_wrk_and_reports_post_marks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = '{"requests": 1, "duration_us": 1, "bytes": 1, "p50_us": 1, "p99_us": 1, "refused": 0, "broken": 0}'
    program = tmp_path / "wrk"
    program.write_text(
        f'#!/bin/sh\necho "$@" >"{tmp_path}/argv"\necho {wrk.POST_MARK}\necho {wrk.POST_MARK}\necho \'roost-bench {line}\'\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    posts: list[None] = []
    seen = await wrk.run(
        tmp_path / "home.lua",
        "http://127.0.0.1:1/x",
        connections=8,
        seconds=2,
        start=7,
        post=lambda: posts.append(None),
        reads_a_post=50,
    )
    assert seen.requests == 1
    assert len(posts) == 2
    argv = (tmp_path / "argv").read_text().split()
    assert argv == ["-t1", "-c8", "-d2s", "-s", str(tmp_path / "home.lua"), "http://127.0.0.1:1/x", "--", "7", "50"]
