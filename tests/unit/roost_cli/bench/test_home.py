"""Tests the figures of `roost bench home` and its refusal to measure invalid runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost_cli.bench import home, wrk
from roost_cli.exit_codes import CommandError


def figures(requests: int = 1_000, *, refused: int = 0, broken: int = 0, p50_ms: float = 2.0) -> wrk.Figures:
    return wrk.Figures(requests, 2.0, requests * 500, p50_ms, 10.0, refused, broken)


def test_round_computes_figures_per_request() -> None:
    one = home.Round(figures(1_000), cpu_s=0.2)
    assert (one.per_second, one.cpu_us, one.bytes_each) == (500.0, 200.0, 500.0)


def test_rows_contain_median_range_and_ratio() -> None:
    ours = [home.Round(figures(requests), 0.2) for requests in (1_000, 4_000, 2_000)]
    theirs = [home.Round(figures(4_000, p50_ms=0.0), 0.04) for _ in range(3)]
    table = {line[0]: line[1:] for line in home.rows({home.MESH: ours, "written": theirs, home.BARE: theirs})}
    assert table["requests/s"] == ["1,000 (500–2,000)", "2,000", "2,000", "0.50"]
    assert table["CPU µs a request"] == ["100 (50–200)", "10", "10", "10.00"]
    assert table["bytes an answer"] == ["500", "500", "500", "1.00"]
    # Division by zero gives nan.
    assert table["p50 ms"] == ["2.00", "0.00", "0.00", "nan"]


@pytest.mark.parametrize("seen", [figures(refused=1), figures(broken=1), figures(0)])
def test_check_failed_requests_raise_command_error(seen: wrk.Figures) -> None:
    with pytest.raises(CommandError, match="are not valid"):
        home.check_run("mesh", seen)
    home.check_run("mesh", figures())


def test_explain_rate_limits_and_refusals_raise_command_error() -> None:
    home.check_response(200, {"content-type": "application/json"})
    for status, headers in ((429, {}), (200, {"RateLimit-Policy": '"read";q=300;w=60'})):
        with pytest.raises(CommandError, match="ROOST_RATE_LIMITS=off"):
            home.check_response(status, headers)
    with pytest.raises(CommandError, match="status 401"):
        home.check_response(401, {})


def test_run_mesh_on_other_machine_raises_command_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The settings name the operator token of a mesh that has no run file here, because it runs on another machine.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("ROOST_OPERATOR_TOKEN", "0123456789abcdef0123456789abcdef")
    monkeypatch.setattr(wrk, "program", lambda: "wrk")
    with pytest.raises(CommandError, match="does not run on this machine"):
        home.run(home.BenchPlan(1, 1, 1, 0), "192.0.2.1:50051", None, None)
