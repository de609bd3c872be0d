"""Tests field validation: its cost is bounded, and each violation is a sentence about a field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from roost.identity.v1 import user_service_pb2
from roost.search.v1 import search_service_pb2
from roost.timeline.v1 import timeline_service_pb2
from roost.tweet.v1 import tweet_service_pb2

from services.platform.rpc.bounds import max_items
from services.platform.rpc.context import NEVER, Call
from services.platform.rpc.contract import Method, field_policy, message_class, methods
from services.platform.rpc.errors import MAX_VIOLATIONS, RoostError, Violation
from services.platform.rpc.interceptors import InterceptedMethod, validation


def method(name: str) -> Method:
    return next(one for one in methods().values() if one.name == name)


def violations_of(name: str, request: Any) -> list[Violation]:
    with pytest.raises(RoostError) as error:
        validation.RequestValidator(method(name)).check(request)
    assert error.value.code.name == "INVALID_ARGUMENT"
    return list(error.value.violations)


class CountingValidator:
    """Protovalidate with counters of its calls and of the violations that it found."""

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
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingValidator:
    counting = CountingValidator()
    monkeypatch.setattr(validation, "_validator", counting)
    return counting


class UnreachableServicer:
    """A servicer that must not be called."""

    async def BatchGetUsers(self, request: Any, context: Any) -> Any:
        raise AssertionError("reached")


async def test_unary_list_too_long_is_rejected_before_validation(counting: CountingValidator) -> None:
    endpoint = InterceptedMethod(method("BatchGetUsers"), UnreachableServicer())
    request = user_service_pb2.BatchGetUsersRequest(ids=[0] * 130_000)
    for sent in (request, request.SerializeToString()):
        with pytest.raises(RoostError, match="ids: must hold at most 100 items"):
            await endpoint.unary(sent, Call(deadline=NEVER), None)  # type: ignore[arg-type]
    assert counting.calls == 0


def test_validate_many_invalid_items_reports_first_violations(counting: CountingValidator) -> None:
    found = violations_of("BatchGetUsers", user_service_pb2.BatchGetUsersRequest(ids=[0] * 100))
    assert [one.field for one in found] == [f"ids[{index}]" for index in range(MAX_VIOLATIONS)]
    # One by the check that stops at the first violation, 100 by the check that collects them.
    assert counting.found == 1 + 100


def test_validate_very_large_list_stops_at_first_violation(counting: CountingValidator) -> None:
    request = timeline_service_pb2.AppendHomeEntriesRequest()
    request.entries.extend([timeline_service_pb2.HomeEntry()] * 10_000)
    assert violations_of("AppendHomeEntries", request) == [Violation("entries[0].tweet_id", "must be greater than 0")]
    assert counting.found == 1


def test_validate_rule_of_message_names_no_field() -> None:
    with pytest.raises(RoostError) as error:
        validation.RequestValidator(method("SearchTweets")).check(search_service_pb2.SearchTweetsRequest())
    assert error.value.message == "query, keywords or tags are required"
    assert error.value.violations == (Violation("", "query, keywords or tags are required"),)


def test_validate_several_invalid_fields_describes_each() -> None:
    request = tweet_service_pb2.CreateTweetRequest(media_ids=[3, 3], idempotency_key="k" * 256)
    assert violations_of("CreateTweet", request) == [
        Violation("text", "must not be empty"),
        Violation("media_ids", "must not hold the same item twice"),
        Violation("idempotency_key", "must have at most 255 bytes"),
    ]


# Text that must not reach a user: patterns, plurals in brackets, lists of numbers.
ARTEFACT = re.compile(r"[`^$\\\[\](){}|]|regex|^\W|^value")


def reachable(message: Descriptor) -> Iterator[Descriptor]:
    """Yields the message type and every type of this project nested in it."""
    yield message
    for field in message.fields:
        if field.message_type is not None and field.message_type.full_name.startswith("roost."):
            yield from reachable(field.message_type)


REQUESTS = {
    one.full_name: one for method in methods().values() for one in reachable(method.descriptor.input_type) if one.fields
}


def extreme(field: FieldDescriptor, *, high: bool) -> Any:
    """Returns the lowest or highest value of the field's type, which breaks its rules; None for a message."""
    if field.message_type is not None:
        return None
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"x" * ((4 << 20) + 1) if high else b""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return "\0" * 10_000 if high else ""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return high
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return 99 if high else 0
    return 2**31 - 1 if high else -1


def extreme_messages(descriptor: Descriptor) -> Iterator[Message]:
    """Yields messages with every field low or high, and lists with 0, 1, 2 or max_items + 1 items."""
    for high in (False, True):
        for items in (0, 1, 2, None):
            message: Any = message_class(descriptor)()
            for field in descriptor.fields:
                value = extreme(field, high=high)
                count = max_items(field) + 1 if items is None else items
                if field.is_repeated and value is None:
                    for _ in range(count):
                        getattr(message, field.name).add()
                elif field.is_repeated:
                    getattr(message, field.name).extend([value] * count)
                elif value is not None:
                    setattr(message, field.name, value)
            yield message


@pytest.mark.parametrize("name", REQUESTS)
def test_violations_of_every_rule_are_sentences_naming_existing_fields(name: str) -> None:
    found = {
        validation._violation(one, message)
        for message in extreme_messages(REQUESTS[name])
        for one in validation._validator.collect_violations(message)[:100]
    }
    for one in found:
        first = re.match(r"\w*", one.field)
        assert first is not None
        assert not one.field or first[0] in REQUESTS[name].fields_by_name
        assert re.match(r"must (not )?[a-z]" if one.field else r"[a-z]", one.message), one
        assert not ARTEFACT.search(one.message), one


def test_request_patterns_have_pattern_message() -> None:
    lacking = [
        field.full_name
        for message in REQUESTS.values()
        for field in message.fields
        if (rules := field.GetOptions().Extensions[validate_pb2.field]).string.pattern
        or rules.repeated.items.string.pattern
        if not field_policy(field).pattern_message
    ]
    assert lacking == []


def test_validate_pattern_mismatch_reports_pattern_message() -> None:
    found = violations_of("GetUserByUsername", user_service_pb2.GetUserByUsernameRequest(username="a b"))
    assert found == [Violation("username", "must be 3 to 15 letters, digits or underscores")]


def test_request_validator_valid_request_is_checked_once_and_invalid_one_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[Message] = []

    class CountingValidator:
        def collect_violations(self, request: Message, **options: Any) -> Any:
            checked.append(request)
            return original.collect_violations(request, **options)

    original = validation._validator
    monkeypatch.setattr(validation, "_validator", CountingValidator())
    validator = validation.RequestValidator(method("ListHomeTimeline"))
    request = timeline_service_pb2.ListHomeTimelineRequest
    for _ in range(3):
        validator.check(request(page_size=20))
    assert len(checked) == 1
    for _ in range(2):
        with pytest.raises(RoostError):
            validator.check(request(page_size=-1))
    validator.check(request(page_size=20))


def test_request_validator_caches_a_bounded_number_of_short_requests() -> None:
    validator = validation.RequestValidator(method("GetTweet"))
    for number in range(1, 2 * validation.MAX_CACHED_REQUESTS):
        validator.check(tweet_service_pb2.GetTweetRequest(tweet_id=number))
        assert len(validator._valid) <= validation.MAX_CACHED_REQUESTS
    validator = validation.RequestValidator(method("ListHomeTimeline"))
    validator.check(timeline_service_pb2.ListHomeTimelineRequest(cursor="c" * validation.MAX_CACHED_BYTES))
    assert not validator._valid
