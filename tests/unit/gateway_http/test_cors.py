"""CORS: which origins may call the API."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from roost.tweet.v1 import tweet_pb2

from services.platform.config import Settings
from tests.unit.gateway_http.conftest import Answer, Client, make_client

PAGE = "https://app.example.org"
OTHER = "https://evil.example.org"


def allowing(*origins: str, **settings: Any) -> Client:
    client = make_client(cors_origins=origins, **settings)
    client.channel.answers["GetTweet"] = tweet_pb2.SerializedTweet(tweet=tweet_pb2.Tweet(id=5).SerializeToString())
    return client


async def preflight(client: Client, origin: str = PAGE, path: str = "/v1/tweets/5") -> Answer:
    headers = {
        "origin": origin,
        "access-control-request-method": "DELETE",
        "access-control-request-headers": "authorization",
    }
    return await client.ask("OPTIONS", path, headers=headers)


def cors_of(answer: Answer) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


def varies(answer: Answer) -> bool:
    return any(name == b"vary" and b"origin" in value for name, value in answer.raw_headers)


async def test_cors_without_setting_adds_no_headers() -> None:
    client = allowing()
    assert (await preflight(client)).status == 405
    answer = await client.ask("GET", "/v1/tweets/5", headers={"origin": PAGE})
    assert (answer.status, cors_of(answer), varies(answer)) == (200, set(), False)


async def test_preflight_of_allowed_origin_lists_methods_and_headers() -> None:
    answer = await preflight(allowing(PAGE))
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-methods"] == "DELETE, GET, HEAD, PATCH"
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "content-type", "idempotency-key"} <= set(allowed)
    assert "access-control-allow-credentials" not in answer.headers
    assert "content-length" not in answer.headers
    assert varies(answer)


async def test_preflight_of_other_origin_is_403_and_unknown_path_404() -> None:
    client = allowing(PAGE)
    refused = await preflight(client, OTHER)
    assert (refused.status, refused.json["code"], cors_of(refused)) == (403, "origin_not_allowed", set())
    assert varies(refused)
    assert (await preflight(client, path="/nothing")).status == 404
    assert (await client.ask("OPTIONS", "/v1/tweets/5", headers={"origin": PAGE})).status == 405


async def test_cors_headers_are_added_for_allowed_origin_only() -> None:
    client = allowing(PAGE, rate_limits=True, reads_per_minute=2)
    answers = [await client.ask("GET", "/v1/tweets/5", headers={"origin": PAGE}) for _ in range(3)]
    assert [one.status for one in answers] == [200, 200, 429]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == PAGE
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "ratelimit", "x-rate-limit-remaining", "etag"} <= set(exposed)
        assert varies(answer)
    for headers in ({"origin": OTHER}, {"origin": "null"}, {}):
        answer = await client.ask("GET", "/livez", headers=headers)
        assert (answer.status, cors_of(answer), varies(answer)) == (200, set(), True)


async def test_cors_any_origin_allows_no_credentials() -> None:
    client = allowing("*")
    for answer in (await preflight(client, OTHER), await client.ask("GET", "/v1/tweets/5", headers={"origin": OTHER})):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


def test_cors_origins_setting_is_split_and_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_CORS_ORIGINS", "https://App.example.org, http://localhost:3000")
    assert Settings().cors_origins == ("https://app.example.org", "http://localhost:3000")


@pytest.mark.parametrize(
    "origin", ["app.example.org", "https://a/b", "https://a/", "ftp://a", "null", "https://a,*", "https://"]
)
def test_cors_origins_setting_invalid_is_rejected(origin: str) -> None:
    with pytest.raises(ValidationError, match="must be origins such as"):
        Settings(cors_origins=origin)  # type: ignore[arg-type]
