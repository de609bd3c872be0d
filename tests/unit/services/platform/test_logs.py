"""Tests log lines, in separate processes because a process configures its log once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

BEGIN = """
import logging, structlog
from services.platform import logs
from services.platform.config import Settings
from services.platform.rpc import errors
from services.platform.rpc.context import Call, current_call
logs.configure(Settings(log_format="json"), "tweet")
driver = logging.getLogger("cassandra.cluster")
"""


def lines_of(code: str) -> list[dict[str, Any]]:
    """The lines that the code logs, each a JSON object."""
    ran = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in ran.stderr.splitlines()]


def test_log_lines_of_drivers_and_own_code_contain_service_and_call() -> None:
    found = lines_of(
        """
trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
current_call.set(Call(request_id="abc", traceparent=trace))
structlog.get_logger().info("ours")
driver.warning("theirs %s", 1)
"""
    )
    assert [line["event"] for line in found] == ["ours", "theirs 1"]
    assert found[1]["logger"] == "cassandra.cluster"
    for line in found:
        assert (line["service"], line["request_id"]) == ("tweet", "abc")
        assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("ends_with", "events"),
    [
        ("pass", ["ours", "theirs"]),
        ("raise errors.unavailable('Cassandra cannot be reached')", ["ours"]),
        # An unexpected error: the driver's lines may be the only hint of its cause.
        ("raise ValueError", ["ours", "theirs"]),
    ],
)
def test_buffered_driver_logs_drops_lines_after_roost_error_only(ends_with: str, events: list[str]) -> None:
    found = lines_of(
        f"""
import contextlib
with contextlib.suppress(Exception), logs.buffered_driver_logs():
    try:
        1 / 0
    except ZeroDivisionError:
        driver.error("theirs", exc_info=True)
    structlog.get_logger().info("ours")
    {ends_with}
"""
    )
    assert [line["event"] for line in found] == events
    assert all("exception" in line for line in found if line["event"] == "theirs")
