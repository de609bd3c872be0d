"""Several processes share one index on a real OpenSearch server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.platform.config import Settings
from services.platform.opensearch.client import OpenSearch
from services.platform.rpc import errors
from services.platform.rpc.context import Call, current_call
from services.platform.rpc.reasons import Reason
from services.search.store import Query, SearchIndex
from services.search.store.opensearch import store as adapter
from services.search.store.opensearch.build_lock import EXPIRES_S, BuildLock
from services.search.store.opensearch.requests import FORMAT
from services.search.store.opensearch.store import OpenSearchIndex
from tests.cluster import Namespace
from tests.contract.search.conftest import TWEETS, USERS, removal, tweet, user_change
from tests.waiting import WITHIN_S, wait_until_async

pytestmark = pytest.mark.cluster

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def settings(namespace: Namespace) -> Settings:
    return Settings(**namespace.settings)


@pytest.fixture
async def pair(settings: Settings) -> AsyncIterator[tuple[SearchIndex, SearchIndex]]:
    """The index of one namespace, opened by two processes at the same time."""
    one, other = await asyncio.gather(OpenSearchIndex.open(settings), OpenSearchIndex.open(settings))
    yield one, other
    await one.close()
    await other.close()


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[OpenSearch]:
    server = OpenSearch.from_settings(settings)
    yield server
    await server.close()


async def found(index: SearchIndex, word: str) -> list[int]:
    return list(await index.newest(TWEETS, Query(phrases=((word,),)), 0, 1_000))


async def test_apply_in_one_process_is_found_in_another(pair: tuple[SearchIndex, SearchIndex]) -> None:
    one, other = pair
    for key in range(1, 6):
        await one.apply([tweet(key, "word"), user_change(key, "#x")])
        assert await found(other, "word") == list(range(key, 0, -1))
    await other.apply([removal(3)])
    assert await found(one, "word") == [5, 4, 2, 1]


async def test_apply_in_other_process_reaches_index_being_built(pair: tuple[SearchIndex, SearchIndex]) -> None:
    """Includes removals, edits and restored documents, whatever the scan read before."""
    one, other = pair
    await one.apply([tweet(key, "old") for key in range(1, 7)])
    await one.begin()
    await other.apply([removal(1), tweet(2, "edited", version=5), removal(3), tweet(7, "new")])
    await other.apply([tweet(3, "back")])
    await one.fill([tweet(key, "scanned") for key in (1, 2, 3, 4)])
    await other.apply([removal(4), removal(2)])
    await other.apply([tweet(2, "edited again", version=6), tweet(5, "seen", version=1)])
    await one.fill([tweet(key, "scanned") for key in (5, 6)])
    await other.apply([removal(5)])
    await one.finish()
    for index in pair:
        assert await found(index, "scanned") == [6]
        assert await found(index, "again") == [2]
        assert await found(index, "back") == [3]
        assert await found(index, "new") == [7]
        assert await found(index, "old") == await found(index, "seen") == []
        assert await index.count(TWEETS) == 4
    await other.apply([tweet(2, "last", version=7), tweet(3, "later", version=1)])
    assert (await found(one, "last"), await found(one, "later")) == ([2], [3])
    await other.apply([tweet(2, "stale", version=6)])
    assert await found(one, "stale") == []


async def test_apply_during_repeated_builds_loses_no_change(
    pair: tuple[SearchIndex, SearchIndex],
) -> None:
    one, other = pair
    standing: dict[int, str] = {}
    ended = asyncio.Event()

    async def build() -> None:
        while not ended.is_set():
            await one.begin()
            await one.fill([tweet(key, word) for key, word in sorted(standing.items())])
            await one.finish()

    work = asyncio.create_task(build())
    for turn in range(60):
        key, word = turn % 20 + 1, f"word{turn}"
        # The row is written before the index, as the owning services do.
        standing[key] = word
        await other.apply([tweet(key, word, version=turn)])
        assert await found(other, word) == [key]
    ended.set()
    await work
    for key, word in standing.items():
        assert await found(other, word) == [key]
    assert await other.count(TWEETS) == len(standing)


async def test_begin_during_other_build_raises_already_exists(pair: tuple[SearchIndex, SearchIndex]) -> None:
    one, other = pair
    await one.begin()
    with pytest.raises(errors.RoostError) as refusal:
        await other.begin()
    assert refusal.value.reason == Reason.INDEX_BEING_BUILT
    await one.fill([tweet(1, "ones")])
    assert (await other.build_status()).filled is not None
    await one.finish()
    assert (await other.build_status()).filled is None
    await other.begin()
    await other.fill([tweet(1, "others")])
    await other.finish()
    assert await found(one, "others") == [1]


async def test_begin_after_builder_died_discards_its_late_writes(
    settings: Settings, server: OpenSearch, pair: tuple[SearchIndex, SearchIndex]
) -> None:
    one, other = pair
    now_s = 0.0
    assert isinstance(other, OpenSearchIndex)
    other._lock = BuildLock(server, settings.namespace, lambda: now_s)
    await one.begin()
    await one.fill([tweet(1, "ones")])
    with pytest.raises(errors.RoostError, match="ALREADY_EXISTS"):
        await other.begin()
    now_s = EXPIRES_S - 1
    with pytest.raises(errors.RoostError, match="ALREADY_EXISTS"):
        await other.begin()
    now_s = EXPIRES_S
    await other.begin()
    with pytest.raises(errors.RoostError, match="FAILED_PRECONDITION"):
        await one.fill([tweet(2, "ones")])
    with pytest.raises(errors.RoostError, match="FAILED_PRECONDITION"):
        await one.finish()
    await other.fill([tweet(2, "others")])
    await other.finish()
    assert (await found(one, "ones"), await found(one, "others")) == ([], [2])


async def test_finish_deletes_retired_index_after_last_search(
    settings: Settings, server: OpenSearch, pair: tuple[SearchIndex, SearchIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "MAX_CALL_S", 0.3)
    one, _ = pair
    for _ in range(2):
        await one.begin()
        await one.finish()

    async def deleted() -> bool:
        return len(await server.call("GET", f"/{settings.namespace}-*-v{FORMAT}-*/_alias")) <= 2

    await wait_until_async(deleted)
    assert (await one.build_status()).number == 3


async def test_searches_during_index_switch_succeed(pair: tuple[SearchIndex, SearchIndex]) -> None:
    one, other = pair
    await one.apply([tweet(1, "word")])
    ended = asyncio.Event()

    async def look() -> None:
        while not ended.is_set():
            assert await found(other, "word") == [1]

    looking = [asyncio.create_task(look()) for _ in range(4)]
    for _ in range(3):
        await one.begin()
        await one.fill([tweet(1, "word")])
        await one.finish()
    ended.set()
    await asyncio.gather(*looking)


async def test_call_after_index_was_dropped_creates_index(
    settings: Settings, server: OpenSearch, pair: tuple[SearchIndex, SearchIndex]
) -> None:
    one, other = pair
    await one.begin()
    await one.fill([tweet(1, "word")])
    await one.finish()
    for name in await server.call("GET", f"/{settings.namespace}-*/_alias"):
        # The client repeats a request that was not answered in time, and then the index may be gone.
        await server.call("DELETE", f"/{name}", parameters={"ignore_unavailable": "true"})
    assert await found(one, "word") == []
    assert not (await one.build_status()).complete
    await other.apply([tweet(2, "word")])
    assert await found(one, "word") == [2]
    await other.begin()
    await other.fill([tweet(1, "word"), tweet(2, "word")])
    await other.finish()
    assert await found(one, "word") == [2, 1]


async def test_apply_write_does_not_create_index(
    settings: Settings, server: OpenSearch, pair: tuple[SearchIndex, SearchIndex]
) -> None:
    for index in pair:
        await index.apply([tweet(1, "word"), user_change(1)])
    names = await server.call("GET", f"/{settings.namespace}-*/_alias")
    assert sorted(names) == [f"{settings.namespace}-{kind}-v{FORMAT}-1" for kind in ("tweets", "users")]


@pytest.mark.parametrize(
    "prefix", ["#.", "#a.*", "#(", "#[a", "#a|#b", '#"', "#\\", "#<1-2>", "#~", "#&", "#@", "#a{2}"]
)
async def test_terms_prefix_is_no_pattern(pair: tuple[SearchIndex, SearchIndex], prefix: str) -> None:
    index, _ = pair
    await index.apply([tweet(1, "", "#ab", "#b", "#aa"), tweet(2, "", prefix + "x")])
    assert list(await index.terms(prefix, 10)) == [prefix + "x"]


async def test_calls_without_server_raise_unavailable(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "OPEN_MAX_S", 0.1)
    index = await OpenSearchIndex.open(settings.model_copy(update={"opensearch_urls": NOWHERE}))
    query = Query(("#x",))
    for attempt in (
        index.newest(TWEETS, query, 0, 1),
        index.ranked(USERS, query, None, 1),
        index.best(query, 0, 1),
        index.terms("#", 1),
        index.most_used(["#"]),
        index.count(TWEETS),
        index.build_status(),
        index.apply([tweet(1, "word")]),
        index.begin(),
    ):
        with pytest.raises(errors.RoostError) as refusal:
            await attempt
        assert (refusal.value.code.name, refusal.value.reason) == ("UNAVAILABLE", "SEARCH_UNAVAILABLE")
    await index.close()


async def test_calls_silent_server_raise_in_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server accepts connections and never answers."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting.append(writer)

    waiting: list[asyncio.StreamWriter] = []
    monkeypatch.setattr(adapter, "OPEN_MAX_S", 0.1)
    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    index = await OpenSearchIndex.open(settings.model_copy(update={"opensearch_urls": f"http://127.0.0.1:{port}"}))
    token = current_call.set(Call(deadline=asyncio.get_running_loop().time() + 0.2))
    async with asyncio.timeout(WITHIN_S):
        with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
            await index.newest(TWEETS, Query(("#x",)), 0, 1)
    current_call.reset(token)
    await index.close()
    for writer in waiting:
        writer.close()
    listener.close()
    await listener.wait_closed()
