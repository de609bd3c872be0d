"""Tests that the demo's content is reproducible, valid and varied."""

from __future__ import annotations

import re
import stat
from collections import Counter
from pathlib import Path

from roost_cli.load.demo import first_run as demo
from roost_cli.load.demo.first_run import DemoAccount
from roost_cli.load.demo.reactions import Kind


def test_cast_same_seed_gives_same_content() -> None:
    assert demo.demo_content() == demo.demo_content()
    assert demo.demo_content(1) != demo.demo_content(2)


def test_cast_users_and_tweets_satisfy_api_limits() -> None:
    content = demo.demo_content()
    names = [person.username for person in content.people]
    assert len({name.lower() for name in names}) == len(names) >= 24
    assert all(re.fullmatch(r"[A-Za-z0-9_]{3,15}", name) for name in names)
    assert all(len(person.display_name) <= 50 and len(person.bio) <= 160 for person in content.people)
    assert len(content.tweets) >= 200
    assert all(0 < len(text) <= 280 and "{" not in text for _, text in content.tweets)


def test_cast_reactions_are_many_and_unevenly_distributed() -> None:
    content = demo.demo_content()
    kinds = Counter(reaction.kind for reaction in content.reactions)
    assert kinds[Kind.LIKE] > 500
    assert all(kinds[kind] > 20 for kind in Kind)
    follows = set(content.follows)
    for reaction in content.reactions:
        assert (reaction.who, content.tweets[reaction.tweet][0]) in follows
        assert bool(reaction.text) == (reaction.kind in (Kind.REPLY, Kind.QUOTE))
        assert len(reaction.text) <= 280
    assert any(reaction.answer for reaction in content.reactions)
    once = Counter((reaction.who, reaction.kind, reaction.tweet) for reaction in content.reactions)
    assert set(once.values()) == {1}
    likes = Counter(reaction.tweet for reaction in content.reactions if reaction.kind is Kind.LIKE)
    assert max(likes.values()) > 5 * (kinds[Kind.LIKE] / len(content.tweets))
    assert len(likes) < len(content.tweets)


def test_waves_contain_each_tweet_and_reaction_once() -> None:
    content = demo.demo_content()
    found = list(demo.waves(content))
    assert [number for wave in found for number in wave.tweets] == list(range(len(content.tweets)))
    assert Counter(reaction for wave in found for reaction in wave.reactions) == Counter(content.reactions)


def test_cast_all_users_follow_star_and_circles_follow_each_other() -> None:
    content = demo.demo_content()
    names = [person.username for person in content.people]
    star = names[1]
    followers = Counter(followee for _, followee in content.follows)
    assert followers[star] == len(names) - 1
    assert max(count for name, count in followers.items() if name != star) < followers[star] / 2
    assert all(follower != followee for follower, followee in content.follows)
    assert len(set(content.follows)) == len(content.follows)
    circles = len(demo.CIRCLES)
    near = sum(names.index(a) % circles == names.index(b) % circles for a, b in content.follows if b != star)
    assert near > (len(content.follows) - followers[star]) / 2


def test_remember_stores_log_in_readable_by_owner_only(tmp_path: Path) -> None:
    marker = tmp_path / demo.MARKER
    assert demo._read_marker(marker) is None
    account = DemoAccount("alice", "correct horse")
    demo._write_marker(marker, account, complete=False)
    assert demo._read_marker(marker) == account
    assert not demo._is_complete(marker)
    demo._write_marker(marker, account, complete=True)
    assert demo._is_complete(marker)
    assert stat.S_IMODE(marker.stat().st_mode) == 0o600
    assert "horse" not in repr(account)
    marker.write_bytes(b"{")
    assert demo._read_marker(marker) is None
