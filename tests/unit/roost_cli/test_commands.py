"""Tests the `roost` command: its help, errors and exit codes."""

from __future__ import annotations

import sys
from types import ModuleType

import grpc
import pytest

from roost_cli import commands
from roost_cli.commands import COMMANDS, run
from roost_cli.exit_codes import CommandError
from services.platform.rpc import errors


def register(monkeypatch: pytest.MonkeyPatch, name: str, function: object) -> None:
    """Registers a subcommand for the test."""
    module = ModuleType(f"roost_cli.{name}")
    setattr(module, name, function)
    monkeypatch.setitem(sys.modules, f"roost_cli.{name}", module)
    monkeypatch.setitem(COMMANDS, name, commands._Command(f"roost_cli.{name}", name, "For a test."))


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)


def test_version_option_prints_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("roost ")


@pytest.mark.parametrize("arguments", [["fly"], ["call", "--no-such-option"], ["load"], ["verify", "more"]])
def test_run_wrong_usage_returns_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["verify"], ["token", "alice"], ["call", "UserService.ScanUsers"]])
def test_run_without_mesh_returns_2(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "nowhere")
    assert run(command) == 2
    assert "roost up" in capsys.readouterr().err


def test_run_broken_command_module_leaves_other_commands_working(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "bench", commands._Command("roost_cli.no_such_module", "bench", "Measure."))
    assert run(["bench", "--seconds", "3"]) == 2
    assert "`roost bench` cannot run here" in capsys.readouterr().err
    assert run(["--help"]) == 0
    assert "Measure." in capsys.readouterr().out


def test_run_command_error_prints_message_and_returns_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise CommandError("not today", 1)

    register(monkeypatch, "refuse", refuse)
    assert run(["refuse"]) == 1
    assert capsys.readouterr().err == "roost: not today\n"


def test_run_unexpected_exception_prints_one_line_unless_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def burst() -> None:
        raise ZeroDivisionError("by nothing")

    register(monkeypatch, "burst", burst)
    assert run(["burst"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("roost: unexpected ZeroDivisionError: by nothing")
    assert len(said.splitlines()) == 1
    with pytest.raises(ZeroDivisionError):
        run(["--debug", "burst"])


def test_run_interrupt_returns_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    register(monkeypatch, "interrupted", interrupted)
    assert run(["interrupted"]) == 130


def test_refused_unreachable_mesh_and_refusal_have_different_codes() -> None:
    from roost_cli.exit_codes import call_error

    def of(code: grpc.StatusCode) -> int:
        return call_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "no")).code

    assert of(grpc.StatusCode.UNAVAILABLE) == 2
    assert of(grpc.StatusCode.NOT_FOUND) == 1


@pytest.mark.parametrize(
    "broken",
    [
        errors.broken_rules([errors.Violation("text", "must not be empty"), errors.Violation("poll", "is too long")]),
        errors.invalid_argument(
            "must not be empty",
            violations=[errors.Violation("text", "must not be empty"), errors.Violation("poll", "is too long")],
        ),
    ],
)
def test_call_error_prints_each_violation_once(broken: errors.RoostError) -> None:
    from roost_cli.exit_codes import call_error

    trailing = grpc.aio.Metadata(("grpc-status-details-bin", broken.status().SerializeToString()))
    error = grpc.aio.AioRpcError(broken.code, grpc.aio.Metadata(), trailing, broken.message)
    assert call_error(error).message == "INVALID_ARGUMENT: text: must not be empty\n  poll: is too long"


def test_run_roost_error_prints_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise errors.unavailable("Redis cannot be reached at 127.0.0.1:1")

    register(monkeypatch, "verify", fail)
    assert run(["verify"]) == 2
    assert capsys.readouterr().err == "roost: Redis cannot be reached at 127.0.0.1:1\n"
