"""The embedded index with a failing disk, a locked folder, and unreadable files."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.platform.rpc import errors
from services.search.store import Collection, Document, IndexChange, Query
from services.search.store.tantivy import index as generation
from services.search.store.tantivy import store as tantivy_store
from services.search.store.tantivy.store import EmbeddedSearchIndex
from tests.waiting import wait_until

TWEETS = Collection.TWEETS


def tweet(key: int, version: int = 0, word: str = "word") -> IndexChange:
    return IndexChange(TWEETS, key, Document(key, version, 1, ("#tag",), (word,)))


async def found(index: EmbeddedSearchIndex) -> list[int]:
    return list(await index.newest(TWEETS, Query(("#tag",), (("word",),)), 0, 100))


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[EmbeddedSearchIndex]:
    """An index that was filled."""
    opened = await EmbeddedSearchIndex.open(tmp_path / "search")
    await opened.begin()
    await opened.finish()
    yield opened
    await opened.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fails writes while its `full` is True."""

    class Disk:
        full = False

    write_all = generation._write_all

    def refusing(writer: Any, changes: Any) -> None:
        write_all(writer, changes)
        if Disk.full:
            raise OSError("no space left")

    monkeypatch.setattr(generation, "_write_all", refusing)
    return Disk


async def test_apply_full_disk_loses_no_change(index: EmbeddedSearchIndex, disk: Any, tmp_path: Path) -> None:
    await index.apply([tweet(1)], 1)
    await index.commit()
    disk.full = True
    for key in (2, 3):
        await index.apply([tweet(key)], key)
        with pytest.raises(OSError, match="no space"):
            await index.commit()
        assert index.position == 1, "what is not durable comes again"
        assert await found(index) == list(range(key, 0, -1))
    disk.full = False
    await index.apply([tweet(4)], 4)
    await index.commit()
    assert index.position == 4
    assert await found(index) == [4, 3, 2, 1]
    assert await index.count(TWEETS) == 4


async def test_finish_after_lost_documents_raises(index: EmbeddedSearchIndex, disk: Any) -> None:
    """A failed commit rolls back the documents that were filled before it."""
    await index.apply([tweet(1)], 1)
    await index.begin()
    await index.fill([tweet(1), tweet(2)])
    await index.apply([tweet(3)], 3)
    disk.full = True
    with pytest.raises(OSError, match="no space"):
        await index.finish()
    disk.full = False
    with pytest.raises(OSError, match="lost"):
        await index.finish()
    with pytest.raises(OSError, match="lost"):
        await index.fill([tweet(4)])
    assert await found(index) == [3, 1]
    await index.begin()
    await index.fill([tweet(1), tweet(2)])
    await index.finish()
    assert await found(index) == [2, 1]


async def test_apply_too_many_uncommitted_raises_unavailable(
    index: EmbeddedSearchIndex, disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tantivy_store, "MAX_UNCOMMITTED", 10)
    disk.full = True
    await index.apply([tweet(key) for key in range(1, 12)], 11)
    with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
        await index.apply([tweet(12)], 12)
    assert 12 not in await found(index)
    disk.full = False
    await index.commit()
    await index.apply([tweet(12)], 12)
    assert 12 in await found(index)


async def test_apply_commits_in_background(index: EmbeddedSearchIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tantivy_store, "COMMIT_AT_CHANGES", 0)
    await index.apply([tweet(1)], 5)
    await wait_until(lambda: index.position == 5)


async def test_apply_older_version_after_build_or_restart_is_ignored(tmp_path: Path) -> None:
    index = await EmbeddedSearchIndex.open(tmp_path / "search")
    await index.begin()
    await index.fill([tweet(7, version=2)])
    await index.finish()
    await index.apply([tweet(7, version=1, word="old"), tweet(8, version=2)], 1)
    await index.close()
    index = await EmbeddedSearchIndex.open(tmp_path / "search")
    await index.apply([tweet(7, version=1, word="old"), tweet(8, version=1, word="old"), tweet(9)], 2)
    assert await found(index) == [9, 8, 7]
    await index.close()


async def test_apply_new_documents_searches_nothing(
    index: EmbeddedSearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    await index.apply([tweet(3)])
    await index.commit()
    with monkeypatch.context() as patch:
        patch.setattr(generation, "_stored", lambda *_: pytest.fail("a search"))
        await index.apply([tweet(4), tweet(5)])
    await index.apply([tweet(2), tweet(4, version=1)])
    assert await found(index) == [5, 4, 3, 2]


async def test_open_second_owner_raises_failed_precondition(index: EmbeddedSearchIndex, tmp_path: Path) -> None:
    with pytest.raises(errors.RoostError, match="in use"):
        await EmbeddedSearchIndex.open(tmp_path / "search")


@pytest.mark.parametrize("state", [b"", b"[]", b'{"format": 0, "index": 1, "position": 5}', b'{"format": 1}'])
async def test_open_invalid_state_returns_unfilled_index(tmp_path: Path, state: bytes) -> None:
    folder = tmp_path / "search"
    index = await EmbeddedSearchIndex.open(folder)
    await index.begin()
    await index.finish()
    await index.apply([tweet(1)], 5)
    await index.close()
    (folder / "state.json").write_bytes(state)
    index = await EmbeddedSearchIndex.open(folder)
    assert index.position is None
    assert await found(index) == []
    await index.close()


@pytest.mark.parametrize("linked", [False, True])
async def test_open_index_that_is_no_folder_returns_unfilled_index(tmp_path: Path, linked: bool) -> None:
    folder = tmp_path / "search"
    index = await EmbeddedSearchIndex.open(folder)
    await index.begin()
    await index.finish()
    await index.close()
    (stored,) = (path for path in folder.iterdir() if path.is_dir())
    shutil.rmtree(stored)
    if linked:
        stored.symlink_to(stored)
    else:
        stored.write_bytes(bytes(16))
    index = await EmbeddedSearchIndex.open(folder)
    assert index.position is None
    assert stored.name not in {path.name for path in folder.iterdir()}
    await index.begin()
    await index.fill([tweet(1)])
    await index.finish()
    assert await found(index) == [1]
    await index.close()


async def test_open_state_that_is_a_folder_raises_with_remedy(tmp_path: Path) -> None:
    (tmp_path / "search" / "state.json").mkdir(parents=True)
    with pytest.raises(errors.RoostError, match="a folder has its name"):
        await EmbeddedSearchIndex.open(tmp_path / "search")


async def test_open_removes_discarded_indexes(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    index = await EmbeddedSearchIndex.open(folder)
    await index.begin()
    await index.finish()
    await index.begin()
    await index.fill([tweet(1)])
    await index.close()
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2
    index = await EmbeddedSearchIndex.open(folder)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1
    assert index.position == 0
    await index.close()
