"""Pages of users from any list of entries, with hidden users among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.graph.v1 import graph_service_pb2 as graph
from roost.identity.v1 import user_pb2, user_service_pb2

from services.platform.pagination.cursors import Cursors
from services.platform.rpc import errors
from services.shared.hydration.user_pages import MAX_ROUNDS, ListEntry, VisibleUserPages

READER = 500


@dataclass
class Owners:
    """Fakes of identity and graph, and one list of (sort key, user id)."""

    entries: list[ListEntry]
    inactive: set[int] = field(default_factory=set)
    blocked: set[int] = field(default_factory=set)
    fetches: int = 0

    def __post_init__(self) -> None:
        identity: Any = self
        self.lists = VisibleUserPages(identity, self.get_filter, Cursors(b"k" * 32))

    async def BatchGetUsers(self, request: Any) -> user_service_pb2.BatchGetUsersResponse:
        assert 0 < len(request.ids) <= 100
        shown = [user_id for user_id in request.ids if user_id not in self.inactive]
        return user_service_pb2.BatchGetUsersResponse(users=[user_pb2.User(id=user_id) for user_id in shown])

    async def get_filter(self, request: graph.GetVisibilityFilterRequest) -> graph.GetVisibilityFilterResponse:
        assert request.user_id == READER
        both = sorted(self.blocked)
        return graph.GetVisibilityFilterResponse(
            blocked_ids=both[::2], blocked_by_ids=[i for i in both[1::2] if i in request.candidate_ids]
        )

    async def fetch(self, below: ListEntry | None, limit: int) -> Sequence[ListEntry]:
        self.fetches += 1
        newest = sorted(self.entries, reverse=True)
        return [entry for entry in newest if below is None or entry < below][:limit]

    async def page(self, cursor: str = "", size: int = 3, reader_id: int = READER, **options: Any) -> Any:
        users, after = await self.lists.page("list", self.fetch, cursor, size, reader_id=reader_id, **options)
        return [user.id for user in users], after


@given(
    # Few sort keys, so that many entries are equal.
    entries=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), unique_by=lambda entry: entry[1], max_size=40),
    inactive=st.sets(st.integers(1, 40)),
    blocked=st.sets(st.integers(1, 40)),
    size=st.integers(1, 7),
    reader_id=st.sampled_from([0, READER]),
)
async def test_pages_contain_each_visible_user_once_in_order(
    entries: list[ListEntry], inactive: set[int], blocked: set[int], size: int, reader_id: int
) -> None:
    owners = Owners(entries, inactive, blocked)
    hidden = inactive | (blocked if reader_id else set())
    found: list[int] = []
    cursor = ""
    while True:
        ids, cursor = await owners.page(cursor, size, reader_id)
        assert len(ids) <= size
        found += ids
        if not cursor:
            break
    assert found == [user_id for _, user_id in sorted(entries, reverse=True) if user_id not in hidden]


async def test_page_full_last_page_has_no_cursor() -> None:
    owners = Owners([(1, 1), (2, 2), (3, 3)])
    assert await owners.page() == ([3, 2, 1], "")
    assert owners.fetches == 1


async def test_page_many_hidden_users_reads_are_bounded() -> None:
    owners = Owners([(i, i) for i in range(1, 100)], inactive=set(range(2, 100)))
    ids, cursor = await owners.page()
    assert (ids, owners.fetches) == ([], MAX_ROUNDS)
    assert cursor


async def test_page_cursor_of_another_list_or_owner_is_refused() -> None:
    owners = Owners([(i, i) for i in range(1, 10)])
    _, cursor = await owners.page(cursor_owner_id=7)
    assert (await owners.page(cursor, cursor_owner_id=7))[0] == [6, 5, 4]
    with pytest.raises(errors.RoostError, match="INVALID_ARGUMENT"):
        await owners.page(cursor, cursor_owner_id=8)
    with pytest.raises(errors.RoostError, match="INVALID_ARGUMENT"):
        await owners.lists.page("other", owners.fetch, cursor, 3, reader_id=0, cursor_owner_id=7)


async def test_users_of_empty_list_makes_no_call() -> None:
    owners = Owners([])
    assert await owners.page() == ([], "")
    assert await owners.lists.users([]) == []
