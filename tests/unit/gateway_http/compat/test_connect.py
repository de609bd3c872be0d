"""The Connect protocol by its specification, over a fake channel."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from roost.identity.v1 import auth_service_pb2, user_pb2
from roost.options.v1 import options_pb2 as options
from roost.timeline.v1 import timeline_service_pb2
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from gateway_http.compat.connect import MAX_BINARY_BYTES
from gateway_http.request import MAX_BODY_BYTES
from services.platform.rpc.contract import Method, methods
from services.platform.rpc.errors import RoostError, Violation
from tests.unit.gateway_http.conftest import ALICE, Answer, Client

CREATE = "/roost.tweet.v1.TweetService/CreateTweet"
GET = "/roost.tweet.v1.TweetService/GetTweet"
HOME = "/roost.timeline.v1.TimelineService/ListHomeTimeline"
AVAILABLE = "/roost.identity.v1.AuthService/CheckUsernameAvailability"
TWEET = tweet_pb2.Tweet(id=5, author_id=7, text="hello", author=user_pb2.UserRef(id=7, username="alice"))
JOINED = tweet_pb2.SerializedTweet(tweet=TWEET.SerializeToString())

# Status by code, from the specification of Connect.
STATUS_OF_CODE = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}


def outside(method: Method) -> bool:
    unary = not (method.server_streaming or method.client_streaming)
    return unary and method.policy.access != options.ACCESS_MESH


REACHABLE = [path for path, method in methods().items() if outside(method)]
HIDDEN = [path for path, method in methods().items() if not outside(method)]


async def binary(client: Client, path: str, message: Message | bytes, **options: Any) -> Answer:
    body = message if isinstance(message, bytes) else message.SerializeToString()
    headers = {"content-type": "application/proto"} | options.pop("headers", {})
    return await client.ask("POST", path, body, headers=headers, **options)


def unknown_field(size: int) -> bytes:
    """Returns a serialised message with one unknown field, `size` bytes long in total."""
    length = size - 5
    return b"\xfa\x7f" + bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14]) + bytes(length)


def detail(answer: Answer, kind: type[Message]) -> Any:
    """Returns the error detail of this type, decoded as a client does."""
    for one in answer.json["details"]:
        if one["type"] == kind.DESCRIPTOR.full_name:
            value = one["value"]
            assert "=" not in value
            return kind.FromString(base64.b64decode(value + "=" * (-len(value) % 4)))
    raise AssertionError(f"no {kind.DESCRIPTOR.full_name} in {answer.json}")


def refused(answer: Answer, code: str, status: int | None = None) -> None:
    assert answer.json["code"] == code
    assert answer.status == (status or STATUS_OF_CODE[code])
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]


async def test_json_call_uses_protobuf_json(client: Client) -> None:
    client.channel.answers["CreateTweet"] = JOINED
    answer = await client.json("POST", CREATE, {"text": "hello", "quoteOfId": "9"}, signed_in=True)
    # The whole response with 200, although the REST route returns the unwrapped tweet with 201.
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert (answer.json["tweet"]["authorId"], answer.json["tweet"]["author"]["displayName"]) == ("7", "")
    assert client.channel.request == tweet_service_pb2.CreateTweetRequest(text="hello", quote_of_id=9)
    _, _, call = client.channel.asked[0]
    assert (call.actor, call.caller, call.method) == (ALICE, "", CREATE)


async def test_json_call_accepts_both_spellings_and_aliases(client: Client) -> None:
    client.channel.answers["ListHomeTimeline"] = tweet_pb2.SerializedTweetPage()
    for name, mode in (("pageSize", "TIMELINE_MODE_LATEST"), ("page_size", "latest"), ("limit", "latest")):
        answer = await client.json("POST", HOME, {name: 7, "mode": mode}, signed_in=True)
        assert (answer.status, answer.json["nextCursor"]) == (200, "")
        assert client.channel.request == timeline_service_pb2.ListHomeTimelineRequest(
            page_size=7, mode=timeline_service_pb2.TIMELINE_MODE_LATEST
        )


async def test_binary_call_uses_protobuf(client: Client) -> None:
    client.channel.answers["GetTweet"] = JOINED
    answer = await binary(client, GET, tweet_service_pb2.GetTweetRequest(tweet_id=5))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/proto"
    assert tweet_service_pb2.GetTweetResponse.FromString(answer.body).tweet == TWEET
    assert client.channel.request.tweet_id == 5


async def test_call_with_empty_body_is_empty_message(client: Client) -> None:
    client.channel.answers["ListHomeTimeline"] = tweet_pb2.SerializedTweetPage()
    for media in ("application/json", "application/json; charset=utf-8", "application/proto"):
        answer = await client.ask("POST", HOME, b"", signed_in=True, headers={"content-type": media})
        assert answer.status == 200
        assert client.channel.request == timeline_service_pb2.ListHomeTimelineRequest()


async def test_call_idempotency_key_header_sets_field(client: Client) -> None:
    client.channel.answers["CreateTweet"] = JOINED
    key = {"idempotency-key": "k1"}
    await client.json("POST", CREATE, {"text": "a"}, signed_in=True, headers=key)
    assert client.channel.request.idempotency_key == "k1"
    message = tweet_service_pb2.CreateTweetRequest(text="a")
    await binary(client, CREATE, message, signed_in=True, headers=key)
    assert client.channel.request.idempotency_key == "k1"
    message.idempotency_key = "k2"
    refused(await binary(client, CREATE, message, signed_in=True, headers=key), "invalid_argument")


@pytest.mark.usefixtures("contract_deadlines")
@pytest.mark.parametrize(("timeout_ms", "most_s"), [("1500", 1.5), ("0", 0.0), ("9999999999", 5.0)])
async def test_call_client_deadline_only_shortens(client: Client, timeout_ms: str, most_s: float) -> None:
    client.channel.answers["ListHomeTimeline"] = tweet_pb2.SerializedTweetPage()
    headers = {"connect-timeout-ms": timeout_ms, "connect-protocol-version": "1"}
    assert (await client.json("POST", HOME, {}, signed_in=True, headers=headers)).status == 200
    left = client.channel.asked[0][2].deadline - asyncio.get_running_loop().time()
    assert most_s - 1 < left <= most_s


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("connect-timeout-ms", "-1"),
        ("connect-timeout-ms", "1.5"),
        ("connect-timeout-ms", ""),
        ("connect-timeout-ms", "1" * 11),
        ("connect-protocol-version", "2"),
    ],
)
async def test_call_with_malformed_header_is_invalid(client: Client, name: str, value: str) -> None:
    refused(await client.json("POST", HOME, {}, signed_in=True, headers={name: value}), "invalid_argument")
    assert client.channel.asked == []


@pytest.mark.parametrize(
    "media", ["", "text/plain", "application/connect+json", "application/grpc-web", "application/xml"]
)
async def test_call_of_other_media_type_is_415_with_accept_post(client: Client, media: str) -> None:
    answer = await client.ask("POST", AVAILABLE, b"{}", headers={"content-type": media})
    refused(answer, "unknown", 415)
    assert answer.headers["accept-post"] == "application/json, application/proto"


async def test_call_with_compressed_body_is_unimplemented(client: Client) -> None:
    answer = await client.json("POST", AVAILABLE, {}, headers={"content-encoding": "gzip"})
    refused(answer, "unimplemented")
    assert "identity" in answer.json["message"]


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_call_error_has_code_and_status_of_specification(client: Client, code: grpc.StatusCode) -> None:
    name = "canceled" if code is grpc.StatusCode.CANCELLED else code.name.lower()
    client.channel.answers["GetTweet"] = RoostError(code, "internal error 12", "WHY")
    answer = await client.json("POST", GET, {"tweetId": "5"})
    refused(answer, name)
    assert len(STATUS_OF_CODE) == len(grpc.StatusCode) - 1


async def test_call_error_carries_details(client: Client) -> None:
    client.channel.answers["GetTweet"] = RoostError(
        grpc.StatusCode.UNAVAILABLE, "not now", "BUSY", violations=[Violation("tweet_id", "no")], retry_after_s=2.5
    )
    answer = await client.json("POST", GET, {"tweet_id": "5"})
    refused(answer, "unavailable")
    assert answer.json["message"] == "not now"
    assert answer.headers["retry-after"] == "3"
    assert detail(answer, error_details_pb2.ErrorInfo).reason == "BUSY"
    assert detail(answer, error_details_pb2.BadRequest).field_violations[0].field == "tweet_id"
    assert detail(answer, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 2500


async def test_call_unexpected_error_shows_id_only(client: Client) -> None:
    client.channel.answers["GetTweet"] = KeyError("a secret")
    answer = await client.json("POST", GET, {"tweet_id": "5"})
    refused(answer, "internal")
    assert "secret" not in answer.body.decode()


async def test_call_cancelled_by_stop_is_unavailable(client: Client) -> None:
    client.channel.answers["GetTweet"] = asyncio.CancelledError()
    refused(await client.json("POST", GET, {"tweet_id": "5"}), "unavailable")


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"tweetId": "5", "tweet_id": "6"}', b'{"tweetIds": "5"}', b'{"tweetId": "1_000"}', b"\xff"]
)
async def test_call_with_malformed_json_is_invalid(client: Client, body: bytes) -> None:
    answer = await client.ask("POST", GET, body)
    refused(answer, "invalid_argument")
    assert client.channel.asked == []


@pytest.mark.parametrize("body", [b"\xff", b"\x08", b"\x0a\x02\xff\xfe"])
async def test_call_with_malformed_binary_is_invalid(client: Client, body: bytes) -> None:
    refused(await binary(client, AVAILABLE, body), "invalid_argument")
    assert client.channel.asked == []


async def test_call_with_query_is_invalid(client: Client) -> None:
    refused(await client.json("POST", f"{AVAILABLE}?username=a", {}), "invalid_argument")


async def test_call_body_above_bound_is_413(client: Client) -> None:
    client.channel.answers["CheckUsernameAvailability"] = auth_service_pb2.CheckUsernameAvailabilityResponse()
    fits = b'{"username": "a"}'.ljust(MAX_BODY_BYTES)
    assert (await client.ask("POST", AVAILABLE, fits)).status == 200
    refused(await client.ask("POST", AVAILABLE, fits + b" "), "resource_exhausted", 413)
    assert (await binary(client, AVAILABLE, unknown_field(MAX_BINARY_BYTES))).status == 200
    refused(await binary(client, AVAILABLE, unknown_field(MAX_BINARY_BYTES + 1)), "resource_exhausted", 413)


async def test_call_without_valid_token_is_unauthenticated(client: Client) -> None:
    answer = await client.json("POST", HOME, {})
    refused(answer, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    answer = await client.json("POST", AVAILABLE, {}, headers={"authorization": "Bearer other"})
    refused(answer, "unauthenticated")
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert detail(answer, error_details_pb2.ErrorInfo).reason == "TOKEN_INVALID"


async def test_rate_limits_are_shared_with_rest(limited: Callable[..., Client]) -> None:
    client = limited(reads_per_minute=2)
    client.channel.answers["ListHomeTimeline"] = tweet_pb2.SerializedTweetPage()
    assert (await client.ask("GET", "/v1/timelines/home", signed_in=True)).status == 200
    answer = await client.json("POST", HOME, {}, signed_in=True)
    assert (answer.status, answer.headers["x-rate-limit-remaining"]) == (200, "0")
    answer = await client.json("POST", HOME, {}, signed_in=True)
    refused(answer, "resource_exhausted")
    assert int(answer.headers["retry-after"]) >= 1
    assert detail(answer, error_details_pb2.ErrorInfo).reason == "RATE_LIMITED"


@pytest.mark.parametrize("path", REACHABLE)
async def test_unary_method_is_reachable(client: Client, path: str) -> None:
    answer = await client.json("POST", path, {})
    assert answer.status in (401, 501)
    assert answer.json["code"] in ("unauthenticated", "unimplemented")
    assert (await client.ask("GET", path)).status == 405


@pytest.mark.parametrize("path", HIDDEN)
@pytest.mark.parametrize("verb", ["POST", "GET", "PUT"])
async def test_internal_methods_and_streams_are_404(client: Client, path: str, verb: str) -> None:
    def body_of(answer: Answer) -> Any:
        return answer.status, {k: v for k, v in json.loads(answer.body).items() if k not in ("instance", "trace_id")}

    nowhere = await client.ask(verb, "/roost.tweet.v1.TweetService/Nothing", b"{}", signed_in=True)
    assert body_of(await client.ask(verb, path, b"{}", signed_in=True)) == body_of(nowhere)
    assert nowhere.status == 404
    assert client.channel.asked == []
