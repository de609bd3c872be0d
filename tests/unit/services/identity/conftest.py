"""Fixtures: the identity service with its real stores, and fakes of graph and tweet with configurable responses."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2
from roost.identity.v1 import auth_service_pb2, user_service_pb2
from roost.tweet.v1 import tweet_service_pb2

from services.identity.auth_service import AuthService
from services.identity.password import Passwords
from services.identity.refresh import RefreshTokens
from services.identity.signing import Signer, new_key
from services.identity.store.sqlite.stores import SqliteIdentityStores, open_stores
from services.identity.token_issuer import TokenIssuer
from services.identity.user_hydrator import UserHydrator
from services.identity.user_service import UserService
from services.platform.auth.tokens import Revocations, VerificationKey, Verifier
from services.platform.cassandra.keyed_lock import KeyedLocks
from services.platform.config import Settings
from services.platform.events.records import EventBuilder
from services.platform.ids.snowflake import Snowflake, wall_clock_ms
from services.platform.pagination.cursors import Cursors
from services.platform.rpc import context
from services.platform.versions import MemoryVersions
from services.shared.signing_keys import verification_keys

PASSWORD = "correct horse battery"


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Stub:
    """Fake stub: each method returns the result of a function, or fails as an unreachable service does."""

    def __init__(self) -> None:
        self.down = False
        self.calls = 0

    async def answer(self, make: Callable[[], Any]) -> Any:
        self.calls += 1
        if self.down:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "down")
        return make()


class Graph(Stub):
    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, tuple[int, int]] = {}
        self.ties: dict[tuple[int, int], dict[str, bool]] = {}
        # The users whose relationships are returned; None returns those of all requested users.
        self.answered: list[int] | None = None

    def BatchGetUserCounts(self, request: Any, timeout: float) -> Awaitable[Any]:
        def make() -> graph_service_pb2.BatchGetUserCountsResponse:
            answer = graph_service_pb2.BatchGetUserCountsResponse()
            for user_id in request.ids:
                if user_id in self.counts:
                    answer.counts[user_id].followers, answer.counts[user_id].following = self.counts[user_id]
            return answer

        return self.answer(make)

    def BatchGetRelationships(self, request: Any) -> Awaitable[Any]:
        def make() -> graph_service_pb2.BatchGetRelationshipsResponse:
            answer = graph_service_pb2.BatchGetRelationshipsResponse()
            for user_id in self.answered if self.answered is not None else request.ids:
                answer.relationships.add(user_id=user_id, **self.ties.get((context.reader_id(), user_id), {}))
            return answer

        return self.answer(make)


class Tweet(Stub):
    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}

    def BatchGetAuthorCounts(self, request: Any, timeout: float) -> Awaitable[Any]:
        def make() -> tweet_service_pb2.BatchGetAuthorCountsResponse:
            found = {user_id: self.counts[user_id] for user_id in request.user_ids if user_id in self.counts}
            return tweet_service_pb2.BatchGetAuthorCountsResponse(tweets=found)

        return self.answer(make)


@dataclass
class Identity:
    """The two servicers with their dependencies. `as_user` makes calls as a user."""

    stores: SqliteIdentityStores
    auth: AuthService
    users: UserService
    clock: Clock
    graph: Graph
    tweet: Tweet
    passwords: Passwords
    revocations: Revocations
    verifier: Verifier
    random: random.Random = field(default_factory=lambda: random.Random(1))

    async def sign_up(self, username: str = "alice", **fields: Any) -> auth_service_pb2.SignUpResponse:
        defaults = {"username": username, "email": f"{username}@example.com", "password": PASSWORD}
        return await self.auth.SignUp(auth_service_pb2.SignUpRequest(**(defaults | fields)), None)

    async def login(self, username: str = "alice", password: str = PASSWORD) -> auth_service_pb2.LoginResponse:
        return await self.auth.Login(auth_service_pb2.LoginRequest(username=username, password=password), None)

    async def refresh(self, refresh_token: str) -> str:
        """Returns the next refresh token."""
        request = auth_service_pb2.RefreshTokenRequest(refresh_token=refresh_token)
        return (await self.auth.RefreshToken(request, None)).refresh_token

    async def get(self, user_id: int) -> Any:
        return (await self.users.GetUser(user_service_pb2.GetUserRequest(user_id=user_id), None)).user

    @contextmanager
    def as_user(self, user_id: int, session_id: int = 0) -> Iterator[None]:
        token = context.current_call.set(context.Call(actor=context.Actor(user_id, session_id)))
        try:
            yield
        finally:
            context.current_call.reset(token)

    async def events(self) -> list[event_pb2.Event]:
        """Returns the records in the outbox, oldest first."""
        rows = await self.stores.db.read(lambda c: c.execute("SELECT payload FROM outbox ORDER BY seq").fetchall())
        return [event_pb2.Event.FromString(row[0]) for row in rows]

    async def facts(self) -> list[str]:
        return [event.WhichOneof("body") or "" for event in await self.events()]


Start = Callable[..., Awaitable[Identity]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Returns a function that starts the service with other settings."""
    running: list[Identity] = []

    async def begin(**changes: Any) -> Identity:
        settings = Settings(**({"bcrypt_cost": 4} | changes))
        clock = Clock()
        stores = await open_stores(tmp_path / f"identity-{len(running)}.db", MemoryVersions())
        refresh_tokens = RefreshTokens(b"r" * 32)
        passwords = Passwords(b"p" * 32, settings.bcrypt_cost, workers=1)
        ids = Snowflake(1, wall_clock_ms)
        events = EventBuilder(ids, clock)
        graph, tweet = Graph(), Tweet()
        hydrator = UserHydrator(cast(Any, graph), cast(Any, tweet))
        revocations = Revocations(clock, settings.access_token_ttl_s)
        auth = AuthService(
            stores=stores,
            hydrator=hydrator,
            passwords=passwords,
            tokens=TokenIssuer(Signer(new_key(), clock), refresh_tokens, settings, ids, clock),
            refresh_tokens=refresh_tokens,
            events=events,
            revocations=revocations,
            settings=settings,
            ids=ids,
            cursors=Cursors(b"c" * 32),
            clock=clock,
        )

        async def keys() -> Sequence[VerificationKey]:
            return verification_keys(await auth.GetSigningKeys(auth_service_pb2.GetSigningKeysRequest(), None))

        verifier = Verifier(keys, clock, revocations)
        users = UserService(stores.accounts, hydrator, events, revocations, ids, KeyedLocks(), clock)
        identity = Identity(stores, auth, users, clock, graph, tweet, passwords, revocations, verifier)
        running.append(identity)
        return identity

    yield begin
    for identity in running:
        await identity.passwords.close()
        await identity.stores.close()


@pytest.fixture
async def identity(start: Start) -> Identity:
    return await start()
