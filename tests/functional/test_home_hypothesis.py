"""Compares home timelines with a brute-force model, in histories that hypothesis draws, on the real services in one process.

Home timelines are so short that every history trims them and reads pages below their floor. Changes that act at once (own
posts, deletes, unfollows, blocks, mutes) are compared at once, others' posts after fan-out has delivered them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from roost.graph.v1 import graph_service_pb2 as graph
from roost.timeline.v1 import timeline_service_pb2 as timeline

from services.platform.transport.message_guard import MutationGuard
from tests.cluster import backend
from tests.conftest import LONG, SHORT, Mesh, mesh_settings, start_process
from tests.home_stores import home_store_of, lengthen_deadlines, shorten

KEEP, TRIM_ABOVE = 6, 8
MARGIN_S = 0.03
PEOPLE = 4
# Low enough that some become celebrities by their followers.
THRESHOLD = 3
# Histories by backend and length; test_home_stateful.py tries more kinds of steps.
EXAMPLES = {("embedded", SHORT): 8, ("embedded", LONG): 50, ("cluster", SHORT): 4, ("cluster", LONG): 25}
STEPS = 50

T = TypeVar("T")
people = st.integers(0, PEOPLE - 1)


class HomeMachine(RuleBasedStateMachine):
    """One history: PEOPLE new users, and the model of what each home timeline must contain."""

    def __init__(self, runner: asyncio.Runner, mesh: Mesh) -> None:
        super().__init__()
        self.runner = runner
        self.mesh = mesh
        self.ids: list[int] = []
        self.standing: dict[int, int] = {}
        self.gone: list[int] = []
        self.delivered: set[int] = set()
        self.follows: set[tuple[int, int]] = set()
        self.blocks: set[tuple[int, int]] = set()
        self.mutes: set[tuple[int, int]] = set()

    def run_(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def as_(self, user: int, method: Any, request: Any) -> Any:
        async def call() -> Any:
            with self.mesh.as_user(self.ids[user]):
                return await method(request)

        return self.runner.run(call())

    def as_operator(self, method: Any, request: Any) -> Any:
        async def call() -> Any:
            return await method(request)

        return self.runner.run(call())

    @initialize()
    def sign_up(self) -> None:
        HomeMachine.count = getattr(HomeMachine, "count", 0) + 1
        names = [f"u{HomeMachine.count}_{n}_{id(self.runner) % 1000}" for n in range(PEOPLE)]
        self.ids = self.run_(self.mesh.people(*names))
        for user in range(PEOPLE):
            self.follow(user, (user + 1) % PEOPLE)
            self.post(user, 2)
        self.let_the_margin_pass()
        for user in range(PEOPLE):
            self.read_when_delivered(user, 5)
        self.let_the_margin_pass()

    @rule(author=people, many=st.sampled_from((1, 1, 2, TRIM_ABOVE + 1)))
    def post(self, author: int, many: int) -> None:
        for _ in range(many):
            self.standing[self.run_(self.mesh.post(self.ids[author], "a tweet"))] = author

    @precondition(lambda self: self.standing)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        tweet_id = data.draw(st.sampled_from(sorted(self.standing)))
        author = self.standing.pop(tweet_id)
        self.run_(self.mesh.delete(self.ids[author], tweet_id))
        self.gone.append(tweet_id)
        self.read_at_once(next((a for a, b in sorted(self.follows) if b == author), author), 5)

    @rule(a=people, b=people)
    def follow(self, a: int, b: int) -> None:
        if a == b:
            return
        if {(a, b), (b, a)} & self.blocks:
            with pytest.raises(grpc.aio.AioRpcError, match="PERMISSION_DENIED"):
                self.run_(self.mesh.follow(self.ids[a], self.ids[b]))
        else:
            self.run_(self.mesh.follow(self.ids[a], self.ids[b]))
            self.follows.add((a, b))
        self.read_at_once(a, 5)

    @rule(a=people, b=people)
    def unfollow(self, a: int, b: int) -> None:
        if a != b:
            self.as_(a, self.mesh.graph.Unfollow, graph.UnfollowRequest(user_id=self.ids[b]))
            self.follows.discard((a, b))
            self.read_at_once(a, 5)

    @rule(a=people, b=people, undo=st.booleans())
    def block(self, a: int, b: int, undo: bool) -> None:
        if a == b:
            return
        if undo:
            self.as_(a, self.mesh.graph.Unblock, graph.UnblockRequest(user_id=self.ids[b]))
            self.blocks.discard((a, b))
        else:
            self.as_(a, self.mesh.graph.Block, graph.BlockRequest(user_id=self.ids[b]))
            self.blocks.add((a, b))
            self.follows -= {(a, b), (b, a)}
            self.read_at_once(b, 5)
        self.read_at_once(a, 5)

    @rule(a=people, b=people, undo=st.booleans())
    def mute(self, a: int, b: int, undo: bool) -> None:
        if a == b:
            return
        if undo:
            self.as_(a, self.mesh.graph.Unmute, graph.UnmuteRequest(user_id=self.ids[b]))
            self.mutes.discard((a, b))
        else:
            self.as_(a, self.mesh.graph.Mute, graph.MuteRequest(user_id=self.ids[b]))
            self.mutes.add((a, b))
        self.read_at_once(a, 5)

    @rule(user=people, tier=st.sampled_from((1, 2, 3)))
    def reclassify(self, user: int, tier: graph.TierChoice.ValueType) -> None:
        request = graph.ReclassifyUserRequest(user_id=self.ids[user], tier=tier)
        self.as_operator(self.mesh.operator_graph.ReclassifyUser, request)
        for reader in sorted(a for a, b in self.follows if b == user):
            self.read_when_delivered(reader, 5)

    @rule()
    def drop_all(self) -> None:
        self.run_(home_store_of(self.mesh.process).clear())

    @rule(user=people)
    def rebuild(self, user: int) -> None:
        request = timeline.RebuildHomeTimelineRequest(user_id=self.ids[user])
        self.as_operator(self.mesh.operator_timelines.RebuildHomeTimeline, request)

    @rule()
    def let_the_margin_pass(self) -> None:
        self.run_(asyncio.sleep(MARGIN_S * 1.5))

    @rule(reader=people, size=st.integers(1, 7))
    def read_at_once(self, reader: int, size: int) -> None:
        shown, expected = self.home(reader, size), self.expected(reader)
        assert shown == sorted(set(shown), reverse=True)
        assert set(shown) <= set(expected), "something is shown that is gone or hidden"
        due = {i for i in expected if i in self.delivered or self.standing[i] == reader}
        assert due <= set(shown), "something is missing that was there, or is the reader's own"

    @rule(reader=people, size=st.integers(1, 7))
    def read_when_delivered(self, reader: int, size: int) -> None:
        self.run_(self.mesh.settled())
        self.delivered = set(self.standing)
        assert self.home(reader, size) == self.expected(reader)

    @precondition(lambda self: self.standing)
    @rule(reader=people, data=st.data())
    def explain(self, reader: int, data: st.DataObject) -> None:
        self.run_(self.mesh.settled())
        self.delivered = set(self.standing)
        tweet_id = data.draw(st.sampled_from(sorted([*self.standing, *self.gone])))
        request = timeline.ExplainTimelineEntryRequest(tweet_id=tweet_id)
        answer = self.as_(reader, self.mesh.timelines.ExplainTimelineEntry, request)
        assert answer.shown == (tweet_id in self.expected(reader))
        assert bool(answer.source) == answer.shown
        assert bool(answer.filter) != answer.shown

    def home(self, reader: int, size: int) -> list[int]:
        return [tweet.id for tweet in self.run_(self.mesh.home(self.ids[reader], size))]

    def expected(self, reader: int) -> list[int]:
        """Returns the ids of the home timeline, newest first, by brute force."""
        return sorted((i for i, author in self.standing.items() if self.shows(reader, author)), reverse=True)

    def shows(self, reader: int, author: int) -> bool:
        return author == reader or ((reader, author) in self.follows and (reader, author) not in self.mutes)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hybrid", "push", "pull"])
def test_home_drawn_histories_agree_with_model(tmp_path: Path, mode: str, length: str) -> None:
    with asyncio.Runner() as runner:
        chosen = mesh_settings(
            tmp_path, timeline_mode=mode, clock_margin_s=MARGIN_S, celebrity_threshold=THRESHOLD, log_level="error"
        )
        checker = MutationGuard()
        process = runner.run(start_process(chosen, checker=checker))
        try:
            shorten(process, KEEP, TRIM_ABOVE)
            lengthen_deadlines(process)
            mesh = Mesh(process, "inprocess")
            run_state_machine_as_test(
                lambda: HomeMachine(runner, mesh),
                settings=settings(
                    max_examples=EXAMPLES[backend.name, length],
                    stateful_step_count=STEPS,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    # No shrinking: on real services it would take minutes.
                    phases=(Phase.generate,),
                    database=None,
                    # The same histories in every run, so that a failure can be repeated.
                    derandomize=True,
                ),
            )
            checker.verify()
        finally:
            runner.run(process.stop())
