"""Tests the progress output on terminals and pipes, and the rates."""

from __future__ import annotations

import io

from roost_cli import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_prints_at_interval_and_at_end() -> None:
    out = io.StringIO()
    now = 0.0
    shown = progress.Plain(out, lambda: now)
    with shown.phase("follows", 1_000) as phase:
        for _ in range(10):
            now += 1.0
            phase.advance(100)
    assert out.getvalue().splitlines() == [
        "follows: 500 of 1,000 (100/s)",
        "follows: 1,000 of 1,000 (100/s)",
        "follows: 1,000 in 10.0 s (100/s)",
    ]


def test_plain_output_has_no_control_characters() -> None:
    out = io.StringIO()
    shown = progress.for_stream(out)
    with shown.phase("tweets", 2) as phase:
        phase.advance(2)
    shown.say("done")
    assert out.getvalue().replace("\n", "").isprintable()


def test_bar_on_terminal_ends_with_plain_summary() -> None:
    out = Terminal()
    assert isinstance(progress.for_stream(out), progress.Bar)
    shown = progress.Bar(out, lambda: 0.0)
    with shown.phase("tweets", 2) as phase:
        phase.advance(2)
    assert "tweets: 2 in 0.0 s" in out.getvalue()


def test_phase_without_items_has_rate_zero() -> None:
    with progress.Silent(lambda: 5.0).phase("people", 0) as phase:
        pass
    assert phase.rate == 0.0
    assert phase.summary() == "people: 0 in 0.0 s (0/s)"
