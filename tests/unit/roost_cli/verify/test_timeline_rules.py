"""Tests that the audit finds every broken rule: the mesh shows a tweet that a rule hides, or hides one that it must
show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from roost_cli.connection import MeshTarget
from roost_cli.progress import Silent
from roost_cli.verify import command

Plant = Callable[[Any, dict[str, int]], int]


@pytest.fixture
def people(state: Any) -> dict[str, int]:
    """The reader follows Ann and Ben but not Carl. Each has posted one plain tweet."""
    ids = {name: state.add_user(name) for name in ("reader", "ann", "ben", "carl")}
    state.follows.extend((ids["reader"], ids[name]) for name in ("ann", "ben"))
    for user_id in ids.values():
        state.add_tweet(user_id)
    return ids


def reply(state: Any, author: int, to: int) -> int:
    parent = next(head for head in state.heads if head.id == to)
    return int(state.add_tweet(author, reply_to_id=to, reply_to_author_id=parent.author_id))


def retweet(state: Any, author: int, of: int) -> int:
    original = next(head for head in state.heads if head.id == of)
    return int(state.add_tweet(author, retweet_of_id=of, retweet_of_author_id=original.author_id))


def reply_to_a_stranger(state: Any, who: dict[str, int]) -> int:
    return reply(state, who["ann"], state.add_tweet(who["carl"]))


def reply_to_a_deleted_parent(state: Any, who: dict[str, int]) -> int:
    return reply(state, who["ann"], state.add_tweet(who["ben"], deleted=True))


def reply_to_whom_the_reader_blocks(state: Any, who: dict[str, int]) -> int:
    parent = state.add_tweet(who["carl"])
    state.blocks.append((who["reader"], who["carl"]))
    state.follows.append((who["reader"], who["carl"]))
    return reply(state, who["ann"], parent)


def retweet_of_a_deleted_tweet(state: Any, who: dict[str, int]) -> int:
    return retweet(state, who["ann"], state.add_tweet(who["carl"], deleted=True))


def own_retweet_of_a_muted_author(state: Any, who: dict[str, int]) -> int:
    state.mutes.append((who["reader"], who["carl"]))
    return retweet(state, who["reader"], state.add_tweet(who["carl"]))


def retweet_of_a_muted_author(state: Any, who: dict[str, int]) -> int:
    state.mutes.append((who["reader"], who["carl"]))
    return retweet(state, who["ann"], state.add_tweet(who["carl"]))


def retweet_of_who_blocks_the_reader(state: Any, who: dict[str, int]) -> int:
    state.blocks.append((who["carl"], who["reader"]))
    return retweet(state, who["ann"], state.add_tweet(who["carl"]))


def retweet_of_a_suspended_author(state: Any, who: dict[str, int]) -> int:
    state.hidden.add(who["carl"])
    return retweet(state, who["ann"], state.add_tweet(who["carl"]))


def tweet_of_a_muted_followee(state: Any, who: dict[str, int]) -> int:
    dave = state.add_user("dave")
    state.follows.append((who["reader"], dave))
    state.mutes.append((who["reader"], dave))
    return int(state.add_tweet(dave))


def tweet_of_who_blocks_the_reader(state: Any, who: dict[str, int]) -> int:
    # A follow that the block should have removed.
    state.follows.append((who["reader"], who["carl"]))
    state.blocks.append((who["carl"], who["reader"]))
    return int(state.add_tweet(who["carl"]))


def tweet_of_a_suspended_followee(state: Any, who: dict[str, int]) -> int:
    erin = state.add_user("erin")
    state.follows.append((who["reader"], erin))
    state.hidden.add(erin)
    return int(state.add_tweet(erin))


def deleted_tweet(state: Any, who: dict[str, int]) -> int:
    return int(state.add_tweet(who["ann"], deleted=True))


HIDDEN: list[Plant] = [
    reply_to_a_stranger,
    reply_to_a_deleted_parent,
    reply_to_whom_the_reader_blocks,
    retweet_of_a_deleted_tweet,
    own_retweet_of_a_muted_author,
    retweet_of_a_muted_author,
    retweet_of_who_blocks_the_reader,
    retweet_of_a_suspended_author,
    tweet_of_a_muted_followee,
    tweet_of_who_blocks_the_reader,
    tweet_of_a_suspended_followee,
    deleted_tweet,
]


def reply_between_followees(state: Any, who: dict[str, int]) -> int:
    return reply(state, who["ann"], state.add_tweet(who["ben"]))


def reply_to_the_reader(state: Any, who: dict[str, int]) -> int:
    return reply(state, who["ann"], state.add_tweet(who["reader"]))


def own_reply_to_a_stranger(state: Any, who: dict[str, int]) -> int:
    return reply(state, who["reader"], state.add_tweet(who["carl"]))


def own_retweet(state: Any, who: dict[str, int]) -> int:
    return retweet(state, who["reader"], state.add_tweet(who["carl"]))


def retweet_of_a_stranger(state: Any, who: dict[str, int]) -> int:
    return retweet(state, who["ann"], state.add_tweet(who["carl"]))


def quote_of_a_deleted_tweet(state: Any, who: dict[str, int]) -> int:
    quoted = state.add_tweet(who["carl"], deleted=True)
    return int(state.add_tweet(who["ann"], quote_of_id=quoted, quote_of_author_id=who["carl"]))


SHOWN: list[Plant] = [
    reply_between_followees,
    reply_to_the_reader,
    own_reply_to_a_stranger,
    own_retweet,
    retweet_of_a_stranger,
    quote_of_a_deleted_tweet,
]


async def audited(mesh: MeshTarget, reader: int) -> str:
    """Returns the audit's description of the reader's home timeline."""
    async with command.connection.connect(mesh) as channels:
        return "; ".join(await command.faults_of(channels, mesh.operator(), [reader]))


@pytest.mark.parametrize("plant", HIDDEN, ids=lambda plant: plant.__name__)
async def test_expected_home_rule_hides_tweet(
    fake_mesh: MeshTarget, state: Any, people: dict[str, int], plant: Plant
) -> None:
    tweet_id = plant(state, people)
    reader = people["reader"]
    right = [i for i in truth_of(state, reader) if i != tweet_id]
    state.homes = {reader: right}
    assert await audited(fake_mesh, reader) == ""
    state.homes = {reader: sorted([*right, tweet_id], reverse=True)}
    assert await audited(fake_mesh, reader) == f"home of {reader}: 1 extra ({tweet_id})"


@pytest.mark.parametrize("plant", SHOWN, ids=lambda plant: plant.__name__)
async def test_expected_home_without_rule_shows_tweet(
    fake_mesh: MeshTarget, state: Any, people: dict[str, int], plant: Plant
) -> None:
    tweet_id = plant(state, people)
    reader = people["reader"]
    right = truth_of(state, reader)
    state.homes = {reader: right}
    assert await audited(fake_mesh, reader) == ""
    state.homes = {reader: [i for i in right if i != tweet_id]}
    assert await audited(fake_mesh, reader) == f"home of {reader}: 1 missing ({tweet_id})"


def truth_of(state: Any, reader: int) -> list[int]:
    """Returns the tweets that no rule under test concerns: the live ones of the reader and of plain followees."""
    plain = {reader} | {b for a, b in state.follows if a == reader and b not in state.hidden}
    plain -= {b for a, b in state.mutes if a == reader} | {b for a, b in [*state.blocks] if a == reader}
    plain -= {a for a, b in state.blocks if b == reader}
    return sorted((head.id for head in state.heads if head.author_id in plain and not head.deleted), reverse=True)


async def test_audit_replay_that_breaks_home_is_detected(
    fake_mesh: MeshTarget, state: Any, people: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command.audit(fake_mesh, Silent(), replay=True)
    assert state.calls["ReplayFanout"] == 1
    capsys.readouterr()
    state.after_replay = {people["reader"]: []}
    assert not await command.audit(fake_mesh, Silent(), replay=True)
    said = capsys.readouterr().out
    assert "home of reader" in said
    assert "after a replay" in said
    assert "as stored" not in said
