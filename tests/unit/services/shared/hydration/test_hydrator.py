"""Hydration: every rule that hides a tweet, against fake services behind a real in-process channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.engagement.v1 import engagement_service_pb2 as engagement
from roost.engagement.v1.engagement_service_pb2_grpc import EngagementServiceServicer
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceServicer
from roost.identity.v1 import user_pb2
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceServicer
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceServicer

from services.platform.rpc import errors
from services.platform.rpc.interceptors.endpoint import intercepted_methods
from services.platform.transport.inprocess import InProcessChannel
from services.platform.transport.message_guard import MutationGuard
from services.shared.hydration.cache import CachedTweet, HydrationCache
from services.shared.hydration.fragments import framed, tombstone, varint
from services.shared.hydration.hydrator import Hydrator, ListRules
from tests.versions import UnknownVersions

READER, ANN, BOB, CAT = 1, 2, 3, 4


@dataclass
class World:
    """The data of the fake services, and the calls that they received."""

    cores: dict[int, tweet_pb2.TweetCore] = field(default_factory=dict)
    states: dict[int, int] = field(default_factory=lambda: dict.fromkeys((READER, ANN, BOB, CAT), 1))
    blocks: set[tuple[int, int]] = field(default_factory=set)
    mutes: set[tuple[int, int]] = field(default_factory=set)
    likes: set[tuple[int, int]] = field(default_factory=set)
    down: str = ""
    viewers: set[int] = field(default_factory=set)
    calls: list[tuple[str, int]] = field(default_factory=list)

    def post(self, tweet_id: int, author_id: int, **head: int) -> int:
        """Adds a live tweet. For replies, retweets and quotes the author of the other tweet is filled in."""
        for kind in ("reply_to", "retweet_of", "quote_of"):
            target = self.cores.get(head.get(f"{kind}_id", 0))
            if target is not None:
                head[f"{kind}_author_id"] = target.head.author_id
        ids = {name: value for name, value in head.items() if name.endswith("_id") and "author" not in name}
        body = tweet_pb2.Tweet(id=tweet_id, author_id=author_id, text=f"tweet {tweet_id}", **ids)
        self.cores[tweet_id] = tweet_pb2.TweetCore(
            head=tweet_pb2.TweetHead(id=tweet_id, author_id=author_id, **head),  # type: ignore[arg-type]
            core=body.SerializeToString(),
        )
        return tweet_id

    def delete(self, tweet_id: int) -> None:
        self.cores[tweet_id].head.deleted = True
        self.cores[tweet_id].core = b""

    def asked(self, owner: str, ids: Any) -> None:
        self.calls.append((owner, len(ids)))
        if self.down == owner:
            raise errors.unavailable(f"{owner} is down")

    def ref(self, user_id: int) -> user_pb2.UserRef:
        return user_pb2.UserRef(id=user_id, username=f"user{user_id}", display_name="x" * 40 * user_id)


class Tweets(TweetServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def BatchGetTweetCores(self, request: Any, context: Any) -> Any:
        self.world.asked("tweet", request.ids)
        self.world.viewers.add(request.viewer_id)
        known = self.world.cores
        return tweet.BatchGetTweetCoresResponse(cores=[known[i] for i in request.ids if i in known])


class Users(UserServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def BatchGetUserRefs(self, request: Any, context: Any) -> Any:
        self.world.asked("identity", request.ids)
        response = identity.BatchGetUserRefsResponse()
        for user_id in request.ids:
            if state := self.world.states.get(user_id):
                ref = self.world.ref(user_id).SerializeToString()
                response.refs.add(user_id=user_id, ref=ref, state=state)  # type: ignore[arg-type]
        return response


class Graph(GraphServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def GetVisibilityFilter(self, request: Any, context: Any) -> Any:
        self.world.asked("graph", request.candidate_ids)
        reader, blocks = request.user_id, self.world.blocks
        return graph.GetVisibilityFilterResponse(
            blocked_ids=[target for by, target in blocks if by == reader],
            blocked_by_ids=[i for i in request.candidate_ids if (i, reader) in blocks],
            muted_ids=[target for by, target in self.world.mutes if by == reader],
        )


class Engagement(EngagementServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def BatchGetCounts(self, request: Any, context: Any) -> Any:
        self.world.asked("engagement", request.ids)
        response = engagement.BatchGetCountsResponse()
        for tweet_id in request.ids:
            if likes := sum(1 for _, liked in self.world.likes if liked == tweet_id):
                response.counts.add(tweet_id=tweet_id, likes=likes)
            if (request.viewer_id, tweet_id) in self.world.likes:
                response.states.add(tweet_id=tweet_id, liked=True)
        return response


@pytest.fixture
def world() -> World:
    return World()


@dataclass
class FakeSharedRef:
    """The published ref of one user."""

    data: bytes


class FakeSharedUserRefs:
    """A fake of the refs in Redis: it has those of `known`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.known: set[int] = set()

    async def users(self, ids: Sequence[int]) -> list[FakeSharedRef | None]:
        request = identity.BatchGetUserRefsRequest
        owner = Users(World(states=self.world.states))
        return [
            FakeSharedRef((await owner.BatchGetUserRefs(request(ids=[i]), None)).SerializeToString())
            if i in self.known
            else None
            for i in ids
        ]


def channel_to(world: World) -> InProcessChannel:
    endpoints = intercepted_methods(
        {
            "roost.tweet.v1.TweetService": Tweets(world),
            "roost.identity.v1.UserService": Users(world),
            "roost.graph.v1.GraphService": Graph(world),
            "roost.engagement.v1.EngagementService": Engagement(world),
        }
    )
    return InProcessChannel(endpoints, "tweet", MutationGuard())


@pytest.fixture
def hydrator(world: World) -> Hydrator:
    return Hydrator(channel_to(world), HydrationCache(UnknownVersions()))


async def shown(hydrator: Hydrator, *ids: int, reader: int = READER, **rules: Any) -> list[int]:
    """Returns the ids that the reader sees, after checking that each serialized tweet has its id."""
    found = await hydrator.visible(reader, ids, len(ids), **rules)
    for hydrated in found:
        parsed = tweet_pb2.Tweet.FromString(hydrated.data)
        assert (hydrated.id, hydrated.author_id) == (parsed.id, parsed.author_id) == (parsed.id, parsed.author.id)
    return [hydrated.id for hydrated in found]


async def test_visible_bytes_equal_message_built_by_fields(world: World, hydrator: Hydrator) -> None:
    original, quoted = world.post(10, BOB), world.post(11, CAT)
    world.cores[10].retweets, world.cores[10].replies, world.cores[11].quotes = 300, 1, 2
    retweet, quote = world.post(12, ANN, retweet_of_id=original), world.post(13, ANN, quote_of_id=quoted)

    def built(tweet_id: int, author: int, **fields: Any) -> tweet_pb2.Tweet:
        return tweet_pb2.Tweet(
            id=tweet_id, author_id=author, text=f"tweet {tweet_id}", author=world.ref(author), **fields
        )

    expected = {
        10: built(10, BOB, metrics=tweet_pb2.TweetMetrics(retweets=300, replies=1)),
        11: built(11, CAT, metrics=tweet_pb2.TweetMetrics(quotes=2)),
    }
    zeros = tweet_pb2.TweetMetrics()
    expected[12] = built(12, ANN, retweet_of_id=10, retweeted_tweet=expected[10], metrics=zeros)
    expected[13] = built(13, ANN, quote_of_id=11, quoted_tweet=expected[11], metrics=zeros)
    found = await hydrator.visible(READER, [original, quoted, retweet, quote], 9)
    assert {hydrated.id: tweet_pb2.Tweet.FromString(hydrated.data) for hydrated in found} == expected


async def test_visible_keeps_order_and_omits_unknown_ids(world: World, hydrator: Hydrator) -> None:
    for tweet_id in (10, 11, 12):
        world.post(tweet_id, ANN)
    assert await shown(hydrator, 11, 99, 10, 12) == [11, 10, 12]
    assert await shown(hydrator) == []


async def test_visible_omits_deleted_tweets_and_their_retweets(world: World, hydrator: Hydrator) -> None:
    world.post(10, ANN)
    world.post(11, BOB, retweet_of_id=10)
    assert await shown(hydrator, 10, 11) == [10, 11]
    world.delete(10)
    assert await shown(hydrator, 10, 11) == []
    del world.cores[10]
    assert await shown(hydrator, 10, 11) == []


@pytest.mark.parametrize("block", [(READER, ANN), (ANN, READER)])
async def test_visible_block_hides_tweets_in_both_directions(
    world: World, hydrator: Hydrator, block: tuple[int, int]
) -> None:
    world.post(10, ANN)
    world.post(11, BOB, retweet_of_id=10)
    world.post(12, READER, retweet_of_id=10)
    world.post(13, ANN, retweet_of_id=world.post(14, BOB))
    world.blocks.add(block)
    assert await shown(hydrator, 10, 11, 12, 13, 14) == [14]
    assert await shown(hydrator, 10, 11, 12, 13, 14, reader=CAT) == [10, 11, 12, 13, 14]
    assert await shown(hydrator, 10, 11, 12, 13, 14, reader=0) == [10, 11, 12, 13, 14]


async def test_visible_hide_muted_omits_tweets_and_retweets(world: World, hydrator: Hydrator) -> None:
    world.post(10, ANN)
    world.post(11, BOB, retweet_of_id=10)
    world.post(12, READER, retweet_of_id=10)
    world.mutes.add((READER, ANN))
    assert await shown(hydrator, 10, 11, 12) == [10, 11, 12]
    assert await shown(hydrator, 10, 11, 12, hide_muted=True) == []
    assert await shown(hydrator, 10, 11, 12, hide_muted=True, reader=CAT) == [10, 11, 12]


@pytest.mark.parametrize("state", [user_pb2.USER_STATE_SUSPENDED, user_pb2.USER_STATE_DEACTIVATED, None])
async def test_visible_inactive_author_is_hidden_from_all(world: World, hydrator: Hydrator, state: int | None) -> None:
    world.post(10, ANN)
    world.post(11, BOB, retweet_of_id=10)
    world.states[ANN] = state or 0
    assert await shown(hydrator, 10, 11) == []
    assert await shown(hydrator, 10, 11, reader=0) == []


@pytest.mark.parametrize("why", ["deleted", "purged", "blocked", "suspended"])
async def test_visible_hidden_quoted_tweet_is_tombstone(world: World, hydrator: Hydrator, why: str) -> None:
    world.post(10, ANN)
    world.post(11, BOB, quote_of_id=10)
    match why:
        case "deleted":
            world.delete(10)
        case "purged":
            del world.cores[10]
        case "blocked":
            world.blocks.add((ANN, READER))
        case "suspended":
            world.states[ANN] = user_pb2.USER_STATE_SUSPENDED
    (hydrated,) = await hydrator.visible(READER, [11], 1)
    parsed = tweet_pb2.Tweet.FromString(hydrated.data)
    assert parsed.quoted_tweet == tweet_pb2.Tweet(id=10, deleted=True)


class OddRules(ListRules):
    """Admits tweets with odd ids; replies of ANN require their parent."""

    def admitted(self, tweets: Sequence[CachedTweet]) -> list[CachedTweet]:
        return [tweet for tweet in tweets if tweet.id % 2]

    def requires_parent(self, reply: CachedTweet) -> bool:
        return reply.author_id == ANN


async def test_visible_rules_leave_out_what_they_do_not_admit(world: World, hydrator: Hydrator) -> None:
    for tweet_id in range(10, 16):
        world.post(tweet_id, ANN)
    assert await shown(hydrator, *range(10, 16), rules=OddRules()) == [11, 13, 15]
    world.calls.clear()
    assert await shown(hydrator, 10, 12, rules=OddRules()) == []
    assert [owner for owner, _ in world.calls] == ["tweet"], "nobody is asked about tweets that are left out"


async def test_visible_rules_require_live_parent_of_visible_author(world: World, hydrator: Hydrator) -> None:
    world.post(10, BOB)
    reply, other = world.post(11, ANN, reply_to_id=10), world.post(13, CAT, reply_to_id=10)
    assert await shown(hydrator, reply, other, rules=OddRules()) == [reply, other]
    world.states[BOB] = user_pb2.USER_STATE_SUSPENDED
    assert await shown(hydrator, reply, other) == [reply, other], "other lists show replies to hidden users"
    assert await shown(hydrator, reply, other, rules=OddRules()) == [other]
    world.states[BOB] = user_pb2.USER_STATE_ACTIVE
    world.delete(10)
    assert await shown(hydrator, reply, other, rules=OddRules()) == [other]


async def test_visible_owner_failure_is_raised(world: World, hydrator: Hydrator) -> None:
    world.post(10, ANN)
    world.post(11, BOB, retweet_of_id=10)
    for owner in ("tweet", "identity", "graph"):
        world.down = owner
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await hydrator.visible(READER, [10, 11], 2)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    world.down = "graph"
    assert await shown(hydrator, 10, 11, reader=0) == [10, 11], "nobody's blocks are not asked for"


async def test_visible_page_makes_two_rounds_of_calls(world: World, hydrator: Hydrator) -> None:
    for tweet_id in range(100, 400):
        world.post(tweet_id, ANN)
    found = await hydrator.visible(READER, range(100, 400), 20)
    assert [hydrated.id for hydrated in found] == list(range(100, 120))
    assert [owner for owner, _ in world.calls] == ["tweet", "engagement", "identity", "graph"]
    assert world.calls[0][1] < 40, "what the page cannot hold is not asked for"


async def test_visible_hidden_tweets_are_replaced(world: World, hydrator: Hydrator) -> None:
    for tweet_id in range(100, 1_100):
        world.post(tweet_id, ANN if tweet_id % 10 else BOB)
    world.blocks.add((ANN, READER))
    found = await hydrator.visible(READER, range(100, 1_100), 50)
    assert [hydrated.id for hydrated in found] == list(range(100, 600, 10))


async def test_author_fragments_omit_hidden_users(world: World, hydrator: Hydrator) -> None:
    world.blocks.add((ANN, READER))
    world.states[CAT] = user_pb2.USER_STATE_DEACTIVATED
    assert set(await hydrator.author_fragments(READER, [ANN, BOB, CAT, 99])) == {BOB}
    fragments = await hydrator.author_fragments(0, [ANN, BOB])
    assert tweet_pb2.Tweet.FromString(fragments[ANN]).author == world.ref(ANN)


@given(st.integers(0, (1 << 63) - 1))
def test_varint_and_tombstone_parse_as_protobuf(number: int) -> None:
    assert tweet_pb2.Tweet.FromString(b"\x08" + varint(number)).id == number
    assert tweet_pb2.Tweet.FromString(tombstone(number)) == tweet_pb2.Tweet(id=number, deleted=True)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 1_023, 1_024, 16_384, 70_000])
def test_framed_any_length_parses_as_protobuf(length: int) -> None:
    assert tweet_pb2.Tweet.FromString(framed(b"\x1a", b"x" * length)).text == "x" * length


async def test_visible_contains_counts_and_viewer_reactions(world: World, hydrator: Hydrator) -> None:
    original, quiet = world.post(10, BOB), world.post(11, CAT)
    retweet = world.post(12, ANN, retweet_of_id=original)
    world.cores[original].retweets = 1
    world.likes = {(READER, original), (ANN, original), (ANN, quiet)}
    found = await hydrator.visible(READER, [original, quiet, retweet], 9)
    first, second, third = (tweet_pb2.Tweet.FromString(hydrated.data) for hydrated in found)
    assert (first.metrics.likes, first.metrics.retweets, first.viewer.liked) == (2, 1, True)
    assert (second.metrics.likes, second.HasField("viewer")) == (1, False)
    assert (third.retweeted_tweet.metrics.likes, third.retweeted_tweet.viewer.liked) == (2, True)


async def test_visible_contains_viewer_retweets(world: World, hydrator: Hydrator) -> None:
    original = world.post(10, BOB)
    quote = world.post(11, ANN, quote_of_id=original)
    world.cores[original].retweets, world.cores[original].retweeted = 1, True
    found = await hydrator.visible(READER, [original, quote], 9)
    first, second = (tweet_pb2.Tweet.FromString(hydrated.data) for hydrated in found)
    assert first.viewer == second.quoted_tweet.viewer == tweet_pb2.TweetViewer(retweeted=True)
    assert not second.HasField("viewer")
    assert world.viewers == {READER}


async def test_visible_without_reader_has_no_viewer_state(world: World, hydrator: Hydrator) -> None:
    liked = world.post(10, BOB)
    world.likes = {(READER, liked)}
    (found,) = await hydrator.visible(0, [liked], 9)
    assert not tweet_pb2.Tweet.FromString(found.data).HasField("viewer")


async def test_visible_engagement_failure_omits_counts(world: World, hydrator: Hydrator) -> None:
    liked = world.post(10, BOB)
    world.likes = {(READER, liked)}
    world.down = "engagement"
    (found,) = await hydrator.visible(READER, [liked], 9)
    hydrated = tweet_pb2.Tweet.FromString(found.data)
    assert hydrated.HasField("metrics")
    assert hydrated.metrics == tweet_pb2.TweetMetrics()


async def test_visible_asks_identity_for_missing_shared_refs_only(world: World) -> None:
    shared_refs = FakeSharedUserRefs(world)
    hydrator = Hydrator(channel_to(world), HydrationCache(UnknownVersions()), shared_refs)
    tweets = [world.post(10, ANN), world.post(11, BOB), world.post(12, CAT)]
    for shared_refs.known, asked in (({ANN, BOB, CAT}, []), ({BOB}, [2]), (set(), [3])):
        world.calls.clear()
        assert await shown(hydrator, *tweets) == tweets
        assert [count for owner, count in world.calls if owner == "identity"] == asked
    # Refs from Redis are used while identity is down.
    shared_refs.known, world.down = {ANN, BOB, CAT}, "identity"
    world.states[BOB] = user_pb2.USER_STATE_SUSPENDED
    assert await shown(hydrator, *tweets) == [10, 12]
    assert set(await hydrator.author_fragments(READER, [ANN, BOB])) == {ANN}
