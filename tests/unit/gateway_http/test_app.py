"""The gateway as an ASGI application, over a fake channel."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from roost.graph.v1 import graph_service_pb2
from roost.identity.v1 import auth_service_pb2, user_pb2, user_service_pb2
from roost.tweet.v1 import tweet_pb2

from gateway_http import load as load_module
from gateway_http import request as request_module
from services.platform.rpc import errors
from services.platform.rpc.context import NEVER
from tests.unit.gateway_http.conftest import ALICE, Client
from tests.waiting import forever

TWEET = tweet_pb2.Tweet(id=5, author_id=7, text="hello", author=user_pb2.UserRef(id=7, username="alice"))
JOINED = TWEET.SerializeToString()


def page(*ids: int, cursor: str = "", partial: bool = False) -> tweet_pb2.SerializedTweetPage:
    tweets = [tweet_pb2.Tweet(id=one).SerializeToString() for one in ids]
    return tweet_pb2.SerializedTweetPage(tweets=tweets, next_cursor=cursor, partial=partial)


@pytest.mark.usefixtures("contract_deadlines")
async def test_home_read_encodes_wire_tweets_and_passes_caller(client: Client) -> None:
    client.channel.answers["ListHomeTimeline"] = tweet_pb2.SerializedTweetPage(tweets=[JOINED], next_cursor="c")
    answer = await client.ask("GET", "/v1/timelines/home?limit=5", signed_in=True)
    assert answer.status == 200
    assert answer.json["tweets"][0]["author"]["username"] == "alice"
    assert (answer.json["next_cursor"], answer.json["partial"]) == ("c", False)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "private, no-cache"
    name, request, call = client.channel.asked[0]
    assert (name, request.page_size) == ("ListHomeTimeline", 5)
    assert call.actor == ALICE
    assert call.method == "/roost.timeline.v1.TimelineService/ListHomeTimeline"
    left = call.deadline - asyncio.get_running_loop().time()
    assert 4 < left <= 5 != NEVER


async def test_create_returns_201_unwrapped_and_uncacheable(client: Client) -> None:
    client.channel.answers["CreateTweet"] = tweet_pb2.SerializedTweet(tweet=JOINED)
    answer = await client.json(
        "POST", "/tweet", {"content": "hello"}, signed_in=True, headers={"idempotency-key": "k1"}
    )
    assert answer.status == 201
    assert answer.json["id"] == "5"
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers
    assert client.channel.request.text == "hello"
    assert client.channel.request.idempotency_key == "k1"


async def test_response_without_body_is_empty_object(client: Client) -> None:
    client.channel.answers["Follow"] = graph_service_pb2.FollowResponse()
    assert (await client.ask("POST", "/v1/users/5/follow", signed_in=True)).body == b"{}"
    client.channel.answers["GetTweet"] = tweet_pb2.SerializedTweet()
    assert (await client.ask("GET", "/v1/tweets/5")).body == b"{}"


async def test_anonymous_read_is_public_and_conditional(client: Client) -> None:
    client.channel.answers["GetTweet"] = tweet_pb2.SerializedTweet(tweet=JOINED)
    first = await client.ask("GET", "/v1/tweets/5")
    assert first.headers["cache-control"] == "public, max-age=30, stale-while-revalidate=30"
    assert first.headers["vary"] == "authorization, accept-encoding"
    tag = first.headers["etag"]
    assert tag.startswith('W/"')
    for known in (tag, f'"other", {tag}', "*", tag.removeprefix("W/")):
        again = await client.ask("GET", "/v1/tweets/5", headers={"if-none-match": known})
        assert (again.status, again.body) == (304, b"")
        assert again.headers["etag"] == tag
        assert "content-length" not in again.headers
        assert "content-type" not in again.headers
    assert (await client.ask("GET", "/v1/tweets/5", headers={"if-none-match": '"other"'})).status == 200


async def test_head_returns_headers_of_get(client: Client) -> None:
    client.channel.answers["GetTweet"] = tweet_pb2.SerializedTweet(tweet=JOINED)
    got = await client.ask("GET", "/v1/tweets/5")
    head = await client.ask("HEAD", "/v1/tweets/5")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(got.body))
    assert head.headers["etag"] == got.headers["etag"]


async def test_missing_token_is_401_before_body_is_read(client: Client) -> None:
    answer = await client.ask("POST", "/v1/tweets", b"not json at all")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert client.channel.asked == []


@pytest.mark.parametrize("value", ["Bearer nonsense", "Bearer ", "Bearer", "Basic YTpi", "", "Bearer \xff"])
async def test_invalid_token_on_public_route_is_401(client: Client, value: str) -> None:
    answer = await client.ask("GET", "/v1/tweets/5", headers={"authorization": value})
    assert answer.status == 401
    assert "invalid_token" in answer.headers["www-authenticate"]
    assert client.channel.asked == []


async def test_bearer_scheme_ignores_case_and_token_is_cached(client: Client) -> None:
    client.channel.answers["GetUser"] = user_service_pb2.GetUserResponse(user=user_pb2.User(id=7))
    for _ in range(2):
        answer = await client.ask("GET", "/v1/users/me", headers={"authorization": f"bEARER {ALICE.token}"})
        assert answer.json["id"] == "7"
    assert client.channel.request.user_id == 7


async def test_path_me_without_token_is_401(client: Client) -> None:
    assert (await client.ask("GET", "/v1/users/me")).status == 401


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1//tweets", 404, "not_found"),
        ("GET", "/v1/tweets/x", 400, "invalid_argument"),
        ("GET", "/v1/tweets/%00", 400, "invalid_argument"),
        ("GET", "/v1/tweets/5?zzz=1", 400, "invalid_argument"),
        ("PUT", "/v1/timelines/home", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/tweets/5", 405, "method_not_allowed"),
        ("GET", "/v1/tweets/5", 501, "unimplemented"),
    ],
)
async def test_error_response_is_problem(client: Client, method: str, target: str, status: int, code: str) -> None:
    answer = await client.ask(method, target)
    assert answer.status == status
    problem_body = answer.json
    assert (problem_body["status"], problem_body["code"], problem_body["instance"]) == (
        status,
        code,
        target.partition("?")[0],
    )
    assert problem_body["trace_id"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ("allow" in answer.headers) == (status == 405)


async def test_stream_over_http_is_501(client: Client) -> None:
    assert (await client.ask("GET", "/v1/timelines/home/stream", signed_in=True)).status == 501


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": ""},
        {"content-encoding": "gzip"},
        {"content-encoding": "br"},
    ],
)
async def test_body_of_other_media_type_or_compressed_is_415(client: Client, headers: dict[str, str]) -> None:
    assert (await client.ask("POST", "/v1/auth/login", b'{"a":1}', headers=headers)).status == 415


@pytest.mark.parametrize(
    "media", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/merge-patch+json"]
)
async def test_body_of_any_json_media_type_is_read(client: Client, media: str) -> None:
    client.channel.answers["Logout"] = auth_service_pb2.LogoutResponse()
    answer = await client.ask("POST", "/v1/auth/logout", b"{}", headers={"content-type": media}, signed_in=True)
    assert (answer.status, answer.body) == (200, b"{}")


async def test_body_above_bound_is_413(client: Client) -> None:
    fits = b'{"username":"' + b"a" * (request_module.MAX_BODY_BYTES - 15) + b'"}'
    assert (await client.ask("POST", "/v1/auth/login", fits)).status == 501
    answer = await client.ask("POST", "/v1/auth/login", fits + b" ")
    assert answer.status == 413
    assert answer.headers["connection"] == "close"
    # Without content-length the size is detected while the body is read.
    chunked = await client.ask(
        "POST", "/v1/auth/login", fits + b" ", headers={"content-length": "", "transfer-encoding": "chunked"}
    )
    assert chunked.status == 413
    for length in ("9" * 30, "65537"):
        assert (await client.ask("POST", "/v1/auth/login", b"{}", headers={"content-length": length})).status == 413


async def test_slow_body_is_408(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "BODY_TIMEOUT_S", 0.01)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/auth/login",
        "raw_path": b"/v1/auth/login",
        "query_string": b"",
        "headers": [(b"content-length", b"5"), (b"content-type", b"application/json")],
        "client": None,
    }
    events: list[Any] = []

    async def receive() -> Any:
        await forever()

    async def send(event: Any) -> None:
        events.append(event)

    await client.gateway(scope, receive, send)
    assert events[0]["status"] == 408
    assert (b"connection", b"close") in events[0]["headers"]


async def test_trace_and_request_ids_are_echoed_or_generated(client: Client) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await client.ask("GET", "/nothing", headers={"traceparent": trace, "x-request-id": "abc-1"})
    assert answer.headers["traceparent"] == trace
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.json["trace_id"] == trace[3:35]
    bad = {"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01", "x-request-id": "a b\x7f"}
    for headers in ({}, bad, {"x-request-id": "a" * 129, "traceparent": trace.upper()}):
        made = await client.ask("GET", "/nothing", headers=headers)
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", made.headers["traceparent"])
        assert made.headers["x-request-id"] == made.json["trace_id"] == made.headers["traceparent"][3:35]


async def test_call_carries_request_and_trace_ids(client: Client) -> None:
    client.channel.answers["GetTweet"] = tweet_pb2.SerializedTweet(tweet=JOINED)
    answer = await client.ask("GET", "/v1/tweets/5", headers={"x-request-id": "abc-1"})
    call = client.channel.asked[0][2]
    assert (call.request_id, call.traceparent, call.caller) == ("abc-1", answer.headers["traceparent"], "")
    assert call.actor.user_id == 0


@pytest.mark.parametrize("name", ["authorization", "content-type", "idempotency-key", "x-request-id"])
async def test_repeated_singleton_header_is_400(client: Client, name: str) -> None:
    events: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        events.append(event)

    headers = [(name.encode(), b"a"), (b"accept", b"x"), (b"accept", b"y"), (name.encode(), b"b")]
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/livez",
        "raw_path": b"/livez",
        "query_string": b"",
        "headers": headers,
    }
    await client.gateway(scope, receive, send)
    assert events[0]["status"] == 400
    scope["headers"] = headers[:3]
    events.clear()
    await client.gateway(scope, receive, send)
    assert events[0]["status"] == 200


async def test_unexpected_error_is_500_with_id_only(client: Client) -> None:
    client.channel.answers["GetTweet"] = ZeroDivisionError("secret text")
    with structlog.testing.capture_logs() as logs:
        answer = await client.ask("GET", "/v1/tweets/5")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert logs[0]["error_id"] in answer.json["detail"]


async def test_unavailable_service_is_503_with_retry_after(client: Client) -> None:
    client.channel.answers["GetTweet"] = errors.unavailable("the store is away", 2)
    answer = await client.ask("GET", "/v1/tweets/5")
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")


async def test_requests_above_bound_are_503(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MAX_ACTIVE", 2)
    gate = asyncio.Event()

    async def wait() -> Any:
        await gate.wait()
        return tweet_pb2.SerializedTweet(tweet=JOINED)

    client.channel.answers["GetTweet"] = lambda request: wait()
    running = [asyncio.create_task(client.ask("GET", "/v1/tweets/5")) for _ in range(2)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        refused = await client.ask("GET", "/v1/tweets/5")
        probes = [await client.ask("GET", path) for path in ("/livez", "/readyz")]
    assert (refused.status, refused.headers["retry-after"], refused.json["code"]) == (503, "1", "overloaded")
    assert [one.status for one in probes] == [200, 200]
    gate.set()
    assert [(await one).status for one in running] == [200, 200]
    assert (await client.ask("GET", "/v1/tweets/5")).status == 200


async def test_rate_limits_count_client_behind_trusted_proxy_only(limited: Callable[..., Client]) -> None:
    path, first, second = "/v1/tweets/1", {"x-forwarded-for": "192.0.2.7"}, {"x-forwarded-for": "192.0.2.8"}
    behind = limited(reads_per_minute=1, trusted_proxies="10.0.0.0/8")
    found = [
        (await behind.ask("GET", path, headers=sent, address="10.1.2.3")).status for sent in (first, second, first)
    ]
    assert [status == 429 for status in found] == [False, False, True]
    # Any client may send the header; the gateway ignores it unless the peer is a trusted proxy.
    found = [(await behind.ask("GET", path, headers=sent, address="203.0.113.5")).status for sent in (first, second)]
    assert [status == 429 for status in found] == [False, True]


async def test_rate_limits_count_invalid_tokens(limited: Callable[..., Client]) -> None:
    client = limited(reads_per_minute=2)
    forged = {"authorization": "Bearer forged"}
    found = [(await client.ask("GET", "/v1/tweets/1", headers=forged)).status for _ in range(3)]
    assert found == [401, 401, 429]


async def test_rate_limits_count_logins_by_address_despite_token(limited: Callable[..., Client]) -> None:
    client = limited(logins_per_minute=1)
    body = {"username": "ada", "password": "x"}
    found = [
        (await client.json("POST", "/v1/auth/login", body, signed_in=signed_in)).status for signed_in in (True, False)
    ]
    assert found == [501, 429]


async def test_rate_limits_count_by_user_and_by_address(limited: Callable[..., Client]) -> None:
    client = limited(reads_per_minute=2)
    client.channel.answers["GetTweet"] = tweet_pb2.SerializedTweet(tweet=JOINED)
    first = await client.ask("GET", "/v1/tweets/5")
    assert first.headers["x-rate-limit-remaining"] == "1"
    assert first.headers["ratelimit-policy"] == '"read";q=2;w=60'
    await client.ask("GET", "/v1/tweets/5")
    refused = await client.ask("GET", "/v1/tweets/5")
    assert refused.status == 429
    assert refused.json["code"] == "rate_limited"
    assert int(refused.headers["retry-after"]) >= 1
    assert len([name for name, _ in refused.raw_headers if name == b"retry-after"]) == 1
    assert (await client.ask("GET", "/v1/tweets/5", address="192.0.2.9")).status == 200
    assert (await client.ask("GET", "/v1/tweets/5", signed_in=True)).status == 200


async def test_page_numbers_follow_cursors(client: Client) -> None:
    pages = {"": (1, "b"), "b": (3, "d"), "d": (5, "")}
    client.channel.answers["ListHomeTimeline"] = lambda request: page(
        *range(pages[request.cursor][0], pages[request.cursor][0] + request.page_size), cursor=pages[request.cursor][1]
    )
    answer = await client.ask("GET", "/v1/timelines/home?page=2&limit=2&sort=latest", signed_in=True)
    assert [one["id"] for one in answer.json["tweets"]] == ["3", "4"]
    assert answer.headers["deprecation"].startswith("@")
    plain = await client.ask("GET", "/v1/timelines/home?limit=2", signed_in=True)
    assert "deprecation" not in plain.headers
    assert (await client.ask("GET", "/v1/timelines/home?page=1&limit=2", signed_in=True)).json["tweets"][0]["id"] == "1"


@pytest.mark.usefixtures("contract_deadlines")
async def test_page_past_end_is_empty_and_too_deep_is_400(client: Client) -> None:
    client.channel.answers["ListHomeTimeline"] = lambda request: page(1, 2)
    answer = await client.ask("GET", "/v1/timelines/home?page=3&limit=2", signed_in=True)
    assert (answer.json["tweets"], answer.json["next_cursor"]) == ([], "")
    for deep in ("1000000", "9223372036854775807"):
        refused = await client.ask("GET", f"/v1/timelines/home?page={deep}", signed_in=True)
        assert (refused.status, refused.json["violations"][0]["field"]) == (400, "page")
    client.channel.answers["ListHomeTimeline"] = lambda request: page(cursor="more")
    endless = await client.ask("GET", "/v1/timelines/home?page=9", signed_in=True)
    assert endless.status == 504


async def test_page_after_partial_page_is_partial(client: Client) -> None:
    client.channel.answers["ListHomeTimeline"] = lambda request: page(1, 2, cursor="again", partial=True)
    answer = await client.ask("GET", "/v1/timelines/home?page=3&limit=2", signed_in=True)
    assert answer.json == {"tweets": [], "next_cursor": "again", "partial": True}


async def test_livez_and_readyz_are_200(client: Client) -> None:
    assert (await client.ask("GET", "/livez")).status == 200
    ready = await client.ask("GET", "/readyz")
    assert (ready.status, ready.json["services"]) == (200, {"tweet": "SERVING", "graph": "SERVING"})


async def test_metrics_on_public_port_is_404(client: Client) -> None:
    assert (await client.ask("GET", "/metrics")).status == 404


async def test_disconnected_client_gets_no_response(client: Client) -> None:
    events: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        events.append(event)

    headers = [(b"content-length", b"5"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/auth/login",
        "raw_path": b"/v1/auth/login",
        "query_string": b"",
        "headers": headers,
    }
    await client.gateway(scope, receive, send)
    assert events == []
    assert (await client.ask("GET", "/livez")).status == 200
