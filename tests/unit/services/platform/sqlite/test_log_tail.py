"""The newest events of the embedded log in memory, compared with a list of all events."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.platform.events.log import ConsumedEvent
from services.platform.sqlite import log_tail
from services.platform.sqlite.log_tail import LogTail

TOPICS = ("tweet.created", "tweet.deleted", "user.followed")


def event(offset: int, topic: str = TOPICS[0], payload: bytes = b"payload") -> ConsumedEvent:
    return ConsumedEvent(offset, 1_800_000_000_000, topic, offset % 3, offset, payload, "")


def offsets(found: tuple[Sequence[ConsumedEvent], int] | None) -> list[int] | None:
    return None if found is None else [event.offset for event in found[0]]


@given(
    steps=st.lists(st.one_of(st.lists(st.sampled_from(TOPICS), min_size=1, max_size=5), st.none()), max_size=12),
    topics=st.sets(st.sampled_from(TOPICS), min_size=1),
    max_events=st.integers(1, 6),
)
def test_after_any_position_equals_the_log_or_is_unknown(
    steps: list[list[str] | None], topics: set[str], max_events: int
) -> None:
    """None stands for events that are appended to the log and not to the tail."""
    tail, log = LogTail(), list[ConsumedEvent]()
    for step in steps:
        added = [event(len(log) + 1 + at, topic) for at, topic in enumerate(step or [TOPICS[0]])]
        log += added
        if step is None:
            tail.clear()
        else:
            tail.extend(added)
        for position in range(len(log) + 3):
            found = tail.after(position, topics, max_events)
            if found is not None:
                expected = [one for one in log if one.offset > position and one.topic in topics][:max_events]
                assert found == (expected, max(position, len(log)))
        assert (tail.after(len(log), topics, max_events) is None) == (step is None), "an up to date consumer is served"


def test_extend_after_missing_event_begins_anew() -> None:
    tail = LogTail()
    tail.extend([event(1), event(2)])
    tail.extend([event(4)])
    assert offsets(tail.after(1, TOPICS, 10)) is None
    assert offsets(tail.after(2, TOPICS, 10)) is None
    assert offsets(tail.after(3, TOPICS, 10)) == [4]


@pytest.mark.parametrize("payload", [b"", b"x" * 1_000], ids=["count", "bytes"])
def test_extend_beyond_bounds_drops_oldest(payload: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_tail, "MAX_EVENTS", 100)
    monkeypatch.setattr(log_tail, "MAX_BYTES", 50_000)
    tail = LogTail()
    for offset in range(1, 1_001):
        tail.extend([event(offset, payload=payload)])
        kept = len(tail._events)
        assert kept <= (50 if payload else 100)
        assert tail._bytes == kept * len(payload)
        assert offsets(tail.after(offset - 1, TOPICS, 10)) == [offset]
    tail.extend([event(offset, payload=payload) for offset in range(1_001, 2_000)])
    assert offsets(tail.after(1_998, TOPICS, 10)) == [1_999]


def test_extend_with_event_above_bound_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_tail, "MAX_BYTES", 10)
    tail = LogTail()
    tail.extend([event(1, payload=b"x" * 11)])
    assert tail.after(0, TOPICS, 10) is None
    tail.extend([event(2, payload=b"x")])
    assert offsets(tail.after(1, TOPICS, 10)) == [2]
