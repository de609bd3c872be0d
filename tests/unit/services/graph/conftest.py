"""Fixtures: the graph servicer on real SQLite stores, with a fake identity service."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from roost.identity.v1 import user_pb2, user_service_pb2

from services.graph.service import GraphService
from services.graph.store.sqlite.stores import SqliteGraphStores, open_stores
from services.graph.tier_publisher import TierPublisher, TierRule
from services.platform.ids.snowflake import Snowflake
from services.platform.pagination.cursors import Cursors
from services.platform.rpc.context import Actor, Call, current_call
from services.platform.versions import MemoryVersions

THRESHOLD = 3
START_S = 1_800_000_000.0


@dataclass
class FakeIdentity:
    """Fake of the two UserService methods that graph calls. `states` are the known users; `asked` records requested
    ids."""

    states: dict[int, user_pb2.UserState.ValueType] = field(default_factory=dict)
    asked: list[list[int]] = field(default_factory=list)

    async def BatchGetUserRefs(self, request: Any) -> user_service_pb2.BatchGetUserRefsResponse:
        self.asked.append(list(request.ids))
        known = [user_id for user_id in request.ids if user_id in self.states]
        return user_service_pb2.BatchGetUserRefsResponse(
            refs=[user_service_pb2.UserRefEntry(user_id=user_id, state=self.states[user_id]) for user_id in known]
        )

    async def BatchGetUsers(self, request: Any) -> user_service_pb2.BatchGetUsersResponse:
        active = [i for i in request.ids if self.states.get(i) == user_pb2.USER_STATE_ACTIVE]
        return user_service_pb2.BatchGetUsersResponse(users=[user_pb2.User(id=user_id) for user_id in active])


@dataclass
class Graph:
    """A graph service with its stores, tier publisher, fake identity and clock."""

    service: GraphService
    stores: SqliteGraphStores
    publisher: TierPublisher
    identity: FakeIdentity
    now_s: list[float]

    @contextmanager
    def as_user(self, user_id: int, caller: str = "") -> Iterator[None]:
        """Runs calls in its block as this user; 0 means no user."""
        token = current_call.set(Call(actor=Actor(user_id), caller=caller))
        try:
            yield
        finally:
            current_call.reset(token)

    async def call(self, user_id: int, method: str, request: Any, caller: str = "") -> Any:
        """Makes one unary call as a user."""
        with self.as_user(user_id, caller):
            return await getattr(self.service, method)(request, None)


@pytest.fixture
async def graph(tmp_path: Path) -> AsyncIterator[Graph]:
    """A graph service in which the users 1 to 99 exist and are active."""
    milliseconds = itertools.count(int(START_S * 1000))
    ids = Snowflake(0, lambda: next(milliseconds))
    now_s = [START_S]
    stores = await open_stores(tmp_path / "graph.db", TierRule(THRESHOLD), MemoryVersions())
    publisher = TierPublisher(lambda: now_s[0])
    stores.tiers.on_change(publisher.publish)
    identity = FakeIdentity(dict.fromkeys(range(1, 100), user_pb2.USER_STATE_ACTIVE))
    stub: Any = identity
    service = GraphService(stores, publisher, stub, Cursors(b"k" * 32), ids, lambda: now_s[0], heartbeat_s=0.02)
    yield Graph(service, stores, publisher, identity, now_s)
    await stores.close()
