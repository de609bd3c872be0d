"""Tests the limit of open files, and the connections that it allows."""

from __future__ import annotations

import resource
from collections.abc import Callable

import pytest

from services.platform import open_files
from services.platform.rpc.errors import RoostError

Limits = Callable[[int, int], list[tuple[int, int]]]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Returns a function that fakes the limits (soft, hard) and returns the list of limits set, the first included."""

    def make(soft: int, hard: int) -> list[tuple[int, int]]:
        found = [(soft, hard)]
        monkeypatch.setattr(resource, "getrlimit", lambda what: found[-1])
        monkeypatch.setattr(resource, "setrlimit", lambda what, limits: found.append(limits))
        return found

    return make


@pytest.mark.parametrize("files", [open_files.LEAST, 1024, 4096, 20_000, open_files.MOST_WANTED])
def test_connection_bounds_leave_own_files(files: int) -> None:
    http, grpc = open_files.http_connections(files), open_files.grpc_connections(files)
    assert min(http, grpc) >= 32
    assert http + grpc <= files - open_files.OWN_FILES


def test_raise_limit_sets_hard_limit(system: Limits) -> None:
    found = system(1024, 4096)
    assert open_files.raise_limit() == 4096
    assert found[1:] == [(4096, 4096)]


@pytest.mark.parametrize("hard", [1 << 30, resource.RLIM_INFINITY])
def test_raise_limit_sets_at_most_wanted_limit(system: Limits, hard: int) -> None:
    found = system(1024, hard)
    assert open_files.raise_limit() == open_files.MOST_WANTED
    assert found[1:] == [(open_files.MOST_WANTED, hard)]


def test_raise_limit_keeps_higher_limit(system: Limits) -> None:
    found = system(resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert open_files.raise_limit() == open_files.MOST_WANTED
    assert len(found) == 1


def test_raise_limit_too_low_hard_limit_raises(system: Limits) -> None:
    system(64, 128)
    with pytest.raises(RoostError, match="may open 128 files, and needs 512"):
        open_files.raise_limit()
