"""Line breaks, tabs and emoji in text of users are accepted in every form and stored in one."""

from __future__ import annotations

import pytest

from tests.functional.conftest import PASSWORD, Web

# Texts are normalized before they reach a store.
pytestmark = pytest.mark.long("cluster")

CRLF, CR = "a\r\nb", "a\rb"
# 160 code points when stored, 240 as sent.
LONG = "x\r\n" * 80


@pytest.mark.parametrize("written", [CRLF, CR])
async def test_text_line_breaks_are_stored_as_line_feeds(web: Web, written: str) -> None:
    ada = web.fresh("ada")
    body = {"username": ada, "email": f"{ada}@example.com", "password": PASSWORD, "profile": {"bio": written}}
    answer = await web.client.post("/v1/auth/signup", json=body)
    assert (answer.status_code, answer.json()["user"]["bio"]) == (201, "a\nb")
    ben = await web.sign_up("ben")
    answer = await web.call("PATCH", "/v1/users/me", ben, json={"bio": written})
    assert (answer.status_code, answer.json()["bio"]) == (200, "a\nb")
    answer = await web.call("POST", "/v1/tweets", ben, json={"text": written})
    assert (answer.status_code, answer.json()["text"]) == (201, "a\nb")
    answer = await web.call("PATCH", f"/v1/tweets/{answer.json()['id']}", ben, json={"text": f"{written}!"})
    assert (answer.status_code, answer.json()["text"]) == (200, "a\nb!")


async def test_bio_carriage_return_and_line_feed_count_once(web: Web) -> None:
    ben = await web.sign_up("ben")
    answer = await web.call("PATCH", "/v1/users/me", ben, json={"bio": LONG})
    assert (answer.status_code, answer.json()["bio"]) == (200, "x\n" * 80)
    assert (await web.call("PATCH", "/v1/users/me", ben, json={"bio": LONG + "x"})).status_code == 400


async def test_text_tabs_are_accepted_in_every_field(web: Web) -> None:
    ben = await web.sign_up("ben")
    written = {"display_name": "Ben\tB", "bio": "a\tb", "location": "a\tb"}
    answer = await web.call("PATCH", "/v1/users/me", ben, json=written)
    assert answer.status_code == 200, answer.text
    assert {name: answer.json()[name] for name in written} == written
    assert (await web.call("POST", "/v1/tweets", ben, json={"text": "a\tb"})).json()["text"] == "a\tb"


@pytest.mark.parametrize("field", ["display_name", "location"])
async def test_single_line_field_with_line_break_is_refused(web: Web, field: str) -> None:
    ben = await web.sign_up("ben")
    for written in (CRLF, CR, "a\nb"):
        assert (await web.call("PATCH", "/v1/users/me", ben, json={field: written})).status_code == 400


async def test_create_tweet_140_emoji_of_many_code_points_is_accepted(web: Web) -> None:
    ben = await web.sign_up("ben")
    text = "\u2764\ufe0f\u200d\U0001fa79" * 140
    answer = await web.call("POST", "/v1/tweets", ben, json={"text": text})
    assert (answer.status_code, answer.json()["text"]) == (201, text)
    assert (await web.call("POST", "/v1/tweets", ben, json={"text": text + "x"})).status_code == 400
