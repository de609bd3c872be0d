"""Invalid input over HTTP: a 4xx problem, never a 500, and nothing is stored."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from services.platform.rpc.contract import methods
from tests.functional.conftest import Person, Web
from tests.functional.test_routes import RECIPES, bindings, filled
from tests.waiting import WITHIN_S

BAD_IDS = [
    "0",
    "-1",
    "1.0",
    "1e3",
    "1_000",
    "%D9%A3",
    "+5",
    "%205",
    "0x1",
    "007",
    str(2**63),
    "9" * 25,
    "x",
    "%00",
    "null",
]
BAD_NUMBERS: list[Any] = ["abc", "1.5", 1.5, True, None, [], {}, "1e3", "1_000", "٣", " 5", 2**63, -(2**63) - 1]
BAD_STRINGS: list[Any] = [1, True, [], {}, "\x00", "\ud800", "x" * 70_000]
BODIES = [
    b"",
    b"null",
    b"[]",
    b'""',
    b"{",
    b'{"text":',
    b"\xff\xfe{}",
    b'{"text": "\xff"}',
    b'{"text":"a","text":"b"}',
    b'{"text": NaN}',
    b'{"text": "\\ud800"}',
    b'{"texts": "a"}',
    b'{"text": "a", "user_id": "1"}',
    b'{"text": "a"} {}',
    b"[" * 5000,
    b'{"a":' * 5000,
    b'{"text": ' + b"1" * 5000 + b"}",
]
TEXTS = [
    "",
    " ",
    "\n\t ",
    "\u200b\u200d",
    "a\x00b",
    "a\x07b",
    "\ufffe",
    "x" * 281,
    "漢" * 141,
    "é" * 4000,
    "e" + "\u0301" * 3000,
]


def is_problem(answer: Any) -> bool:
    if not 400 <= answer.status_code < 500 or not answer.headers["content-type"].startswith("application/problem+json"):
        return False
    problem = answer.json()
    return {"type", "title", "status", "detail", "code"} <= set(problem) and problem["status"] == answer.status_code


async def stored(web: Web, person: Person) -> int:
    answer = await web.call("GET", f"/v1/users/{person.id}/tweets")
    return len(answer.json()["tweets"])


@pytest.mark.long("cluster")
async def test_request_bad_id_in_any_path_is_refused(web: Web) -> None:
    alice, admin = await web.sign_up("alice"), await web.admin()
    faults = []
    for recipe in RECIPES:
        for verb, template in bindings(recipe.path)[:1]:
            for name in ("user_id", "tweet_id"):
                if f"{{{name}}}" not in template:
                    continue
                for bad in BAD_IDS:
                    path = template.replace(f"{{{name}}}", bad)
                    answer = await web.call(verb, path, admin if recipe.admin else alice)
                    if not is_problem(answer):
                        faults.append((verb, path, answer.status_code, answer.text[:80]))
    assert faults == []


@pytest.mark.long("cluster")
@pytest.mark.parametrize("body", BODIES)
async def test_create_tweet_bad_body_is_refused(web: Web, body: bytes) -> None:
    alice = await web.sign_up("alice")
    answer = await web.call("POST", "/v1/tweets", alice, content=body, headers={"content-type": "application/json"})
    assert is_problem(answer), (answer.status_code, answer.text)
    assert await stored(web, alice) == 0


@pytest.mark.long("cluster")
async def test_request_bad_value_of_any_field_is_refused(web: Web) -> None:
    """Sends values of the wrong type or size for every scalar field of the body of every served method."""
    alice, admin = await web.sign_up("alice"), await web.admin()
    scene = {"alice": alice, "bob": alice, "tweet": "1", "bobs_tweet": "1", "refresh": "x"}
    scene |= {"user_id": alice.id, "tweet_id": "1", "username": "bob", "reply_id": "1", "session_id": "1", "tag": "x"}
    faults = []
    for recipe in RECIPES:
        verb, template = bindings(recipe.path)[0]
        if verb not in ("POST", "PATCH", "PUT") or recipe.path.endswith(("Logout", "PauseFanout", "ResumeFanout")):
            continue
        path = filled(template, scene)
        for field in methods()[recipe.path].request.DESCRIPTOR.fields:
            if f"{{{field.name}}}" in template or field.is_repeated or field.message_type is not None:
                continue
            values = BAD_STRINGS if field.type == FieldDescriptor.TYPE_STRING else BAD_NUMBERS
            for value in values:
                if value is None:
                    continue
                body = json.dumps({field.name: value}).encode()
                answer = await web.call(
                    verb,
                    path,
                    admin if recipe.admin else alice,
                    content=body,
                    headers={"content-type": "application/json"},
                )
                if not is_problem(answer):
                    faults.append((verb, path, field.name, str(value)[:20], answer.status_code, answer.text[:80]))
    assert faults == []
    assert await stored(web, alice) == 0


@pytest.mark.long("cluster")
@pytest.mark.parametrize("text", TEXTS)
async def test_create_tweet_invalid_text_is_refused(web: Web, text: str) -> None:
    alice = await web.sign_up("alice")
    answer = await web.call("POST", "/v1/tweets", alice, json={"text": text})
    assert answer.status_code == 400, answer.text
    assert is_problem(answer)
    assert await stored(web, alice) == 0


@pytest.mark.long("cluster")
@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=101",
        "limit=x",
        "cursor=x",
        "cursor=" + "A" * 600,
        "nope=1",
        "limit=1&limit=2",
        "page=0",
        "page=x",
        "sort=oldest",
        "mode=best",
        "limit=%ff",
        "limit=1e1",
    ],
)
async def test_home_bad_query_is_refused(web: Web, query: str) -> None:
    alice = await web.sign_up("alice")
    answer = await web.call("GET", f"/v1/timelines/home?{query}", alice)
    assert answer.status_code == 400, answer.text
    assert is_problem(answer)


async def test_cursor_of_other_user_or_list_is_refused(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    for number in range(3):
        await web.post(alice, f"tweet {number}")
        await web.post(bob, f"tweet {number}")
    first = (await web.call("GET", "/v1/timelines/home?limit=1", alice)).json()
    cursor = first["next_cursor"]
    assert cursor
    again = await web.call("GET", f"/v1/timelines/home?limit=1&cursor={cursor}", alice)
    assert again.status_code == 200
    assert again.json()["tweets"][0]["id"] < first["tweets"][0]["id"]
    flipped = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
    for path, person, token in (
        ("/v1/timelines/home", bob, cursor),
        ("/v1/timelines/home", alice, flipped),
        ("/v1/timelines/home", alice, cursor[:10]),
        (f"/v1/users/{alice.id}/tweets", alice, cursor),
        ("/v1/tweets", alice, cursor),
    ):
        answer = await web.call("GET", f"{path}?cursor={token}", person)
        assert answer.status_code == 400, (path, answer.text)
        assert is_problem(answer)


@pytest.mark.long("cluster")
@pytest.mark.parametrize(
    ("verb", "path", "headers", "content", "status"),
    [
        ("GET", "/nowhere", {}, None, 404),
        ("PATCH", "/v1/timelines/home", {}, None, 405),
        ("POST", "/v1/tweets", {"content-type": "text/plain"}, b"hello", 415),
        ("POST", "/v1/tweets", {"content-type": "application/json", "content-encoding": "gzip"}, b"{}", 415),
        ("POST", "/v1/tweets", {"content-type": "application/json"}, b" " * 70_000 + b"{}", 413),
        ("GET", "/v1/timelines/home", {"authorization": "Bearer nonsense"}, None, 401),
        ("GET", "/v1/tweets", {"authorization": "Bearer nonsense"}, None, 401),
        ("GET", "/v1/tweets", {"authorization": "Basic Zm9vOmJhcg=="}, None, 401),
        ("GET", "/v1/timelines/home", {}, None, 401),
        ("GET", "/v1/users/me", {}, None, 401),
        ("GET", "/admin/v1/fanout/lag", {}, None, 401),
    ],
)
async def test_gateway_refusal_is_problem_with_status(
    web: Web, verb: str, path: str, headers: dict[str, str], content: bytes | None, status: int
) -> None:
    alice = await web.sign_up("alice")
    person = alice if status not in (401,) else None
    answer = await web.call(verb, path, person, headers=headers, content=content)
    assert answer.status_code == status, answer.text
    assert is_problem(answer)
    if status == 405:
        assert "GET" in answer.headers["allow"]
    if status == 401:
        assert "www-authenticate" in answer.headers


async def test_request_without_permission_is_refused(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    tweet = await web.post(alice, "mine")
    for verb, path, body, status in (
        ("GET", "/admin/v1/fanout/lag", None, 403),
        ("DELETE", f"/v1/tweets/{tweet}", None, 403),
        ("PATCH", f"/v1/users/{alice.id}", {"bio": "x"}, 403),
        ("POST", "/v1/tweets", {"text": "as alice", "user_id": alice.id}, 403),
        ("GET", f"/v1/users/{alice.id}/blocks", None, 403),
        ("POST", f"/v1/users/{bob.id}/follow", None, 400),
        ("POST", "/v1/users/999/follow", None, 404),
        ("GET", "/v1/tweets/999", None, 404),
        ("GET", "/v1/users/999", None, 404),
        ("POST", "/v1/auth/request-password-reset", {"email": "alice@example.com"}, 501),
        ("POST", "/v1/tweets", {"text": "a picture", "media_ids": ["1"]}, 501),
    ):
        answer = await web.call(verb, path, bob, **({} if body is None else {"json": body}))
        assert answer.status_code == status, (verb, path, answer.text)
    assert await stored(web, bob) == 0
    assert (await web.call("GET", f"/v1/tweets/{tweet}")).status_code == 200


@pytest.mark.long("cluster")
async def test_server_malformed_bytes_are_answered_or_closed(web: Web) -> None:
    """Each malformed request is answered or its connection closed, and the server still serves the next one."""
    port = web.client.base_url.port
    for raw in (
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /v1/tweets HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /v1/users/%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/../v1/tweets HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"BREW /v1/tweets HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw)
        answer = await asyncio.wait_for(reader.read(4096), WITHIN_S)
        assert b" 500 " not in answer.split(b"\r\n", 1)[0], raw[:60]
        writer.close()
    assert (await web.call("GET", "/livez")).status_code == 200
