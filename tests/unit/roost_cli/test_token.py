"""Tests the output of `roost token`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from roost_cli import token
from roost_cli.commands import run
from roost_cli.connection import MeshTarget
from roost_cli.exit_codes import CommandError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1_800), ("1h", 3_600), ("24h", 86_400), ("1d", 86_400)]
)
def test_ttl_seconds_parses_units(text: str, seconds: int) -> None:
    assert token.ttl_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "25h", "2d", "-1h", "1.5h", "1w", "h", "1 h"])
def test_ttl_seconds_invalid_raises_command_error(text: str) -> None:
    with pytest.raises(CommandError, match="at most a day"):
        token.ttl_seconds(text)


@pytest.mark.parametrize("arguments", [["token"], ["token", "alice", "--all"]])
def test_token_requires_user_or_all(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "name a user, or give --all" in capsys.readouterr().err


async def test_token_of_one_user_prints_token_only(
    fake_mesh: MeshTarget, state: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    state.add_user("alice")
    await token._tokens(fake_mesh, "alice", 60)
    await token._tokens(fake_mesh, "100", 60)
    assert capsys.readouterr().out == "token-100\ntoken-100\n"


async def test_token_all_prints_json_lines(
    fake_mesh: MeshTarget, state: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token, "MINT_BATCH", 2)
    for name in ("alice", "ben", "carl"):
        state.add_user(name)
    state.hidden.add(101)
    await token._tokens(fake_mesh, None, 60)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"user_id": "100", "username": "alice", "token": "token-100"},
        {"user_id": "102", "username": "carl", "token": "token-102"},
    ]


async def test_token_of_inactive_user_raises_command_error(fake_mesh: MeshTarget, state: Any) -> None:
    state.hidden.add(state.add_user("mallory"))
    with pytest.raises(CommandError, match="unknown, suspended or deactivated") as refusal:
        await token._tokens(fake_mesh, "mallory", 60)
    assert refusal.value.code == 1
