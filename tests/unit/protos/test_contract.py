"""Tests the rules of the contract on the descriptors of every method, so that a new method cannot break one."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from buf.validate import validate_pb2
from google.api import annotations_pb2, http_pb2  # type: ignore[import-untyped]
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from roost.event.v1 import event_pb2
from roost.options.v1 import options_pb2

PROTOS = Path(__file__).resolve().parents[3] / "protos"
VERBS = ("get", "put", "post", "delete", "patch")
TWEET = "roost.tweet.v1.Tweet"
# Never in a response: credentials, and the values that they are compared with.
SECRET_NAMES = re.compile(r"(^|_)(password|hash|otp|secret)$")
# Prefixes of canonical routes; RFC 8615 defines the last.
CANONICAL = ("/v1/", "/admin/v1/", "/.well-known/")


def load() -> list[FileDescriptor]:
    """Returns the descriptor of every proto of this project, by the generated stubs beside them."""
    stubs = sorted((PROTOS / "roost").rglob("*_pb2.py"))
    assert stubs, "no stubs: run scripts/generate.py"
    names = [".".join(path.relative_to(PROTOS).with_suffix("").parts) for path in stubs]
    return [importlib.import_module(name).DESCRIPTOR for name in names]


FILES = load()
METHODS: list[MethodDescriptor] = [
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
]
# Who can call: the services of the contract, the gateway, the operator, and the services that the contract is ready for.
CALLERS = {method.containing_service.full_name.split(".")[1] for method in METHODS} | {
    "gateway",
    "operator",
    "moderation",
    "notification",
}
MESSAGES: list[Descriptor] = [message for file in FILES for message in file.message_types_by_name.values()]


def policy(method: MethodDescriptor) -> options_pb2.MethodPolicy:
    return method.GetOptions().Extensions[options_pb2.policy]


def bindings(method: MethodDescriptor) -> list[http_pb2.HttpRule]:
    """Returns the canonical rule, then the others; empty if the method has no route."""
    options = method.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return []
    rule = options.Extensions[annotations_pb2.http]
    return [rule, *rule.additional_bindings]


def verb_and_path(rule: http_pb2.HttpRule) -> tuple[str, str]:
    verb = rule.WhichOneof("pattern")
    assert verb in VERBS, f"{verb} is not one of VERBS"
    return verb, getattr(rule, verb)


def reachable(message: Descriptor) -> Iterator[FieldDescriptor]:
    """Yields every field of `message` and of the messages nested in it."""
    seen, waiting = {message.full_name}, [message]
    while waiting:
        for field in waiting.pop().fields:
            yield field
            below = field.message_type
            if below is not None and below.full_name.startswith("roost.") and below.full_name not in seen:
                seen.add(below.full_name)
                waiting.append(below)


def pattern_is_bounded(pattern: str) -> bool:
    """Returns whether the pattern is anchored and has no unbounded repetition."""
    outside_classes = re.sub(r"\\.|\[(?:\\.|[^\]])*\]", "", pattern)
    return pattern.startswith("^") and pattern.endswith("$") and not re.search(r"[*+]|,\}", outside_classes)


def text_is_bounded(rules: validate_pb2.FieldRules) -> bool:
    if rules.WhichOneof("type") == "bytes":
        return rules.bytes.HasField("max_len") or rules.bytes.HasField("len")
    text = rules.string
    given = {rule.name for rule, _ in text.ListFields()}
    return bool(given & {"max_len", "max_bytes", "len", "len_bytes", "const"}) or pattern_is_bounded(text.pattern)


def is_bounded(field: FieldDescriptor) -> bool:
    """Returns whether buf.validate bounds the size of the field."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    is_text = field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    if not field.is_repeated:
        return not is_text or text_is_bounded(rules)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return rules.map.HasField("max_pairs")
    return rules.repeated.HasField("max_items") and (not is_text or text_is_bounded(rules.repeated.items))


def by_name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


def test_loaded_files_include_every_proto() -> None:
    written = {path.relative_to(PROTOS).as_posix() for path in (PROTOS / "roost").rglob("*.proto")}
    assert {file.name for file in FILES} == written


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_method_has_complete_policy(method: MethodDescriptor) -> None:
    rules = policy(method)
    assert rules.access != options_pb2.ACCESS_UNSPECIFIED
    # 0 means a stream that lives as long as its reader: only the mesh may hold one.
    endless = method.server_streaming and rules.access == options_pb2.ACCESS_MESH
    assert rules.deadline_ms > 0 or (endless and rules.deadline_ms == 0)
    assert rules.success_status in (0, 201)
    if rules.access == options_pb2.ACCESS_MESH:
        # A misspelt name would close the method without a word to anybody.
        assert set(rules.callers) <= CALLERS
        assert len(set(rules.callers)) == len(rules.callers)
        assert rules.rate_limit == options_pb2.RATE_LIMIT_UNSPECIFIED
    else:
        assert not rules.callers
        assert rules.rate_limit != options_pb2.RATE_LIMIT_UNSPECIFIED


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_method_has_route_unless_mesh_only(method: MethodDescriptor) -> None:
    rules = bindings(method)
    if policy(method).access == options_pb2.ACCESS_MESH:
        assert not rules
    elif not method.client_streaming:  # A client stream has no body to transcode: the gateway has a route of its own.
        assert rules
        _, canonical = verb_and_path(rules[0])
        assert canonical.startswith(CANONICAL)


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_routes_name_existing_fields(method: MethodDescriptor) -> None:
    administers = policy(method).access in (options_pb2.ACCESS_ADMIN, options_pb2.ACCESS_MODERATOR)
    for rule in bindings(method):
        verb, path = verb_and_path(rule)
        for variable in re.findall(r"\{(\w+)\}", path):
            assert variable in method.input_type.fields_by_name
        assert not rule.response_body or rule.response_body in method.output_type.fields_by_name
        assert rule.response_body == bindings(method)[0].response_body
        assert rule.body == ("*" if verb in ("post", "put", "patch") else "")
        assert path.startswith("/admin/") == administers


def test_routes_are_unique() -> None:
    owners: dict[tuple[str, str], list[str]] = {}
    for method in METHODS:
        for rule in bindings(method):
            verb, path = verb_and_path(rule)
            owners.setdefault((verb, re.sub(r"\{\w+\}", "{}", path)), []).append(by_name(method))
    assert {route: names for route, names in owners.items() if len(names) > 1} == {}


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_request_fields_are_bounded(method: MethodDescriptor) -> None:
    assert [field.full_name for field in reachable(method.input_type) if not is_bounded(field)] == []


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_field_aliases_are_unique(method: MethodDescriptor) -> None:
    fields = method.input_type.fields
    names = [field.name for field in fields]
    for field in fields:
        names.extend(field.GetOptions().Extensions[options_pb2.field].aliases)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_responses_contain_no_secret(method: MethodDescriptor) -> None:
    assert [field.full_name for field in reachable(method.output_type) if SECRET_NAMES.search(field.name)] == []


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_responses_with_tweets_have_wire_type(method: MethodDescriptor) -> None:
    answer = method.output_type
    if any(field.message_type is not None and field.message_type.full_name == TWEET for field in answer.fields):
        assert answer.GetOptions().Extensions[options_pb2.wire_type]


@pytest.mark.parametrize(
    "message",
    [message for message in MESSAGES if message.GetOptions().Extensions[options_pb2.wire_type]],
    ids=lambda message: str(message.name),
)
def test_wire_type_has_field_numbers_of_message(message: Descriptor) -> None:
    wire_type = descriptor_pool.Default().FindMessageTypeByName(message.GetOptions().Extensions[options_pb2.wire_type])
    for field in message.fields:
        other = wire_type.fields_by_name[field.name]
        assert (other.number, other.is_repeated) == (field.number, field.is_repeated)
        if field.message_type is not None and other.type == FieldDescriptor.TYPE_BYTES:
            # A serialised message is the same on the wire.
            continue
        if field.message_type is not None and field.message_type.full_name == TWEET:
            raise AssertionError(f"{field.full_name} is built field by field in the wire type")
        assert (other.type, other.message_type) == (field.type, field.message_type)


@pytest.mark.parametrize(
    ("pattern", "bounded"),
    [("^[A-Z*+]{3,15}$", True), ("^a*$", False), ("^a+$", False), ("^a{3,}$", False), ("a", False), ("", False)],
)
def test_pattern_is_bounded_without_unbounded_repetition(pattern: str, bounded: bool) -> None:
    assert pattern_is_bounded(pattern) is bounded


def test_event_body_declares_exactly_one_integer_key() -> None:
    """The partition key orders the events of one entity, and the builder of records takes it from the body."""
    bodies = [field.message_type for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["body"].fields]
    keys = {
        body.name: [field for field in body.fields if field.GetOptions().Extensions[options_pb2.field].event_key]
        for body in bodies
    }
    wrong = [name for name, found in keys.items() if [field.type for field in found] != [FieldDescriptor.TYPE_INT64]]
    assert bodies
    assert not wrong
