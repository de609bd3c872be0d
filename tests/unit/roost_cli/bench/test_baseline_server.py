"""Tests that the baseline server repeats the recorded response."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from roost_cli.bench import baseline_server


async def test_baseline_server_repeats_recorded_response(tmp_path: Path) -> None:
    body = b'{"tweets":[]}\n\nand a second line'
    recorded = [
        ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("Content-Type", "application/json"),
        ("etag", 'W/"x"'),
        ("content-length", str(len(body))),
    ]
    baseline_server.record(tmp_path / "page", recorded, body)
    async with baseline_server.running(tmp_path / "page") as (pid, port):
        os.kill(pid, 0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for path in ("/v1/timelines/home", "/anything"):
                answer = await client.get(path)
                assert (answer.status_code, answer.content) == (200, body)
                told = {name: value for name, value in answer.headers.items() if name != "date"}
                assert told == {"content-type": "application/json", "etag": 'W/"x"', "content-length": str(len(body))}
                # uvicorn replaces the recorded date by the current one.
                assert answer.headers.get_list("date") != ["Thu, 01 Jan 1970 00:00:00 GMT"]
                assert len(answer.headers.get_list("date")) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
