"""Which responses are compressed, and for which clients."""

from __future__ import annotations

import gzip

import pytest
from roost.identity.v1 import auth_service_pb2
from roost.tweet.v1 import tweet_pb2

from gateway_http.compression import MIN_BYTES, accepts_gzip
from tests.unit.gateway_http.conftest import Client

LONG = "a tweet of many words " * 200
GZIP = {"accept-encoding": "gzip, deflate, br"}


@pytest.fixture
def client(client: Client) -> Client:
    client.channel.answers["GetTweet"] = lambda request: tweet_pb2.SerializedTweet(
        tweet=tweet_pb2.Tweet(id=request.tweet_id, text=LONG if request.tweet_id == 5 else "short").SerializeToString()
    )
    return client


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("br, gzip;q=0.5", True),
        ("gzip ; q=1.0", True),
        ("*", True),
        ("*;q=0.1", True),
        ("identity;q=0, *", True),
        ("gzip;q=0.5, identity;q=0.5", True),
        ("", False),
        ("identity", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*;q=0", False),
        ("gzip;q=0.5, identity", False),
        ("gzip;q=2", False),
        ("gzip;q=nan", False),
        ("gzip;q=x", False),
        ("gzipped", False),
    ],
)
def test_accepts_gzip_compares_weights(accepted: str, expected: bool) -> None:
    assert accepts_gzip(accepted.encode()) is expected


async def test_large_read_with_gzip_accepted_is_compressed(client: Client) -> None:
    plain = await client.ask("GET", "/v1/tweets/5")
    small = await client.ask("GET", "/v1/tweets/5", headers=GZIP)
    assert "content-encoding" not in plain.headers
    assert small.headers["content-encoding"] == "gzip"
    assert gzip.decompress(small.body) == plain.body
    assert int(small.headers["content-length"]) == len(small.body) < len(plain.body) / 2
    for answer in (plain, small):
        assert answer.headers["vary"] == "authorization, accept-encoding"
    # The weak tag is the same for both forms, so either one can be revalidated with it.
    assert plain.headers["etag"] == small.headers["etag"]
    assert plain.headers["etag"].startswith("W/")


async def test_not_modified_has_neither_body_nor_encoding(client: Client) -> None:
    tag = (await client.ask("GET", "/v1/tweets/5", headers=GZIP)).headers["etag"]
    known = await client.ask("GET", "/v1/tweets/5", headers=GZIP | {"if-none-match": tag})
    assert (known.status, known.body) == (304, b"")
    assert not {"content-encoding", "content-length"} & known.headers.keys()
    assert known.headers["vary"] == "authorization, accept-encoding"


async def test_head_has_headers_of_compressed_response(client: Client) -> None:
    whole = await client.ask("GET", "/v1/tweets/5", headers=GZIP)
    head = await client.ask("HEAD", "/v1/tweets/5", headers=GZIP)
    assert head.body == b""
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert head.headers["content-encoding"] == "gzip"


async def test_small_error_and_write_responses_stay_plain(client: Client) -> None:
    client.channel.answers["Login"] = auth_service_pb2.LoginResponse(access_token="t" * 2 * MIN_BYTES)
    login = b'{"username": "alice", "password": "correct horse"}'
    answers = [
        await client.ask("GET", "/v1/tweets/6", headers=GZIP),
        await client.ask("GET", f"/v1/tweets/{'9' * 300}", headers=GZIP),
        await client.ask("POST", "/v1/auth/login", login, headers=GZIP),
    ]
    assert [one.status for one in answers] == [200, 400, 200]
    assert len(answers[2].body) > MIN_BYTES
    assert not [one for one in answers if "content-encoding" in one.headers]


async def test_connect_compresses_only_reads(client: Client) -> None:
    client.channel.answers["CreateTweet"] = tweet_pb2.SerializedTweet(
        tweet=tweet_pb2.Tweet(id=5, text=LONG).SerializeToString()
    )
    service = "/roost.tweet.v1.TweetService"
    read = await client.ask("POST", f"{service}/GetTweet", b'{"tweetId": "5"}', headers=GZIP)
    binary = await client.ask(
        "POST", f"{service}/GetTweet", b"\x08\x05", headers=GZIP | {"content-type": "application/proto"}
    )
    written = await client.ask("POST", f"{service}/CreateTweet", b'{"text": "a"}', headers=GZIP, signed_in=True)
    assert [one.status for one in (read, binary, written)] == [200, 200, 200]
    assert LONG.encode() in gzip.decompress(read.body)
    assert LONG.encode() in gzip.decompress(binary.body)
    assert "content-encoding" not in written.headers
    assert len(written.body) > MIN_BYTES
