"""What a broken field rule costs, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest
from roost.identity.v1 import user_service_pb2
from roost.search.v1 import search_service_pb2
from roost.timeline.v1 import timeline_service_pb2
from roost.tweet.v1 import tweet_service_pb2

from services.common.context import NEVER, Call
from services.common.contract import Method, methods
from services.common.errors import MAX_VIOLATIONS, RoostError, Violation
from services.common.interceptors import Endpoint, validation


def method(name: str) -> Method:
    return next(one for one in methods().values() if one.name == name)


def told(name: str, request: Any) -> list[Violation]:
    with pytest.raises(RoostError) as error:
        validation.validate(method(name), request)
    assert error.value.code.name == "INVALID_ARGUMENT"
    return list(error.value.violations)


class Counting:
    """Protovalidate, and how many violations it was made to find."""

    def __init__(self) -> None:
        self.found = 0
        self.calls = 0
        self._validator = validation._validator

    def collect_violations(self, message: Any, *, fail_fast: bool = False) -> Any:
        self.calls += 1
        found = self._validator.collect_violations(message, fail_fast=fail_fast)
        self.found += len(found)
        return found


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr(validation, "_validator", counting)
    return counting


class Nothing:
    """A servicer that must not be reached."""

    async def BatchGetUsers(self, request: Any, context: Any) -> Any:
        raise AssertionError("reached")


async def test_unary_list_that_is_too_long_never_reaches_the_rules(counting: Counting) -> None:
    endpoint = Endpoint(method("BatchGetUsers"), Nothing())
    request = user_service_pb2.BatchGetUsersRequest(ids=[0] * 130_000)
    for sent in (request, request.SerializeToString()):
        with pytest.raises(RoostError, match="ids: must hold at most 100 items"):
            await endpoint.unary(sent, Call(deadline=NEVER), None)  # type: ignore[arg-type]
    assert counting.calls == 0


def test_validate_many_broken_items_tells_the_first(counting: Counting) -> None:
    found = told("BatchGetUsers", user_service_pb2.BatchGetUsersRequest(ids=[0] * 100))
    assert [one.field for one in found] == [f"ids[{index}]" for index in range(MAX_VIOLATIONS)]
    # Those of the first look, and of the second that collects them.
    assert counting.found == 1 + 100


def test_validate_a_type_of_many_items_finds_one_violation_alone(counting: Counting) -> None:
    request = timeline_service_pb2.AppendHomeEntriesRequest()
    request.entries.extend([timeline_service_pb2.HomeEntry()] * 10_000)
    assert told("AppendHomeEntries", request) == [Violation("entries[0].tweet_id", "must be greater than 0")]
    assert counting.found == 1


def test_validate_rule_of_the_whole_message_names_no_field() -> None:
    with pytest.raises(RoostError) as error:
        validation.validate(method("SearchTweets"), search_service_pb2.SearchTweetsRequest())
    assert error.value.message == "query, keywords or tags are required"
    assert error.value.violations == (Violation("", "query, keywords or tags are required"),)


def test_validate_several_fields_names_each_in_words() -> None:
    request = tweet_service_pb2.CreateTweetRequest(media_ids=[3, 3], idempotency_key="k" * 256)
    assert told("CreateTweet", request) == [
        Violation("text", "must not be empty"),
        Violation("media_ids", "must not hold the same item twice"),
        Violation("idempotency_key", "must have at most 255 bytes"),
    ]
