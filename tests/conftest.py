"""Fixtures of all tests: a real mesh in this process, on embedded stores in a temporary directory or, with `--backend cluster`, on the real
servers, in a namespace for each data directory."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import hypothesis
import pytest
from roost.fanout.v1 import fanout_service_pb2, fanout_service_pb2_grpc
from roost.graph.v1 import graph_service_pb2, graph_service_pb2_grpc
from roost.identity.v1 import auth_service_pb2, auth_service_pb2_grpc, user_service_pb2, user_service_pb2_grpc
from roost.timeline.v1 import timeline_service_pb2, timeline_service_pb2_grpc
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2, tweet_service_pb2_grpc

from scripts.checks import ALL, LONG_REASON
from services.catalog import BACKENDS, KEY_SOURCE, SERVICES
from services.engagement import server as engagement_server
from services.graph import server as graph_server
from services.platform.config import Settings
from services.platform.events import outbox
from services.platform.kafka.consumer import KafkaConsumer
from services.platform.kafka.event_log import KafkaLog
from services.platform.process import Process, Wire
from services.platform.rpc.context import Actor, Call, current_call
from services.platform.sqlite.event_log import EmbeddedConsumer, EmbeddedLog
from services.platform.transport.message_guard import MutationGuard
from services.shared import absences
from services.tweet import server as tweet_server
from tests.cluster import BACKEND_NAMES, Namespace, backend
from tests.long_deadlines import long_deadlines, original_deadlines
from tests.replicas import AlternatingChannel

# The same examples at every run, so that a red run is about the change at hand; `--hypothesis-profile=explore` draws new ones.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("same")

# How much a test of random histories tries: little in every run, much with `--all`. The long run contains the short one.
SHORT, LONG = "short", "long"
# Parameters of tests and fixtures that run once over each wire. On the cluster backend, which is slow and has the same
# wires, only the one that a deployment uses; with `--all` both.
WIRES = [pytest.param("inprocess", marks=pytest.mark.long("cluster")), "grpc"]
# A third way: two equal processes with all services, between which the client alternates. Only on the cluster backend, because an
# embedded store belongs to one process; only with `--all`, because each mesh starts twice.
REPLICAS = pytest.param("replicas", marks=[pytest.mark.cluster, pytest.mark.long])
SHAPES = [*WIRES, REPLICAS]
# A long test that takes longer hangs. The longest takes a fifth of it if nothing else runs.
LONG_WITHIN_S = 3600
SHARED = Path(__file__).resolve().parents[2] / "shared"
# Delivery takes milliseconds. The limit only ends a test that would wait forever: a busy machine may take long.
SETTLE_WITHIN_S = 60.0
# The consumer groups that exclude the actions of absent users from counts.
ABSENCE_GROUPS = (graph_server.ABSENCES, tweet_server.ABSENCES, engagement_server.ABSENCES)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend", choices=BACKEND_NAMES, default=BACKEND_NAMES[0], help="the family of adapters that is tested"
    )

    parser.addoption(ALL, action="store_true", help="also run the tests that are marked `long`")


def pytest_configure(config: pytest.Config) -> None:
    backend.name = config.getoption("--backend")


def long_reason(item: pytest.Item) -> str:
    """Returns why this run leaves the test out unless it has `--all`; "" if it runs.

    `long` without arguments applies to both backends, and `long("cluster")` to that one alone.
    """
    named = [mark.args for mark in item.iter_markers("long")]
    if () in named:
        return LONG_REASON
    return f"{LONG_REASON} on {backend.name}" if any(backend.name in names for names in named) else ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests of another backend and skips the long ones without `--all`.

    A worker of pytest-xdist gets the files with slow tests first, so that none of them starts when the others end.
    """
    # Skipped and not left out, because pytest reports the one and scripts/checks.py counts it.
    for item in items:
        reason = long_reason(item)
        if reason and config.getoption(ALL):
            item.add_marker(pytest.mark.timeout(LONG_WITHIN_S))
        elif reason:
            item.add_marker(pytest.mark.skip(reason=reason))
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
    others = [name for name in BACKEND_NAMES if name != backend.name]
    out = [item for item in items if any(map(item.get_closest_marker, others))]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in set(out)]


def pytest_unconfigure() -> None:
    backend.close()


@pytest.fixture(scope="session", autouse=True)
def _long_deadlines() -> Iterator[None]:
    """Set up first, because servers and channels read the deadlines when they start."""
    with long_deadlines(cassandra=backend.name == "cluster"):
        yield


@pytest.fixture
def contract_deadlines() -> Iterator[None]:
    """For tests about deadlines, by `usefixtures`: servers and channels that start in the test have those of the contract."""
    with original_deadlines():
        yield


@pytest.fixture(autouse=True)
def _namespaces() -> Iterator[None]:
    """Set up before all others, so that meshes and stores are closed by the time that their namespaces go to the next test."""
    yield
    backend.release()


@pytest.fixture(params=[SHORT, pytest.param(LONG, marks=pytest.mark.long)])
def length(request: pytest.FixtureRequest) -> str:
    """Makes two tests of one: with SHORT in every run, and with LONG only with `--all`."""
    found: str = request.param
    return found


@pytest.fixture
async def namespaces() -> AsyncIterator[Callable[[], Namespace]]:
    """Makes clean namespaces on the real servers, whatever the family of this run."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(backend.new())
        return made[-1]

    yield make
    for namespace in made:
        await namespace.close()


@pytest.fixture
async def namespace(namespaces: Callable[[], Namespace]) -> Namespace:
    """A clean namespace on the real servers."""
    return namespaces()


@pytest.fixture
def shared() -> Path:
    """The folder with real data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED.name}/ beside the checkout")
    return SHARED


@dataclass
class Mesh:
    """A running process and the stubs of an outside client; `as_user` makes calls in somebody's name.

    `siblings` are equal processes on the same data. Then the stubs call one process after the other.
    """

    process: Process
    wire: Wire
    siblings: Sequence[Process] = ()
    _tokens: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        client = self.channel("")
        self.auth = auth_service_pb2_grpc.AuthServiceStub(client)
        self.users = user_service_pb2_grpc.UserServiceStub(client)
        self.graph = graph_service_pb2_grpc.GraphServiceStub(client)
        self.tweets = tweet_service_pb2_grpc.TweetServiceStub(client)
        self.timelines = timeline_service_pb2_grpc.TimelineServiceStub(client)
        operator = self.channel("operator")
        self.operator_auth = auth_service_pb2_grpc.AuthServiceStub(operator)
        self.operator_users = user_service_pb2_grpc.UserServiceStub(operator)
        self.operator_graph = graph_service_pb2_grpc.GraphServiceStub(operator)
        self.operator_tweets = tweet_service_pb2_grpc.TweetServiceStub(operator)
        self.operator_timelines = timeline_service_pb2_grpc.TimelineServiceStub(operator)
        self.fanout = fanout_service_pb2_grpc.FanoutServiceStub(operator)

    @property
    def processes(self) -> Sequence[Process]:
        return (self.process, *self.siblings)

    def channel(self, caller: str = "") -> grpc.aio.Channel:
        """Returns a channel to the mesh; with siblings one that alternates between the processes."""
        channels = [process.channel(caller) for process in self.processes]
        return AlternatingChannel(channels) if self.siblings else channels[0]

    @contextmanager
    def as_user(self, user_id: int) -> Iterator[None]:
        """Within it, calls over the stubs are made in this user's name (with a minted token where the wire is a socket)."""
        actor = Actor(user_id, token=self._tokens.get(user_id, ""))
        token = current_call.set(Call(actor=actor))
        try:
            yield
        finally:
            current_call.reset(token)

    async def people(self, *usernames: str) -> list[int]:
        """Imports people nobody can log in as, and returns their ids in order."""
        request = user_service_pb2.ImportUsersRequest()
        for name in usernames:
            request.users.add(username=name, email=f"{name}@example.com")
        answer = await self.operator_users.ImportUsers(request)
        ids = list(answer.user_ids)
        if self.wire == "grpc":
            minted = await self.operator_auth.MintTokens(
                auth_service_pb2.MintTokensRequest(user_ids=ids, ttl_seconds=3600)
            )
            self._tokens.update({token.user_id: token.access_token for token in minted.tokens})
        return ids

    async def follow(self, follower: int, followee: int) -> None:
        with self.as_user(follower):
            await self.graph.Follow(graph_service_pb2.FollowRequest(user_id=followee))

    async def post(self, author: int, text: str, **fields: Any) -> int:
        """Posts and returns the tweet's id."""
        with self.as_user(author):
            answer = await self.tweets.CreateTweet(tweet_service_pb2.CreateTweetRequest(text=text, **fields))
        return answer.tweet.id

    async def delete(self, author: int, tweet_id: int) -> None:
        with self.as_user(author):
            await self.tweets.DeleteTweet(tweet_service_pb2.DeleteTweetRequest(tweet_id=tweet_id))

    async def home(self, reader: int, page_size: int = 100) -> list[tweet_pb2.Tweet]:
        """The whole home, page by page."""
        found: list[tweet_pb2.Tweet] = []
        cursor = ""
        while True:
            request = timeline_service_pb2.ListHomeTimelineRequest(page_size=page_size, cursor=cursor)
            with self.as_user(reader):
                page = await self.timelines.ListHomeTimeline(request)
            cursor = page.next_cursor
            if page.partial:
                # The time for building it ran out; this cursor requests the same page again.
                continue
            found.extend(page.tweets)
            if not cursor:
                return found

    async def settled(self) -> None:
        """Waits until fan-out has delivered everything."""
        async with asyncio.timeout(SETTLE_WITHIN_S):
            while (await self.fanout.GetFanoutLag(fanout_service_pb2.GetFanoutLagRequest())).events:
                await asyncio.sleep(0.005)

    def event_log(self) -> EmbeddedLog | KafkaLog:
        """Returns the event log of the process, with its running consumers by group."""
        return _event_log(self.process)

    async def absences_counted(self) -> None:
        """Waits until the counts of follows, likes and replies exclude the users who are suspended or deactivated, and
        include those who are back."""
        log = self.event_log()
        # The processes of a consumer group share its partitions.
        consumers = [_event_log(process).running[group] for process in self.processes for group in ABSENCE_GROUPS]
        async with asyncio.timeout(SETTLE_WITHIN_S):
            # In the order in which events move on, so that one that moves meanwhile is not missed.
            while (await outbox.pending_lag(log, absences.TOPICS, 0)).events or any(
                [(await consumer.lag()).events for consumer in consumers]
            ):
                await asyncio.sleep(0.005)


def _event_log(process: Process) -> EmbeddedLog | KafkaLog:
    workers = process.services["graph"].workers
    return next(worker._log for worker in workers if isinstance(worker, EmbeddedConsumer | KafkaConsumer))


MeshFactory = Callable[..., Awaitable[Mesh]]


def mesh_settings(data_dir: Path, **changes: Any) -> Settings:
    """Settings of a test mesh: any free port, the cheapest password hash, no rate limits, and the namespace of its data directory."""
    defaults: dict[str, Any] = {
        "data_dir": data_dir,
        "grpc_address": "127.0.0.1:0",
        "http_address": "127.0.0.1:0",
        "bcrypt_cost": 4,
        "rate_limits": False,
        "log_level": "warning",
    }
    if changes.get("backend", backend.name) == "cluster" and "namespace" not in changes:
        defaults |= backend.of(data_dir).settings
    return Settings(**(defaults | changes))


async def start_process(settings: Settings, **options: Any) -> Process:
    """Starts all services in this process, on the backend of the settings; `options` are those of `Process.start`."""
    return await Process.start(settings, SERVICES, backend=BACKENDS[settings.backend], key_source=KEY_SOURCE, **options)


@asynccontextmanager
async def running_mesh(settings: Settings, wire: str) -> AsyncIterator[Mesh]:
    """Runs a mesh over one of SHAPES."""
    async with AsyncExitStack() as stack:
        processes = []
        chosen: Wire = "grpc" if wire == "grpc" else "inprocess"
        for number in range(2 if wire == "replicas" else 1):
            # Without sockets every message is checked for changes after it was handed over.
            checker = MutationGuard() if chosen == "inprocess" else None
            own = settings.model_copy(update={"data_dir": settings.data_dir / "sibling"}) if number else settings
            process = await start_process(own, wire=chosen, checker=checker)
            processes.append(process)
            if checker is not None:
                stack.callback(checker.verify)
            stack.push_async_callback(process.stop)
        yield Mesh(processes[0], chosen, processes[1:])


@pytest.fixture
async def start_mesh(tmp_path: Path) -> AsyncIterator[MeshFactory]:
    """Starts meshes with changed settings; all are stopped at the end of the test."""
    async with AsyncExitStack() as stack:
        started = itertools.count()

        async def start(wire: str = "inprocess", data_dir: Path | None = None, **changes: Any) -> Mesh:
            settings = mesh_settings(data_dir or tmp_path / f"mesh-{next(started)}", **changes)
            return await stack.enter_async_context(running_mesh(settings, wire))

        yield start


@pytest.fixture(params=SHAPES)
async def mesh(request: pytest.FixtureRequest, start_mesh: MeshFactory) -> Mesh:
    """A mesh, once over each of SHAPES."""
    return await start_mesh(wire=request.param)


def refused(code: grpc.StatusCode) -> Any:
    """`with refused(NOT_FOUND):` the call inside must be refused with this status."""
    return pytest.raises(grpc.aio.AioRpcError, match=code.name)
