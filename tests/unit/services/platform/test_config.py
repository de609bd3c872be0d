"""Tests settings: unknown and invalid ones are refused, so that a typing error is not ignored."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.platform.config import CHECKOUT, Settings, default_data_dir, runtime_dir


def test_settings_unknown_variable_suggests_similar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_TIMELIN_MODE", "push")
    with pytest.raises(ValueError, match=r"ROOST_TIMELIN_MODE is not a setting; did you mean ROOST_TIMELINE_MODE\?"):
        Settings()


def test_settings_unknown_variable_without_match_names_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_ZZZ", "1")
    with pytest.raises(ValueError, match=r"ROOST_ZZZ is not a setting; services/platform/config\.py lists"):
        Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ROOST_GATEWAY_SERVICE_HOST", "10.0.0.7"),
        ("ROOST_GATEWAY_SERVICE_PORT", "8080"),
        ("ROOST_GATEWAY_SERVICE_PORT_HTTP", "8080"),
        ("ROOST_GATEWAY_PORT", "tcp://10.0.0.7:8080"),
        ("ROOST_GATEWAY_PORT_8080_TCP", "tcp://10.0.0.7:8080"),
        ("ROOST_GATEWAY_PORT_8080_TCP_PROTO", "tcp"),
        ("ROOST_GATEWAY_PORT_8080_TCP_PORT", "8080"),
        ("ROOST_GATEWAY_PORT_8080_TCP_ADDR", "10.0.0.7"),
        ("ROOST_SERVICE_HOST", "10.0.0.7"),
        ("ROOST_PORT", "tcp://10.0.0.7:8080"),
        ("ROOST_REQUIRE", "cluster"),
        ("ROOST_SEED", "7"),
        ("roost_timeline_mode", "push"),
    ],
)
def test_settings_variables_of_kubernetes_and_tests_are_accepted(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert Settings().backend == "embedded"


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("ROOST_HTTP", "did you mean ROOST_HTTP_ADDRESS?"),
        ("ROOST_PEERS", "did you mean ROOST_STATIC_PEERS?"),
        ("ROOST_REDIS", "did you mean ROOST_REDIS_URL or ROOST_REDIS_TIMEOUT_S?"),
        (
            "ROOST_CASSANDRA",
            "did you mean ROOST_CASSANDRA_CONTACT_POINTS or ROOST_CASSANDRA_DATACENTER or ROOST_CASSANDRA_USERNAME?",
        ),
        ("ROOST_MOON", "services/platform/config.py lists the settings."),
    ],
)
def test_settings_unknown_variable_suggests_settings_with_same_word(
    monkeypatch: pytest.MonkeyPatch, variable: str, hint: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ValueError, match=f"{variable} is not a setting; {re.escape(hint)}"):
        Settings()


def test_settings_port_variable_not_of_kubernetes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_HTTP_PORT", "8080")
    with pytest.raises(ValueError, match=r"ROOST_HTTP_PORT is not a setting; did you mean ROOST_HTTP_ADDRESS\?"):
        Settings()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'timelin_mode = "push"', r"roost\.toml: timelin_mode is not a setting; did you mean timeline_mode\?"),
        (b"[timeline]\nmode = 1", r"roost\.toml: timeline is not a setting"),
        (b"timeline_mode = push", r"roost\.toml is not a TOML file"),
        (b'family = "\xff"', r"roost\.toml is not a TOML file"),
    ],
)
def test_settings_invalid_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, fault: str
) -> None:
    (tmp_path / "roost.toml").write_bytes(content)
    monkeypatch.setenv("ROOST_CONFIG", str(tmp_path / "roost.toml"))
    with pytest.raises(ValueError, match=fault):
        Settings()


def test_settings_file_is_read_and_overridden_by_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "roost.toml").write_text('timeline_mode = "push"\nedit_window_s = 60\n')
    monkeypatch.setenv("ROOST_CONFIG", str(tmp_path / "roost.toml"))
    monkeypatch.setenv("ROOST_EDIT_WINDOW_S", "61")
    found = Settings()
    assert (found.timeline_mode, found.edit_window_s) == ("push", 61)


def test_data_dir_from_any_folder_is_in_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings().data_dir == CHECKOUT / "data"
    assert (CHECKOUT / "scripts" / "up").is_file()


def test_data_dir_of_installed_package_is_in_current_folder(tmp_path: Path) -> None:
    assert default_data_dir(tmp_path) == Path("data")


TOKEN = "6a3f0c9be1d24875b0a9c3d2e1f40718"


@pytest.mark.parametrize("name", ["operator_token", "mesh_secret"])
def test_settings_secret_file_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(f"{TOKEN}\n")
    monkeypatch.setenv(f"ROOST_{name.upper()}_FILE", str(tmp_path / "secret"))
    assert getattr(Settings(), name) == TOKEN
    monkeypatch.setenv(f"ROOST_{name.upper()}", TOKEN[::-1])
    with pytest.raises(ValueError, match="set one of them"):
        Settings()


def test_settings_missing_or_empty_secret_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read from .*: No such file"):
        Settings(operator_token_file=tmp_path / "secret")
    (tmp_path / "secret").write_text("\n")
    with pytest.raises(ValueError, match="the file is empty"):
        Settings(operator_token_file=tmp_path / "secret")


def test_runtime_dir_without_home_is_in_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert runtime_dir() == Path(tempfile.gettempdir()) / f"roost-{os.getuid()}" / "run"


@pytest.mark.parametrize("name", ["mesh_secret", "operator_token"])
@pytest.mark.parametrize(
    "value", ["a", "correct horse battery", "0123456789abcdef0123456789abcde", "a" * 64, "ab" * 32]
)
def test_settings_weak_secret_is_refused_without_printing(name: str, value: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**{name: value})  # type: ignore[arg-type]
    assert "Make one with: openssl rand -hex 32" in str(caught.value)
    assert value == "a" or value not in str(caught.value)


def test_settings_random_secret_is_accepted() -> None:
    for value in ("", secrets.token_hex(16), secrets.token_urlsafe(16), secrets.token_urlsafe(32)):
        assert Settings(mesh_secret=value, operator_token=value).mesh_secret == value


def test_settings_trusted_proxies_are_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_TRUSTED_PROXIES", "10.0.0.0/8, 2001:db8::/32, 192.0.2.1")
    assert Settings().trusted_proxies == ("10.0.0.0/8", "2001:db8::/32", "192.0.2.1")
    monkeypatch.setenv("ROOST_TRUSTED_PROXIES", "10.0.0.1/8")
    with pytest.raises(ValidationError, match="must be networks such as"):
        Settings()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("clock_margin_s", "inf", "less than or equal to 3600"),
        ("drain_s", "inf", "less than or equal to 3600"),
        ("drain_s", "nan", "less than or equal to 3600"),
        ("delete_grace_s", "9" * 20, "less than or equal to 315360000"),
        ("edit_window_s", "9" * 20, "less than or equal to 315360000"),
        ("refresh_token_ttl_s", "9" * 20, "less than or equal to 315360000"),
        ("celebrity_threshold", "9" * 20, "less than or equal to 2000000000"),
        ("reads_per_minute", "9" * 20, "less than or equal to 2000000000"),
        ("sign_ups_per_hour", "9" * 20, "less than or equal to 2000000000"),
        ("static_peers", "tweet=", "must be written as name=host:port"),
        ("static_peers", "tweet=127.0.0.1", "must be written as name=host:port"),
        ("static_peers", "=127.0.0.1:1", "must be written as name=host:port"),
        ("static_peers", "tweet=127.0.0.1:65536", "must be written as name=host:port"),
        ("registry_address", "xyz", "must be host:port"),
        ("advertised_address", "nope", "must be host:port"),
        ("data_dir", "", "must name a directory"),
        ("cors_origins", "app.example.org", "must be origins such as"),
        ("operator_token", "abcdefghij klmnopqrstuvwxyz", "one word of letters"),
        ("operator_token", "abcdefghij\nklmnopqrstuvwxyz", "one word of letters"),
        ("mesh_secret", "äbcdefghijklmnopqrstuvwxyz", "one word of letters"),
    ],
)
def test_settings_value_out_of_bounds_is_refused(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ROOST_{name.upper()}", value)
    with pytest.raises(ValidationError, match=words):
        Settings()


def test_settings_grpc_targets_are_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_STATIC_PEERS", "tweet=dns:///tweet:50051, graph=[::1]:7,")
    assert Settings().static_peers == {"tweet": "dns:///tweet:50051", "graph": "[::1]:7"}
