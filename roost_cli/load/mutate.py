"""`roost load --mutate N`: performs random operations as existing users, through RPCs.

The command plans all operations before it performs the first one, so the same seed and data give the same plan.
Operations run concurrently, so it may differ between runs which of them the mesh refuses.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import typer
from google.protobuf.message import Message

from roost_cli import connection, progress
from roost_cli.exit_codes import FAULTS, CommandError, call_error
from roost_cli.load.random_operations import Kind, Operation, OperationPlanner
from roost_cli.rate_control import for_each, with_retries
from roost_cli.tokens import TokenCache
from roost_cli.verify.command import scan_all
from roost_cli.verify.timeline_model import ServiceData
from services.platform.rpc import contract, errors

CHANNELS = 4
# Status codes with which the mesh may refuse an operation because of other operations of the plan: the tweet is
# deleted, one user blocks the other, or the tweet was edited too often. All other codes are faults.
EXPECTED = frozenset(
    {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.FAILED_PRECONDITION}
)
# The code under which operations are counted that were not sent, because the mesh refused the earlier operation that
# should have created their tweet.
NO_TARGET = "without its tweet"

_TWEETS = "/roost.tweet.v1.TweetService/"
_REPLIES = "/roost.tweet.v1.ReplyService/"
_GRAPH = "/roost.graph.v1.GraphService/"
_ENGAGEMENT = "/roost.engagement.v1.EngagementService/"
# The RPC of each kind of operation, and the request field with the id of the tweet or user that the operation acts on.
METHODS: Mapping[Kind, tuple[str, str]] = {
    Kind.POST: (_TWEETS + "CreateTweet", ""),
    Kind.REPLY: (_REPLIES + "CreateReply", "tweet_id"),
    Kind.QUOTE: (_TWEETS + "CreateTweet", "quote_of_id"),
    Kind.RETWEET: (_TWEETS + "Retweet", "tweet_id"),
    Kind.UNRETWEET: (_TWEETS + "Unretweet", "tweet_id"),
    Kind.EDIT: (_TWEETS + "UpdateTweet", "tweet_id"),
    Kind.DELETE: (_TWEETS + "DeleteTweet", "tweet_id"),
    Kind.LIKE: (_ENGAGEMENT + "LikeTweet", "tweet_id"),
    Kind.UNLIKE: (_ENGAGEMENT + "UnlikeTweet", "tweet_id"),
    Kind.FOLLOW: (_GRAPH + "Follow", "user_id"),
    Kind.UNFOLLOW: (_GRAPH + "Unfollow", "user_id"),
    Kind.BLOCK: (_GRAPH + "Block", "user_id"),
    Kind.UNBLOCK: (_GRAPH + "Unblock", "user_id"),
    Kind.MUTE: (_GRAPH + "Mute", "user_id"),
    Kind.UNMUTE: (_GRAPH + "Unmute", "user_id"),
}
# Kinds of operations that need an idempotency key, so that a retry does not perform them twice. All other kinds are
# idempotent.
KEYED = frozenset({Kind.POST, Kind.REPLY, Kind.QUOTE})


@dataclass(slots=True)
class OutcomeCounts:
    """The outcomes of operations: the number done by kind, the number refused by kind and status code, and the number
    of faults (refused with a status code outside EXPECTED)."""

    done: Counter[Kind] = field(default_factory=Counter)
    refused: defaultdict[Kind, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    faults: int = 0
    # The message of the first fault, by kind and status code.
    examples: dict[tuple[Kind, str], str] = field(default_factory=dict)

    def refuse(self, kind: Kind, error: grpc.aio.AioRpcError) -> None:
        """Counts an operation that the mesh refused with `error`."""
        found = errors.from_rpc(error)
        self.refused[kind][found.code.name] += 1
        if found.code not in EXPECTED:
            self.faults += 1
            self.examples.setdefault((kind, found.code.name), found.message)

    def lines(self) -> Iterable[str]:
        """Yields one line of text per kind, and then one line per fault message."""
        for kind in Kind:
            refusals = self.refused[kind]
            if self.done[kind] or refusals:
                said = [f"{count:,} {code}" for code, count in sorted(refusals.items())]
                yield f"  {kind:<10}{self.done[kind]:>8,} done" + (f"; refused: {', '.join(said)}" if said else "")
        for (kind, code), message in self.examples.items():
            what = "is not served here" if code == "UNIMPLEMENTED" else f"fault {code}"
            yield f"  {kind} {what}: {message}"


class Mutator:
    """Performs the operations of a plan in order, with at most `concurrency` in progress. `run` is a random text in
    each idempotency key, so that two runs have different keys."""

    def __init__(
        self,
        channels: Sequence[grpc.aio.Channel],
        actors: TokenCache,
        shown: progress.Progress,
        concurrency: int,
        run: str,
    ) -> None:
        self._calls = [{kind: _call(channel, path) for kind, (path, _) in METHODS.items()} for channel in channels]
        self._actors = actors
        self._shown = shown
        self._concurrency = concurrency
        self._run = run

    async def perform_all(self, operations: Sequence[Operation]) -> OutcomeCounts:
        """Performs all operations and returns their outcomes. Raises CommandError if the mesh is unavailable for longer
        than RETRY_FOR_S seconds."""
        tally = OutcomeCounts()
        loop = asyncio.get_running_loop()
        # For each operation that creates a tweet, by its number: the id of the tweet, 0 if the mesh refused the
        # operation. Later operations may act on the tweet.
        made: dict[int, asyncio.Future[int]] = {
            operation.number: loop.create_future() for operation in operations if operation.kind in Kind.making()
        }

        async def one(operation: Operation) -> None:
            # Operations begin in order, and each waits at most for an earlier one, so they cannot deadlock.
            about = await made[operation.made_by] if operation.made_by is not None else operation.about
            tweet_id = 0
            if operation.made_by is not None and not about:
                tally.refused[operation.kind][NO_TARGET] += 1
            else:
                tweet_id = await self._perform(operation, about, tally)
            if operation.number in made:
                made[operation.number].set_result(tweet_id)

        with self._shown.phase("operations", len(operations)) as phase:
            await for_each(operations, one, concurrency=self._concurrency, done=phase.advance)
        return tally

    async def _perform(self, operation: Operation, about: int, tally: OutcomeCounts) -> int:
        """Performs one operation by its RPC and counts the outcome in `tally`. Returns the id of the tweet that the
        operation created, 0 if it created none or was refused.

        `about` is the id of the tweet or user that the operation acts on, such as the tweet to like; it is ignored for
        a POST. Raises CommandError if the mesh is unavailable for longer than RETRY_FOR_S seconds.
        """
        path, named = METHODS[operation.kind]
        method = contract.methods()[path]
        fields: dict[str, Any] = {named: about} if named else {}
        if operation.text:
            fields["text"] = operation.text
        if operation.kind in KEYED:
            fields["idempotency_key"] = f"mutate:{self._run}:{operation.number}"
        request = method.request(**fields)
        metadata = await self._actors.act_as(operation.actor_id)
        call = self._calls[operation.actor_id % len(self._calls)][operation.kind]
        timeout = method.policy.deadline_ms / 1000
        try:
            answer = await with_retries(lambda: call(request, metadata=metadata, timeout=timeout))
        except grpc.aio.AioRpcError as error:
            tally.refuse(operation.kind, error)
            return 0
        tally.done[operation.kind] += 1
        return int(answer.tweet.id) if operation.kind in Kind.making() else 0


def _call(channel: grpc.aio.Channel, path: str) -> grpc.aio.UnaryUnaryMultiCallable[Message, Any]:
    method = contract.methods()[path]
    return channel.unary_unary(path, method.request.SerializeToString, method.response.FromString)


async def mutate(mesh: connection.MeshTarget, count: int, seed: int, concurrency: int) -> bool:
    """Plans and performs `count` operations and prints their outcomes. Returns False if the mesh refused an operation
    with a status code outside EXPECTED.

    Raises CommandError if the users and tweets of the mesh cannot be read, or if there are fewer than two active users.
    """
    shown = progress.for_stream()
    operator = mesh.operator()
    async with connection.connect(mesh, min(CHANNELS, concurrency)) as channels:
        try:
            truth = await scan_all(channels[0], operator, shown)
        except grpc.aio.AioRpcError as error:
            raise call_error(error, "reading the users and tweets of the mesh") from error
        if len(truth.active) < 2:
            raise CommandError(
                "random operations need at least two users: load a graph first with `roost load`, or start the mesh with the demo",
                FAULTS,
            )
        operations = plan(truth, count, seed)
        actors = TokenCache(channels[0], operator)
        await actors.admit(sorted(truth.active))
        began = time.monotonic()
        tally = await Mutator(channels, actors, shown, concurrency, secrets.token_hex(8)).perform_all(operations)
    done = sum(tally.done.values())
    typer.echo(f"operations: {done:,} of {count:,} done in {time.monotonic() - began:.1f} s, {tally.faults:,} faults")
    for line in tally.lines():
        typer.echo(line)
    return not tally.faults


def plan(truth: ServiceData, count: int, seed: int) -> list[Operation]:
    """Returns `count` random operations on the users and tweets in `truth`. The same seed and data give the same
    operations."""
    planner = OperationPlanner(truth, seed)
    return [planner.next(number) for number in range(count)]
