"""Decoding of bodies, queries and paths into request messages, valid and invalid ones."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from roost.search.v1 import search_service_pb2

from gateway_http.codec import field_values
from gateway_http.codec.binding import Codec, DecodedRequest
from gateway_http.codec.encoder import PROTOBUF
from gateway_http.codec.strict_json import MAX_CONTAINERS
from gateway_http.router import Binding, bindings
from services.platform.rpc.contract import methods
from services.platform.rpc.errors import MAX_VIOLATIONS, RoostError

CODEC = Codec()
ME = 7


def read(
    name: str,
    values: tuple[str, ...] = (),
    query: bytes = b"",
    body: bytes = b"",
    me: int = ME,
    key: str = "",
    at: int = 0,
) -> DecodedRequest:
    method = next(one for one in methods().values() if one.name == name)
    return CODEC.reader(method, bindings(method)[at]).read(values, query, body, me, key)


def message(name: str, *args: Any, **options: Any) -> Any:
    found: Message = read(name, *args, **options).message
    return found


def violated_fields(name: str, *args: Any, **options: Any) -> list[str]:
    """Returns the fields of the violations of INVALID_ARGUMENT; [] if the error names no field."""
    with pytest.raises(RoostError) as refused:
        read(name, *args, **options)
    assert refused.value.code.name == "INVALID_ARGUMENT"
    return [one.field for one in refused.value.violations]


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b'""',
        b"1",
        b"true",
        b"{",
        b'{"text":"a"} x',
        b"{'text':'a'}",
        b'{"text":"a",}',
        b"\xff",
        b'{"text":"\xff"}',
        b'{"text":"\\ud800"}',
        b'{"text":"\x01"}',
        b'{"text":NaN}',
        b'{"text":Infinity}',
        b'\xef\xbb\xbf{"text":"a"}',
        b'{"text":' + b"[" * 40 + b"]" * 40 + b"}",
        b"[" * 60000,
        b'{"a":' * 9000,
        b'{"reply_to_id":' + b"1" * 5000 + b"}",
    ],
)
def test_body_that_is_not_one_json_object_is_invalid(body: bytes) -> None:
    assert violated_fields("CreateTweet", body=body) == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"text":"a","text":"b"}', "text"),
        (b'{"text":"a","content":"b"}', "text"),
        (b'{"text":"a","nothing":1}', "nothing"),
        (b'{"text":1}', "text"),
        (b'{"text":["a"]}', "text"),
        (b'{"text":true}', "text"),
        (b'{"media_ids":{"a":1}}', "media_ids"),
        (b'{"media_ids":[1,"x"]}', "media_ids[1]"),
        (b'{"media_ids":[null]}', "media_ids[0]"),
        (b'{"media_ids":5}', "media_ids"),
        (b'{"user_id":"you"}', "user_id"),
    ],
)
def test_body_invalid_field_is_named(body: bytes, field: str) -> None:
    assert violated_fields("CreateTweet", body=body) == [field]


INTEGERS = [
    b"1.0",
    b"1e3",
    b'"1e3"',
    b'"1_000"',
    '"٣"'.encode(),
    b'"+5"',
    b'" 5"',
    b'"5 "',
    b'"0x1"',
    b'"007"',
    b"true",
    b'""',
]
INTEGERS += [
    b"9223372036854775808",
    b'"9223372036854775808"',
    b'"-0"',
    b"18446744073709551616",
    b'"' + b"9" * 30 + b'"',
    b"[]",
    b"{}",
]


@pytest.mark.parametrize("value", INTEGERS)
def test_integer_in_other_form_is_invalid(value: bytes) -> None:
    assert violated_fields("CreateTweet", body=b'{"reply_to_id":' + value + b"}") == ["reply_to_id"]


@pytest.mark.parametrize("value", [b"5", b'"5"', b"9223372036854775807", b'"9223372036854775807"', b"0", b'"0"'])
def test_id_as_integer_or_string_is_accepted(value: bytes) -> None:
    assert message("CreateTweet", body=b'{"reply_to_id":' + value + b"}").reply_to_id == int(value.strip(b'"'))


def test_body_with_several_faults_lists_all() -> None:
    assert violated_fields("CreateTweet", body=b'{"text":1,"reply_to_id":"x","zzz":0}') == [
        "text",
        "reply_to_id",
        "zzz",
    ]


def test_field_names_snake_camel_or_alias_are_accepted() -> None:
    assert message("CreateTweet", body=b'{"replyToId":"5","content":"hi","quote_of_id":null}').reply_to_id == 5
    body = b'{"user_name":"al","user_credetials":"pw","user_metatData":{"displayName":"Al"}}'
    found = message("SignUp", body=body)
    assert (found.username, found.password, found.profile.display_name) == ("al", "pw", "Al")
    assert violated_fields("SignUp", body=b'{"profile":{"nope":1,"bio":2}}') == ["profile.nope", "profile.bio"]
    assert violated_fields("SignUp", body=b'{"profile":[]}') == ["profile"]


def test_absent_body_is_empty_object() -> None:
    assert message("CreateTweet") == message("CreateTweet", body=b"{}")


def test_optional_field_set_to_empty_has_presence() -> None:
    found = message("UpdateUser", ("me",), body=b'{"bio":""}')
    assert found.HasField("bio")
    assert not found.HasField("location")


@pytest.mark.parametrize(
    "value", ["0", "-1", "007", "1.0", "1e3", "+5", "٣", "1_000", "x", "0x1", "9223372036854775808", "9" * 20, "%31"]
)
def test_path_malformed_id_is_invalid(value: str) -> None:
    assert violated_fields("GetTweet", (value,)) == ["tweet_id"]


def test_path_largest_id_is_accepted() -> None:
    assert message("GetTweet", ("9223372036854775807",)).tweet_id == 2**63 - 1


def test_me_in_accepting_field_is_caller() -> None:
    assert message("GetUser", ("me",)).user_id == ME
    assert message("CreateTweet", body=b'{"user_id":"me"}').user_id == ME
    assert violated_fields("GetTweet", ("me",)) == ["tweet_id"]
    with pytest.raises(RoostError, match="UNAUTHENTICATED"):
        read("GetUser", ("me",), me=0)


def test_body_contradicting_path_is_invalid() -> None:
    assert message("UpdateTweet", ("5",), body=b'{"tweet_id":"5","text":"a"}').tweet_id == 5
    assert violated_fields("UpdateTweet", ("5",), body=b'{"tweet_id":"6","text":"a"}') == ["tweet_id"]
    assert violated_fields("ListUserTweets", ("5",), b"user_id=6") == ["user_id"]


@pytest.mark.parametrize("query", [b"ids=1,2,3", b"ids=1&ids=2&ids=3", b"ids=1%2C2&ids=3", b"ids=1,2&ids=3"])
def test_query_list_with_commas_or_repeated_is_accepted(query: bytes) -> None:
    assert list(message("BatchGetTweets", query=query).ids) == [1, 2, 3]


@pytest.mark.parametrize("query", [b"ids=1,,2", b"ids=", b"ids=1,x", b"ids=1;2", b"ids=1+2"])
def test_query_list_with_empty_item_is_invalid(query: bytes) -> None:
    assert violated_fields("BatchGetTweets", query=query) == ["ids"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (b"page_size=1&page_size=2", "page_size"),
        (b"page_size=1&limit=2", "page_size"),
        (b"page_size=", "page_size"),
        (b"page_size=1e1", "page_size"),
        (b"page_size=%D9%A3", "page_size"),
        (b"page_size=2147483648", "page_size"),
        (b"nothing=1", "nothing"),
        (b"mode=newest", "mode"),
        (b"mode=1", "mode"),
        (b"mode=unspecified", "mode"),
        (b"mode=TIMELINE_MODE_UNSPECIFIED", "mode"),
        (b"mode=", "mode"),
        (b"sort=oldest", "sort"),
        (b"page=0", "page"),
        (b"page=1.5", "page"),
        (b"page=1&page=2", "page"),
        (b"page=2&cursor=x", "page"),
    ],
)
def test_query_invalid_parameter_is_named(query: bytes, field: str) -> None:
    assert violated_fields("ListHomeTimeline", query=query) == [field]


@pytest.mark.parametrize("query", [b"cursor=%", b"cursor=%zz", b"cursor=%ff", b"cursor=%00", b"%ff=1", b"a=1&" * 200])
def test_query_malformed_is_invalid(query: bytes) -> None:
    violated_fields("ListHomeTimeline", query=query)


def test_query_decodes_plus_percent_and_enum_names() -> None:
    assert message("ListHomeTimeline", query=b"mode=latest").mode == 1
    assert message("ListHomeTimeline", query=b"mode=TIMELINE_MODE_RANKED&cursor=a%2Bb+c").cursor == "a+b c"
    assert message("ListHomeTimeline", query=b"&limit=5&").page_size == 5
    assert list(message("ListUserTweets", ("5",), b"exclude=replies,retweets").exclude) == [1, 2]


def test_query_cache_excludes_caller_and_errors() -> None:
    method = next(one for one in methods().values() if one.name == "ListHomeTimeline")
    reader = CODEC.reader(method, bindings(method)[0])
    first = reader.read((), b"limit=5&page=2", b"", ME)
    assert reader.read((), b"limit=5&page=2", b"", 8) == first
    assert reader.read((), b"limit=6", b"", ME).message != first.message
    for _ in range(2):
        with pytest.raises(RoostError):
            reader.read((), b"limit=x", b"", ME)
    for number in range(1_000):
        reader.read((), b"cursor=%d" % number, b"", ME)
    assert len(reader._cached_queries) <= 256


def test_query_with_me_is_not_cached() -> None:
    method = next(one for one in methods().values() if one.name == "GetUser")
    reader = CODEC.reader(method, Binding("GET", "/users"))
    assert [reader.read((), b"user_id=me", b"", me).message.user_id for me in (7, 8)] == [7, 8]  # type: ignore[attr-defined]


def test_page_numbers_without_policy_are_invalid() -> None:
    assert read("ListHomeTimeline", query=b"page=3&limit=10&sort=latest").page == 3
    assert violated_fields("ListMentions", query=b"page=3&sort=latest") == ["page", "sort"]


def test_query_text_list_splits_at_unencoded_commas() -> None:
    found: search_service_pb2.SearchTweetsRequest = message("SearchTweets", query=b"keywords=a%2Cb,c&q=x,y")
    assert list(found.keywords) == ["a,b", "c"]
    assert found.query == "x,y"


def test_idempotency_key_header_sets_field() -> None:
    assert message("CreateTweet", body=b'{"text":"a"}', key="k1").idempotency_key == "k1"
    assert violated_fields("CreateTweet", body=b'{"text":"a","idempotency_key":"k2"}', key="k1") == ["idempotency_key"]
    assert message("Follow", ("5",), key="k1").user_id == 5


def test_misplaced_query_or_body_is_invalid() -> None:
    assert violated_fields("CreateTweet", query=b"text=a") == ["text"]
    assert violated_fields("DeleteTweet", ("5",), body=b'{"user_id":"5"}') == ["user_id"]
    assert message("DeleteTweet", ("5",), body=b"{}").tweet_id == 5


def test_oneof_set_twice_is_invalid() -> None:
    assert violated_fields("ReplayFanout", body=b'{"offset":5,"time":"2026-01-31T12:00:00Z"}') == ["time"]
    assert message("ReplayFanout", body=b'{"offset":5,"time":null}').offset == 5


@pytest.mark.parametrize("time", ["2026-01-31T12:00:00Z", "2026-01-31t12:00:00.5z", "2026-01-31T13:00:00+01:00"])
def test_time_in_rfc_3339_is_accepted(time: str) -> None:
    assert message("ReplayFanout", body=f'{{"time":"{time}"}}'.encode()).time.seconds == 1769860800


@pytest.mark.parametrize(
    "time", ["2026-01-31", "2026-02-30T12:00:00Z", "2026-01-31T12:00:00", "2026-01-31 12:00:00Z", "1769860800"]
)
def test_time_in_other_format_is_invalid(time: str) -> None:
    assert violated_fields("ReplayFanout", body=f'{{"time":"{time}"}}'.encode()) == ["time"]


def refusal(name: str, *args: Any, **options: Any) -> RoostError:
    with pytest.raises(RoostError) as refused:
        read(name, *args, **options)
    return refused.value


def test_read_too_long_list_converts_no_item(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[Any] = []
    codec = Codec()
    method = next(one for one in methods().values() if one.name == "SearchTweets")
    monkeypatch.setattr(field_values, "text", converted.append)
    reader = codec.reader(method, Binding("POST", method.path, body="*"))
    with pytest.raises(RoostError, match="keywords: must hold at most 20 items"):
        reader.read((), b"", b'{"keywords":[' + b",".join([b'""'] * 16_000) + b"]}", 0)
    assert converted == []


@pytest.mark.parametrize("query", [b"ids=" + b",".join([b"0"] * 30_000), b"&".join([b"ids=1"] * 101)])
def test_read_query_with_too_many_values_names_the_list(query: bytes) -> None:
    assert refusal("BatchGetUsers", query=query).message == "ids: must hold at most 100 items"


def test_read_binary_too_long_list_is_invalid() -> None:
    method = next(one for one in methods().values() if one.name == "BatchGetUsers")
    reader = CODEC.reader(method, bindings(method)[0])
    with pytest.raises(RoostError, match="ids: must hold at most 100 items"):
        reader.read_binary(b"\x08\x00" * 130_000)


def test_read_many_unknown_names_stops_at_max_violations() -> None:
    body = b"{" + b",".join(b'"%x":0' % number for number in range(5000)) + b"}"
    assert len(refusal("CreateTweet", body=body).violations) == MAX_VIOLATIONS


@pytest.mark.parametrize(
    "body",
    [
        b'{"text":[' + b",".join([b"{}"] * 20_000) + b"]}",
        b'{"text":[' + b",".join([b"[]"] * 20_000) + b"]}",
        # A parser that uses the last of duplicate names does not return these objects.
        b'{"text":[' + b",".join([b"{}"] * 20_000) + b'],"text":"a"}',
    ],
)
def test_read_body_of_many_objects_is_invalid(body: bytes) -> None:
    assert (
        refusal("CreateTweet", body=body).message == f"the body contains more than {MAX_CONTAINERS} objects and lists"
    )


def test_read_body_with_braces_in_text_is_accepted() -> None:
    assert message("CreateTweet", body=b'{"text":"' + b"{[" * 2000 + b'"}').text == "{[" * 2000


SEARCH = next(one for one in methods().values() if one.name == "SearchTweets")
IN_PROTOBUFS_JSON = Codec(PROTOBUF).reader(SEARCH, Binding("POST", SEARCH.path, body="*"))


def in_protobufs_json(field: str, value: Any) -> Any:
    """Returns the value of the field after a request with it was decoded as Protobuf's JSON."""
    asked: Any = IN_PROTOBUFS_JSON.read((), b"", orjson.dumps({"query": "q", field: value}), 0).message
    return getattr(asked, SEARCH.descriptor.input_type.fields_by_camelcase_name[field].name)


@pytest.mark.parametrize("value", [2, 2.0, "2", "2.0", "2e0", "0.2e1"])
def test_read_protobuf_json_integer_in_any_form_is_accepted(value: Any) -> None:
    assert in_protobufs_json("pageSize", value) == 2
    assert violated_fields("CreateTweet", body=b'{"text":"a","reply_to_id":2.0}') == ["reply_to_id"]


@pytest.mark.parametrize(
    "value",
    [
        2.5,
        "2.5",
        2**31,
        -(2**31) - 1,
        1e30,
        "1e999999999",
        "1e-999999999",
        "9" * 41,
        "",
        " 2",
        "+2",
        "0x2",
        "1_0",
        "٣",
        True,
        [2],
    ],
)
def test_read_protobuf_json_invalid_integer_is_rejected(value: Any) -> None:
    with pytest.raises(RoostError, match="page_size: must be"):
        in_protobufs_json("pageSize", value)


def test_read_protobuf_json_64_bit_integer_is_exact() -> None:
    method = next(one for one in methods().values() if one.name == "GetTweet")
    reader = Codec(PROTOBUF).reader(method, Binding("POST", method.path, body="*"))
    for value in (2**63 - 1, str(2**63 - 1), f"{2**63 - 1}.0"):
        asked: Any = reader.read((), b"", orjson.dumps({"tweetId": value}), 0).message
        assert asked.tweet_id == 2**63 - 1
    for value in (2**63, str(2**63), 9.3e18):
        with pytest.raises(RoostError, match="tweet_id: must be between"):
            reader.read((), b"", orjson.dumps({"tweetId": value}), 0)


@pytest.mark.parametrize("value", ["SEARCH_ORDER_UNSPECIFIED", "SEARCH_ORDER_LATEST", 0, 1, 2, 1.0, 77])
def test_read_protobuf_json_enum_by_name_or_number_is_accepted(value: Any) -> None:
    # Protobuf's parser accepts enum numbers as integers only.
    same = int(value) if isinstance(value, float) else value
    expected: Any = json_format.ParseDict({"order": same}, SEARCH.request())
    assert in_protobufs_json("order", value) == expected.order


@pytest.mark.parametrize("value", ["SEARCH_ORDER_NONE", "1", "", 1.5, 2**31, True, []])
def test_read_protobuf_json_invalid_enum_is_rejected(value: Any) -> None:
    with pytest.raises(RoostError, match="order: must be"):
        in_protobufs_json("order", value)
