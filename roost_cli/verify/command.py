"""`roost verify`: checks home timelines.

The command reads users, edges and tweets from the services that own them, computes every home timeline from these data,
and compares it with the home timeline that the mesh returns: as it is stored, after a replay of the whole event log
(optional), and after a new build.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import grpc as grpc_lib
import typer
from roost.fanout.v1 import fanout_service_pb2, fanout_service_pb2_grpc
from roost.graph.v1 import graph_service_pb2, graph_service_pb2_grpc
from roost.identity.v1 import user_pb2
from roost.timeline.v1 import timeline_service_pb2, timeline_service_pb2_grpc
from roost.tweet.v1 import tweet_service_pb2, tweet_service_pb2_grpc

from roost_cli import connection, options, progress
from roost_cli.exit_codes import FAULTS, call_error
from roost_cli.rate_control import deadline_s, for_each, with_retries
from roost_cli.scans import scan_users
from roost_cli.tokens import TokenCache
from roost_cli.verify.timeline_model import Differences, ServiceData, compare, expected_home

CHANNELS = 2
# Maximum number of home timelines that are read concurrently. Reading a cold home timeline builds it; with this number,
# every build meets its deadline.
CONCURRENCY = 16
PAGE_SIZE = 100
# Maximum number of pages that are read of a home timeline. The 800 entries of a home timeline fill eight pages, so more
# pages are a fault.
MAX_PAGES = 12
# Maximum number of repeated reads of a home timeline that is still being built, and the number of seconds between two
# reads.
PARTIAL_TRIES = 100
PARTIAL_PAUSE_S = 0.1
# Maximum number of seconds until fan-out has no lag. Fan-out processes thousands of tweets per second, so if it takes
# longer, the lag does not shrink.
LAG_WAIT_S = 120.0
LAG_PAUSE_S = 0.2
# Maximum number of home timelines printed per comparison, and of tweet ids printed for each. The printed totals count
# all.
SHOWN_HOMES = 10
SHOWN_IDS = 3

LIST_HOME = "/roost.timeline.v1.TimelineService/ListHomeTimeline"
REBUILD_HOME = "/roost.timeline.v1.TimelineService/RebuildHomeTimeline"
SCAN_EDGES = "/roost.graph.v1.GraphService/ScanEdges"
SCAN_TWEETS = "/roost.tweet.v1.TweetService/ScanTweets"
GET_LAG = "/roost.fanout.v1.FanoutService/GetFanoutLag"
REPLAY = "/roost.fanout.v1.FanoutService/ReplayFanout"
STATE_KEY = "roost-timeline"


@dataclass(slots=True)
class ReadHome:
    """A home timeline that was read page by page: its tweet ids, its state, and why it could not be read completely (""
    if it could).

    The state is the value of the metadata `roost-timeline` of the first page, such as `warm`.
    """

    ids: list[int] = field(default_factory=list)
    state: str = ""
    unread: str = ""


def verify(
    replay: Annotated[
        bool, typer.Option("--replay", help="Also compare after fan-out has read the whole event log again.")
    ] = False,
    grpc: options.Grpc = None,
) -> None:
    """Compare every home timeline with one that is computed from the data of the other services. Exits with 1 if one
    differs, or if fan-out does not catch up.

    Follows, blocks, mutes and deletions during the check can cause differences that are no faults; new tweets cannot.
    """
    if not asyncio.run(audit(connection.find(grpc), progress.for_stream(), replay=replay)):
        raise typer.Exit(FAULTS)


async def audit(mesh: connection.MeshTarget, shown: progress.Progress, *, replay: bool = False) -> bool:
    """Compares every home timeline of the mesh with the computed one and prints the differences. Returns true if there
    are none and fan-out has no lag.

    If `replay` is true, also compares after a replay of the whole event log. Raises CommandError if a call fails.
    """
    operator = mesh.operator()
    findings: dict[str, dict[int, Differences]] = {}
    async with connection.connect(mesh, CHANNELS) as channels:
        try:
            caught_up = await wait_for_fanout(channels[0], operator, shown)
            truth = await scan_all(channels[0], operator, shown)
            auditor = Auditor(channels, operator, truth, shown)
            await auditor.prepare()
            stored = await auditor.read_all("home timelines as stored")
            findings["as stored"] = await auditor.judge(stored)
            if replay:
                await replay_all(channels[0], operator, shown)
                caught_up &= await wait_for_fanout(channels[0], operator, shown)
                findings["after a replay"] = await auditor.judge(await auditor.read_all("homes after a replay"))
            await auditor.rebuild_all()
            findings["after a rebuild"] = await auditor.judge(await auditor.read_all("homes built anew"))
        except grpc_lib.aio.AioRpcError as error:
            raise call_error(error, "auditing") from error
    return report(truth, stored, findings) and caught_up


async def faults_of(
    channels: Sequence[grpc_lib.aio.Channel], operator: connection.Metadata, readers: Sequence[int]
) -> list[str]:
    """Waits until fan-out has no lag, compares the home timelines of the readers with the computed ones, and returns
    one line for each that differs.

    Also returns a line if fan-out does not catch up. Raises AioRpcError or CommandError if a call fails.
    """
    shown = progress.Silent()
    lines = [] if await wait_for_fanout(channels[0], operator, shown) else ["fan-out does not catch up"]
    truth = await scan_all(channels[0], operator, shown)
    auditor = Auditor(channels, operator, truth, shown)
    await auditor.prepare(readers)
    found = await auditor.judge(await auditor.read_all("homes"))
    lines.extend(f"home of {reader}: {describe(faults)}" for reader, faults in found.items() if not faults.exact)
    return lines


async def replay_all(channel: grpc_lib.aio.Channel, operator: connection.Metadata, shown: progress.Progress) -> None:
    """Makes fan-out read the event log again from its first event, and prints the number of events. Raises AioRpcError
    or CommandError as `with_retries` does."""
    stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
    request = fanout_service_pb2.ReplayFanoutRequest(offset=0)
    answer = await with_retries(lambda: stub.ReplayFanout(request, metadata=operator, timeout=deadline_s(REPLAY)))
    shown.say(f"replay: {answer.events:,} events are delivered again")


async def wait_for_fanout(
    channel: grpc_lib.aio.Channel, operator: connection.Metadata, shown: progress.Progress, wait_s: float = LAG_WAIT_S
) -> bool:
    """Waits until fan-out has no lag. If fan-out is paused, or has a lag after `wait_s` seconds, prints a message and
    returns False. Raises AioRpcError or CommandError as `with_retries` does."""
    stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    said = False
    request = fanout_service_pb2.GetFanoutLagRequest()
    while True:
        lag = await with_retries(lambda: stub.GetFanoutLag(request, metadata=operator, timeout=deadline_s(GET_LAG)))
        if lag.events == 0:
            return True
        if lag.paused or loop.time() > until:
            why = "is paused" if lag.paused else f"did not catch up in {wait_s:g} s"
            shown.say(f"fault: fan-out {why}, {lag.events:,} events behind; checking the home timelines as stored")
            return False
        if not said:
            shown.say(f"waiting for fan-out: {lag.events:,} events behind")
            said = True
        await asyncio.sleep(LAG_PAUSE_S)


async def scan_all(
    channel: grpc_lib.aio.Channel, operator: connection.Metadata, shown: progress.Progress
) -> ServiceData:
    """Returns all users, edges and tweets of the mesh. Reads them by the operator's scans of identity, graph and tweet.
    Raises AioRpcError if a scan fails."""
    truth = ServiceData()
    with shown.phase("users scanned", 0) as phase:
        async for user in scan_users(channel, operator):
            active = user.state == user_pb2.USER_STATE_ACTIVE
            truth.add_user(user.user.id, user.user.username, active=active)
            phase.advance()
    adders = (
        (graph_service_pb2.EDGE_KIND_FOLLOW, truth.add_follow),
        (graph_service_pb2.EDGE_KIND_BLOCK, truth.add_block),
        (graph_service_pb2.EDGE_KIND_MUTE, truth.add_mute),
    )
    graph = graph_service_pb2_grpc.GraphServiceStub(channel)
    with shown.phase("edges scanned", 0) as phase:
        for kind, add in adders:
            request = graph_service_pb2.ScanEdgesRequest(kind=kind)
            async for page in graph.ScanEdges(request, metadata=operator, timeout=deadline_s(SCAN_EDGES)):
                for edge in page.edges:
                    add(edge.from_id, edge.to_id)
                phase.advance(len(page.edges))
    with shown.phase("tweets scanned", 0) as phase:
        await scan_tweets(channel, operator, truth, phase.advance)
    return truth


async def scan_tweets(
    channel: grpc_lib.aio.Channel, operator: connection.Metadata, truth: ServiceData, advance: progress.Advance
) -> None:
    """Reads the tweets whose ids are greater than those in `truth`, and adds them to `truth`. Calls `advance` with the
    number of tweets of each message. Raises AioRpcError if the scan fails; the tweets received before stay in
    `truth`."""
    stub = tweet_service_pb2_grpc.TweetServiceStub(channel)
    request = tweet_service_pb2.ScanTweetsRequest(after_id=truth.newest)
    async for page in stub.ScanTweets(request, metadata=operator, timeout=deadline_s(SCAN_TWEETS)):
        for core in page.cores:
            truth.add_tweet(core.head)
        advance(len(page.cores))


class Auditor:
    """Reads each home timeline with an access token of its user, and compares it with the home timeline computed from
    `truth`: the users, edges and tweets that the services returned to a scan. Methods raise AioRpcError or CommandError
    if a call fails."""

    def __init__(
        self,
        channels: Sequence[grpc_lib.aio.Channel],
        operator: connection.Metadata,
        truth: ServiceData,
        shown: progress.Progress,
    ) -> None:
        self._stubs = [timeline_service_pb2_grpc.TimelineServiceStub(channel) for channel in channels]
        self._channel = channels[0]
        self._operator = operator
        self._truth = truth
        self._shown = shown
        self._tokens = TokenCache(channels[0], operator)
        self._expected: dict[int, list[int]] = {}
        self._horizon = truth.newest

    async def prepare(self, only: Sequence[int] | None = None) -> None:
        """Computes the home timelines of the users in `only` (None: of all active users), and mints access tokens to
        read them. Call this method before all other methods."""
        readers = sorted(self._truth.active if only is None else only)
        await self._tokens.admit(readers)
        with self._shown.phase("homes computed", len(readers)) as phase:
            for reader in readers:
                self._expected[reader] = expected_home(self._truth, reader)
                phase.advance()
                # Each computation blocks the event loop for milliseconds. The sleep lets gRPC answer keep-alive pings.
                await asyncio.sleep(0)

    async def read_all(self, title: str) -> dict[int, ReadHome]:
        """Reads every home timeline completely and returns them by user id. `title` names the phase in the printed
        progress."""
        answers: dict[int, ReadHome] = {}

        async def one(reader: int) -> None:
            answers[reader] = await self.read(reader)

        with self._shown.phase(title, len(self._expected)) as phase:
            await for_each(self._expected, one, concurrency=CONCURRENCY, done=phase.advance)
        return answers

    async def read(self, reader: int) -> ReadHome:
        """Reads all pages of the home timeline of the user `reader`, as this user. Repeats the read of a partial page
        up to PARTIAL_TRIES times."""
        answer = ReadHome()
        request = timeline_service_pb2.ListHomeTimelineRequest(page_size=PAGE_SIZE)
        if reader not in self._tokens:
            return ReadHome(unread="no token was minted for this active user")
        pages = partials = 0
        while pages < MAX_PAGES:
            page, state = await self._page(reader, request)
            answer.state = answer.state or state
            request = timeline_service_pb2.ListHomeTimelineRequest(page_size=PAGE_SIZE, cursor=page.next_cursor)
            if page.partial:
                partials += 1
                if partials > PARTIAL_TRIES:
                    answer.unread = "its build did not end"
                    return answer
                await asyncio.sleep(PARTIAL_PAUSE_S)
                continue
            answer.ids.extend(tweet.id for tweet in page.tweets)
            pages += 1
            if not page.next_cursor:
                return answer
        answer.unread = f"it went on after {MAX_PAGES} pages"
        return answer

    async def _page(
        self, reader: int, request: timeline_service_pb2.ListHomeTimelineRequest
    ) -> tuple[timeline_service_pb2.ListHomeTimelineResponse, str]:
        metadata = await self._tokens.act_as(reader)
        stub = self._stubs[reader % len(self._stubs)]

        async def ask() -> tuple[timeline_service_pb2.ListHomeTimelineResponse, str]:
            call = stub.ListHomeTimeline(request, metadata=metadata, timeout=deadline_s(LIST_HOME))
            page = await call
            return page, _state(await call.trailing_metadata())

        return await with_retries(ask)

    async def rebuild_all(self) -> None:
        """Deletes every stored home timeline and builds it again."""
        timeout = deadline_s(REBUILD_HOME)

        async def one(reader: int) -> None:
            request = timeline_service_pb2.RebuildHomeTimelineRequest(user_id=reader)
            stub = self._stubs[reader % len(self._stubs)]
            await with_retries(lambda: stub.RebuildHomeTimeline(request, metadata=self._operator, timeout=timeout))

        with self._shown.phase("homes rebuilt", len(self._expected)) as phase:
            await for_each(self._expected, one, concurrency=CONCURRENCY, done=phase.advance)

    async def judge(self, answers: dict[int, ReadHome]) -> dict[int, Differences]:
        """Returns the differences between each home timeline in `answers` and the computed one, by user id."""
        if any(tweet_id > self._horizon for answer in answers.values() for tweet_id in answer.ids):
            # Home timelines may contain tweets that were posted after the first scan. Another scan adds these tweets to
            # `truth`, so that `compare` does not report them.
            await scan_tweets(self._channel, self._operator, self._truth, lambda _: None)
        found = {}
        for reader, answer in sorted(answers.items()):
            newer = [i for i in answer.ids if i > self._horizon and i in self._truth.heads]
            differs = compare(self._expected[reader], answer.ids, newer)
            found[reader] = differs if not answer.unread else Differences(unread=answer.unread)
        return found


def _state(trailing: Iterable[tuple[str, str | bytes]] | None) -> str:
    values = [value for key, value in trailing or () if key == STATE_KEY]
    return str(values[0]) if values else "unknown"


def report(truth: ServiceData, stored: dict[int, ReadHome], findings: Mapping[str, dict[int, Differences]]) -> bool:
    """Prints the differences, and then two lines with totals, which scripts parse. Returns true if no home timeline
    differs in any comparison.

    `stored` are the home timelines as they were first read. `findings` has the differences of each comparison, by its
    title.
    """
    for title, found_then in findings.items():
        at_fault = {reader: found for reader, found in found_then.items() if not found.exact}
        for reader, found in list(at_fault.items())[:SHOWN_HOMES]:
            typer.echo(f"home of {truth.usernames[reader]} ({reader}) {title}: {describe(found)}")
        if len(at_fault) > SHOWN_HOMES:
            typer.echo(f"… and {len(at_fault) - SHOWN_HOMES:,} more homes {title}")
        if at_fault:
            kinds = Counter[str]()
            for found in at_fault.values():
                kinds.update({kind: len(ids) for kind, ids in found.by_kind()})
                kinds["unread"] += bool(found.unread)
            typer.echo(f"{title}: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count))
    states = Counter(answer.state for answer in stored.values())
    exact = sum(all(found_then[reader].exact for found_then in findings.values()) for reader in stored)
    typer.echo(f"warm: {states['warm']} of {len(stored)}")
    typer.echo(f"{exact} of {len(stored)} timelines exact")
    return exact == len(stored)


def describe(found: Differences) -> str:
    """Returns a text with the number of tweets that differ, by kind of difference, and the first ids of each kind."""
    if found.unread:
        return f"not read whole: {found.unread}"
    parts = []
    for kind, ids in found.by_kind():
        more = ", …" if len(ids) > SHOWN_IDS else ""
        parts.append(f"{len(ids)} {kind} ({', '.join(str(tweet_id) for tweet_id in ids[:SHOWN_IDS])}{more})")
    return "; ".join(parts)
