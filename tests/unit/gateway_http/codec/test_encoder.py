"""The encoder returns the same JSON as Protobuf's json_format, except for enum names, for random messages of every type."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import FloatValue
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from roost.fanout.v1 import fanout_service_pb2
from roost.identity.v1 import user_pb2
from roost.tweet.v1 import tweet_pb2

from gateway_http.codec.binding import Codec
from gateway_http.codec.encoder import PROTOBUF, EncoderRegistry, Encoders, encoder_of, rfc3339
from gateway_http.codec.field_values import short_name
from gateway_http.router import Binding, bindings
from services.platform.rpc.contract import message_class, methods

ROUTED_METHODS = [
    (method, binding)
    for method in methods().values()
    for binding in bindings(method)[:1]
    if not method.server_streaming
]
# Responses of methods without routes are included, because only they have maps, bytes and 32-bit floats.
RESPONSE_TYPES = sorted(
    {method.descriptor.output_type.full_name: method.descriptor.output_type for method in methods().values()}.items()
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
F = FieldDescriptor
SCALARS = {
    F.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    F.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    F.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    F.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    F.CPPTYPE_BOOL: st.booleans(),
    F.CPPTYPE_DOUBLE: st.floats(),
    F.CPPTYPE_FLOAT: st.floats(width=32),
}
MAX_DEPTH = 3


def value_of(field: FieldDescriptor, draw: Any, depth: int) -> Any:
    if field.message_type is not None:
        return fill(field.message_type, draw, depth + 1)
    if field.enum_type is not None:
        return draw(st.sampled_from([one.number for one in field.enum_type.values] + [99]))
    if field.cpp_type == F.CPPTYPE_STRING:
        return draw(st.binary(max_size=8) if field.type == F.TYPE_BYTES else TEXT)
    return draw(SCALARS[field.cpp_type])


def fill(descriptor: Descriptor, draw: Any, depth: int = 0) -> Message:
    """Returns a message with random fields set to random values."""
    message: Any = message_class(descriptor)()
    if descriptor.full_name == "google.protobuf.Timestamp":
        message.seconds = draw(st.integers(-62_135_596_800, 253_402_300_799))
        # Whole milliseconds, as in services, and never 0: json_format omits the decimals of a whole second.
        message.nanos = draw(st.integers(1, 999)) * 1_000_000
        return message
    for field in descriptor.fields:
        if depth >= MAX_DEPTH and field.message_type is not None:
            continue
        if not draw(st.booleans()):
            continue
        target = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            for _ in range(draw(st.integers(0, 2))):
                if value.message_type is None:
                    target[value_of(key, draw, depth)] = value_of(value, draw, depth)
                else:
                    target[value_of(key, draw, depth)].CopyFrom(value_of(value, draw, depth))
        elif field.is_repeated:
            target.extend(value_of(field, draw, depth) for _ in range(draw(st.integers(0, 2))))
        elif field.message_type is not None:
            target.CopyFrom(value_of(field, draw, depth))
        else:
            setattr(message, field.name, value_of(field, draw, depth))
    return message


def expected_json(message: Message) -> dict[str, Any]:
    found = json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        use_integers_for_enums=True,
    )
    return named(found, message.DESCRIPTOR)  # type: ignore[arg-type]


def named(value: dict[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """Replaces the enum numbers in the result of json_format by short names."""
    out = dict(value)
    for field in descriptor.fields:
        if field.name not in out:
            continue
        if field.enum_type is not None:
            names = {one.number: short_name(one.name, field.enum_type) for one in field.enum_type.values}
            now = out[field.name]
            out[field.name] = [names.get(n, n) for n in now] if field.is_repeated else names.get(now, now)
        inner = field.message_type
        if inner is None or inner.full_name.startswith("google."):
            continue
        if inner.GetOptions().map_entry:
            of = inner.fields_by_name["value"].message_type
            if of is not None:
                out[field.name] = {key: named(one, of) for key, one in out[field.name].items()}
        elif field.is_repeated:
            out[field.name] = [named(one, inner) for one in out[field.name]]
        else:
            out[field.name] = named(out[field.name], inner)
    return out


def same(left: Any, right: Any) -> bool:
    # Compared as JSON, in which 1 and 1.0 are the same number.
    def plain(value: Any) -> Any:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, list) else value

    return bool(plain(left) == plain(right))


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_encode_any_message_equals_protobuf_json(data: st.DataObject) -> None:
    _, descriptor = data.draw(st.sampled_from(RESPONSE_TYPES))
    message = fill(descriptor, data.draw)
    found = encoder_of(descriptor, EncoderRegistry()).to_dict(message)
    assert same(found, expected_json(message))


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_encode_wire_response_equals_declared_response(data: st.DataObject) -> None:
    method, binding = data.draw(st.sampled_from(ROUTED_METHODS))
    message: Any = fill(method.descriptor.output_type, data.draw)
    wire_response = method.wire_response.FromString(message.SerializeToString())
    found = json.loads(Codec().writer(method, binding).body(wire_response))
    if binding.response_body:
        body = expected_json(getattr(message, binding.response_body)) if message.HasField(binding.response_body) else {}
        if not getattr(message, binding.response_body).ByteSize():
            # A wire type does not distinguish an empty tweet from an unset one; tweets are never empty.
            assert same(found, body) or found == {}
        else:
            assert same(found, body)
    else:
        assert same(found, json.loads(json.dumps(expected_json(message))))


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_encode_in_protobuf_spelling_equals_protobuf_json(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(ROUTED_METHODS))[0]
    message: Any = fill(method.descriptor.output_type, data.draw)
    wire_response = method.wire_response.FromString(message.SerializeToString())
    found = json.loads(Codec(PROTOBUF).writer(method, Binding("POST", method.path, "*")).body(wire_response))
    expected = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    for field in method.descriptor.output_type.fields:
        if field.json_name not in found and field.json_name in expected:
            # A wire type does not distinguish an empty tweet from an unset one; tweets are never empty.
            assert not getattr(message, field.name).ByteSize()
        else:
            assert same(found.get(field.json_name), expected.get(field.json_name))
    assert set(found) <= set(expected)


@given(st.integers(-62_135_596_800, 253_402_300_799), st.integers(0, 999_999_999))
def test_rfc3339_any_time_has_three_fraction_digits(seconds: int, nanos: int) -> None:
    found = rfc3339(Timestamp(seconds=seconds, nanos=nanos))
    whole = Timestamp(seconds=seconds).ToJsonString().removesuffix("Z")
    assert found == f"{whole}.{nanos // 1_000_000:03d}Z"


def test_rfc3339_time_without_fraction_has_three_zeros() -> None:
    assert rfc3339(Timestamp(seconds=0)) == "1970-01-01T00:00:00.000Z"


@given(st.floats(width=32))
@example(0.1)
@example(3.4028234663852886e38)
@example(1.401298464324817e-45)
def test_encode_float_has_as_few_digits_as_protobuf(value: float) -> None:
    message = FloatValue(value=value)
    assert same(
        encoder_of(FloatValue.DESCRIPTOR, EncoderRegistry()).to_dict(message)["value"],
        json_format.MessageToDict(message),
    )


def test_encode_prints_zero_values_and_omits_unset_messages() -> None:
    found = encoder_of(tweet_pb2.Tweet.DESCRIPTOR, EncoderRegistry()).to_dict(tweet_pb2.Tweet(id=5))
    assert found["id"] == "5"
    assert (found["text"], found["edited"], found["reply_to_id"], found["media"]) == ("", False, "0", [])
    assert "viewer" not in found
    assert "created_at" not in found


def test_encode_keeps_declared_field_order() -> None:
    user = user_pb2.User(id=1, metrics=user_pb2.UserMetrics())
    found = list(encoder_of(user_pb2.User.DESCRIPTOR, EncoderRegistry()).to_dict(user))
    assert found == [
        "id",
        "username",
        "display_name",
        "avatar_url",
        "verified",
        "bio",
        "location",
        "website",
        "metrics",
        "email",
    ]


def test_short_name_drops_enum_prefix() -> None:
    found = fanout_service_pb2.FanoutState.DESCRIPTOR
    assert short_name("FANOUT_STATE_UNSPECIFIED", found) == "unspecified"


def test_encoder_with_mismatched_wire_type_raises() -> None:
    page, joined = tweet_pb2.SerializedTweetPage.DESCRIPTOR, user_pb2.User.DESCRIPTOR
    with pytest.raises(TypeError, match="is not a wire type"):
        Encoders().response(page, joined)
