"""Tests the context of a call."""

from __future__ import annotations

import pytest

from services.platform.rpc.context import MAX_USER_AGENT_CHARS, bounded_user_agent


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 (X11; Linux x86_64)"),
        ("", ""),
        ("caf\xe9\r\n\x00x\x7f", "cafx"),
        ("x" * 10_000, "x" * MAX_USER_AGENT_CHARS),
    ],
)
def test_bounded_user_agent_is_short_printable_ascii(sent: str, kept: str) -> None:
    assert bounded_user_agent(sent) == kept
