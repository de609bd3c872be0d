"""Contract: random writes against a model of sets. Counts, both directions, lists and filters must agree with the
model."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing
from services.platform.rpc import errors
from tests.conftest import LONG, SHORT

USERS_IN_RANGE = range(1, 6)
THRESHOLD = 3

pairs = st.tuples(st.sampled_from(USERS_IN_RANGE), st.sampled_from(USERS_IN_RANGE)).filter(
    lambda pair: pair[0] != pair[1]
)


class Edges(RuleBasedStateMachine):
    """The stores on one side, three sets of pairs on the other."""

    def __init__(self, backend: Any, stamp: Any) -> None:
        super().__init__()
        self.stamp = stamp
        self.backend = backend
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.stores = self.run(backend.open(Path(self.folder.name), threshold=THRESHOLD))
        self.follows: set[tuple[int, int]] = set()
        self.blocks: set[tuple[int, int]] = set()
        self.mutes: set[tuple[int, int]] = set()
        self.celebrities: set[int] = set()
        self.versions = {person: self.run(self.stores.visibility.relation_version(person)) for person in USERS_IN_RANGE}

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.backend.close(self.stores))
        self.loop.close()
        self.folder.cleanup()

    def write(self, verb: str, pair: tuple[int, int], *, changes: bool, touched: tuple[int, ...]) -> None:
        change = self.stamp()
        outcome = self.run(getattr(self.stores.edges, verb)(*pair, change))
        assert outcome.changed == changes
        assert outcome.relationship == self.relationship(*pair)
        if changes:
            self.see_new_versions(touched)
        for person in USERS_IN_RANGE:
            followers = sum(followee == person for _, followee in self.follows)
            if followers >= THRESHOLD:
                self.celebrities.add(person)
            elif followers < 0.8 * THRESHOLD:
                self.celebrities.discard(person)

    def see_new_versions(self, touched: tuple[int, ...]) -> None:
        for person in touched:
            version = self.run(self.stores.visibility.relation_version(person))
            assert version != self.versions[person]
            self.versions[person] = version

    def relationship(self, user: int, other: int) -> pb.Relationship:
        return pb.Relationship(
            user_id=other,
            following=(user, other) in self.follows,
            followed_by=(other, user) in self.follows,
            blocking=(user, other) in self.blocks,
            blocked_by=(other, user) in self.blocks,
            muting=(user, other) in self.mutes,
        )

    @rule(pair=pairs)
    def follow(self, pair: tuple[int, int]) -> None:
        if pair in self.blocks or pair[::-1] in self.blocks:
            with pytest.raises(errors.RoostError, match="PERMISSION_DENIED"):
                self.run(self.stores.edges.follow(*pair, self.stamp()))
            return
        changes = pair not in self.follows
        self.follows.add(pair)
        self.write("follow", pair, changes=changes, touched=pair)

    @rule(pair=pairs)
    def unfollow(self, pair: tuple[int, int]) -> None:
        changes = pair in self.follows
        self.follows.discard(pair)
        self.write("unfollow", pair, changes=changes, touched=pair)

    @rule(pair=pairs)
    def block(self, pair: tuple[int, int]) -> None:
        changes = pair not in self.blocks
        self.blocks.add(pair)
        self.follows -= {pair, pair[::-1]}
        self.write("block", pair, changes=changes, touched=pair)

    @rule(pair=pairs)
    def unblock(self, pair: tuple[int, int]) -> None:
        changes = pair in self.blocks
        self.blocks.discard(pair)
        self.write("unblock", pair, changes=changes, touched=pair)

    @rule(pair=pairs)
    def mute(self, pair: tuple[int, int]) -> None:
        changes = pair not in self.mutes
        self.mutes.add(pair)
        self.write("mute", pair, changes=changes, touched=pair[:1])

    @rule(pair=pairs)
    def unmute(self, pair: tuple[int, int]) -> None:
        changes = pair in self.mutes
        self.mutes.discard(pair)
        self.write("unmute", pair, changes=changes, touched=pair[:1])

    @invariant()
    def counts_are_exact(self) -> None:
        counts = self.run(self.stores.counts.batch_get(USERS_IN_RANGE))
        for person in USERS_IN_RANGE:
            expected = pb.UserCounts(
                followers=sum(followee == person for _, followee in self.follows),
                following=sum(follower == person for follower, _ in self.follows),
            )
            assert counts.get(person, pb.UserCounts()) == expected

    @invariant()
    def every_list_is_the_set(self) -> None:
        expected = {
            Listing.FOLLOWING: self.follows,
            Listing.FOLLOWERS: {pair[::-1] for pair in self.follows},
            Listing.BLOCKS: self.blocks,
            Listing.MUTES: self.mutes,
        }
        for listing, edges in expected.items():
            for person in USERS_IN_RANGE:
                page = self.run(self.stores.lists.page(listing, person, None, 100))
                assert {(person, entry.user_id) for entry in page} == {pair for pair in edges if pair[0] == person}
                assert page == sorted(page, reverse=True)

    @invariant()
    def the_filter_agrees(self) -> None:
        for reader in USERS_IN_RANGE:
            request = pb.GetVisibilityFilterRequest(user_id=reader, candidate_ids=USERS_IN_RANGE, want_following=True)
            found = self.run(self.stores.visibility.filter(request))
            assert {(reader, other) for other in found.blocked_ids} == {p for p in self.blocks if p[0] == reader}
            assert {(reader, other) for other in found.muted_ids} == {p for p in self.mutes if p[0] == reader}
            assert {(reader, other) for other in found.following_ids} == {p for p in self.follows if p[0] == reader}
            assert {(other, reader) for other in found.blocked_by_ids} == {p for p in self.blocks if p[1] == reader}
            assert found.relation_version == self.versions[reader]

    @invariant()
    def tiers_follow_the_counts(self) -> None:
        found = self.run(self.stores.tiers.list_since(1 << 60))
        assert {entry.user_id for entry in found} == self.celebrities


# Histories by backend and length. Fewer on the cluster backend, where a step makes a hundred reads: 15 s for each.
EXAMPLES = {("embedded", SHORT): 25, ("embedded", LONG): 100, ("cluster", SHORT): 2, ("cluster", LONG): 10}


@pytest.mark.slow
def test_graph_store_agrees_with_model(request, backend, stamp, length):
    examples = EXAMPLES[request.config.getoption("--backend"), length]
    run_state_machine_as_test(
        lambda: Edges(backend, stamp), settings=settings(max_examples=examples, stateful_step_count=40, deadline=None)
    )
