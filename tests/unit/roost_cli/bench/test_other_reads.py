"""Tests which threads and searches are measured."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from roost_cli.bench import http_load, other_reads
from roost_cli.bench.first_pages import Pages
from roost_cli.bench.other_reads import Read
from roost_cli.exit_codes import CommandError


def pages(threads: Sequence[str] = (), words: Sequence[str] = ()) -> Pages:
    return Pages([], b"", [], 0, [], threads, words, [], 20.0, {})


def test_paths_are_threads_or_words_of_pages() -> None:
    chance = random.Random(1)
    found = pages(threads=["7", "8"], words=["rain", "walked"])
    assert set(other_reads.paths(Read.THREAD, found, chance)) == {"/v1/tweets/7/thread", "/v1/tweets/8/thread"}
    searches = set(other_reads.paths(Read.SEARCH, found, chance))
    assert searches == {"/v1/search/tweets?query=rain", "/v1/search/tweets?query=walked"}
    with pytest.raises(CommandError, match="fits for thread"):
        other_reads.paths(Read.THREAD, pages(words=["rain"]), chance)


def test_paths_are_bounded() -> None:
    many = pages(words=[f"word{number}" for number in range(other_reads.PATHS + 1)])
    assert len(other_reads.paths(Read.SEARCH, many, random.Random(1))) == other_reads.PATHS


@pytest.mark.parametrize(("statuses", "allowed"), [([200, 404, 200], 2), ([404], 0), ([200, 500], 0)])
async def test_allowed_leaves_out_hidden_threads_only(
    monkeypatch: pytest.MonkeyPatch, statuses: list[int], allowed: int
) -> None:
    given = iter(statuses)

    async def ask(connection: http_load.Connection, request: bytes) -> http_load.Response:
        return http_load.Response(next(given), [], b"{}")

    async def opened(connection: http_load.Connection) -> None:
        pass

    monkeypatch.setattr(http_load.Connection, "ask", ask)
    monkeypatch.setattr(http_load.Connection, "open", opened)
    reading = other_reads._allowed("127.0.0.1:1", [f"/{number}" for number in range(len(statuses))], ["a", "b"])
    if allowed:
        assert [(one.path, one.token) for one in await reading] == [("/0", "a"), ("/2", "a")]
    else:
        with pytest.raises(CommandError):
            await reading
