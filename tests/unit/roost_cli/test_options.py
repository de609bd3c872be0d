"""Tests the error messages of invalid settings."""

from __future__ import annotations

import pytest

from roost_cli.exit_codes import CommandError
from roost_cli.options import address_of, settings_with


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ROOST_RATE_LIMITS", "maybe", "the setting rate_limits (ROOST_RATE_LIMITS) must be on or off"),
        ("ROOST_WORKER_ID", "9999", "the setting worker_id (ROOST_WORKER_ID) must be less than or equal to 1023"),
        (
            "ROOST_STATIC_PEERS",
            "graph",
            "the setting static_peers (ROOST_STATIC_PEERS) must be written as name=host:port,name=host:port",
        ),
        (
            "ROOST_NAMESPACE",
            "A9",
            (
                "the setting namespace (ROOST_NAMESPACE) must be 1 to 24 lower-case letters, digits and underscores, "
                "and begin with a letter"
            ),
        ),
    ],
)
def test_settings_with_invalid_value_raises_sentence(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(CommandError) as told:
        settings_with({})
    assert told.value.message == words


def test_settings_with_several_faults_raises_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_BACKEND", "mesh")
    monkeypatch.setenv("ROOST_BCRYPT_COST", "cheap")
    with pytest.raises(CommandError) as told:
        settings_with({})
    assert [line.split()[2] for line in told.value.message.splitlines()] == ["backend", "bcrypt_cost"]


def test_settings_with_option_overrides_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_HTTP_ADDRESS", "127.0.0.1:1")
    assert settings_with({"http_address": "127.0.0.1:2", "grpc_address": None}).http_address == "127.0.0.1:2"


@pytest.mark.parametrize("name", ["http", "grpc", "ops"])
def test_address_of_malformed_text_names_option_and_variable(name: str) -> None:
    with pytest.raises(CommandError) as told:
        address_of("localhost", f"--{name}")
    assert told.value.message == (
        f"{name}_address (--{name}, ROOST_{name.upper()}_ADDRESS) must be HOST:PORT, such as 127.0.0.1:8080, not "
        "'localhost'"
    )
