"""Tests the figures of log-ins."""

from __future__ import annotations

import bcrypt

from roost_cli.bench import login, table
from roost_cli.bench.login import LoginRound


def test_compare_divides_cpu_of_log_in_by_bcrypt() -> None:
    cases = {login.MESH: [LoginRound([0.3, 0.4], 0.5, 0.5)], login.BARE: [LoginRound([0.2], 0.2, 0.2)]}
    found = table.compare(cases, login.MEASURES, login.BARE)
    rows = {line[0]: line[1:] for line in found.lines}
    assert rows["log-ins/s"] == ["4.0", "5.0"]
    assert rows["CPU ms a log-in"] == ["250.0", "200.0"]
    assert table.over(found, login.LIMITS) == [
        "Roost: CPU ms a log-in is 1.25 times that of the baseline; the limit is 1.2"
    ]


def test_bcrypt_round_checks_password_at_least_once() -> None:
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4))
    done = login._bcrypt_round(b"secret", hashed, 0)
    assert len(done.latencies_s) == 1
    assert done.cpu_s > 0
