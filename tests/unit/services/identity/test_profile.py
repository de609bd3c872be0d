"""What may be written in a profile."""

from __future__ import annotations

import pytest
from roost.identity.v1 import user_pb2

from services.identity import profile
from services.platform.ids import snowflake
from services.platform.rpc import errors

REFUSED = {
    "a control character in a name": ("display_name", "a\x07b"),
    "a line break in a name": ("display_name", "a\nb"),
    "NUL in a bio": ("bio", "a\0b"),
    "a line break in a place": ("location", "a\r\nb"),
    "a tab in an address": ("website", "https://a.b/\tc"),
    "an override in a name": ("display_name", "evil\u202etxt"),
    "an isolate in a bio": ("bio", "\u2066abc"),
    "a noncharacter": ("location", "a\uffff"),
    "a name of spaces": ("display_name", "   "),
    "a name of zero-width characters": ("display_name", "\u200b\u200d\u2060"),
    "a name of a filler": ("display_name", "\u3164"),
    "an empty name": ("display_name", ""),
    "a name that is too long": ("display_name", "x" * 51),
    "a name that normalising makes too long": ("display_name", "\u0958" * 26),
    "a bio that is too long": ("bio", "x" * 161),
}


@pytest.mark.parametrize(("field", "value"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(field: str, value: str) -> None:
    with pytest.raises(errors.RoostError) as caught:
        profile.normalize_field(field, value, f"profile.{field}")
    assert caught.value.violations[0].field == f"profile.{field}"


@pytest.mark.parametrize(
    ("field", "value"),
    [("display_name", "x" * 50), ("display_name", "أليس"), ("bio", "two\nlines"), ("bio", ""), ("location", "  ")]
    + [(field, "a\tb") for field in ("display_name", "bio", "location")],
)
def test_kept_as_it_is(field: str, value: str) -> None:
    assert profile.normalize_field(field, value) == value


@pytest.mark.parametrize(("written", "kept"), [("a\r\nb", "a\nb"), ("a\rb", "a\nb"), ("x\r\n" * 80, "x\n" * 80)])
def test_clean_turns_every_line_break_of_a_bio_into_a_line_feed(written: str, kept: str) -> None:
    assert profile.normalize_field("bio", written) == kept


def test_stored_composed() -> None:
    assert profile.normalize_field("display_name", "A\u030a") == "Å"


def test_a_new_user_shows_the_username_until_told_otherwise() -> None:
    user_id = snowflake.first_id_at(snowflake.EPOCH_MS + 5_000) + 3
    user = user_pb2.User.FromString(profile.new_core(user_id, "Alice", user_pb2.Profile(bio="hi")))
    assert (user.id, user.username, user.display_name, user.bio) == (user_id, "Alice", "Alice", "hi")
    assert user.created_at.ToMilliseconds() == snowflake.EPOCH_MS + 5_000


def test_the_reference_is_the_cores_first_fields() -> None:
    core = profile.new_core(7, "Alice", user_pb2.Profile(display_name="A.", bio="hi", avatar_url="https://a.b/c"))
    ref = user_pb2.UserRef.FromString(profile.ref_of(core))
    assert ref == user_pb2.UserRef(id=7, username="Alice", display_name="A.", avatar_url="https://a.b/c")
    # Concatenation is merge: a core behind its own reference changes nothing.
    assert user_pb2.User.FromString(profile.ref_of(core) + core) == user_pb2.User.FromString(core)


@pytest.mark.parametrize(
    ("name", "reserved", "admin"), [("Admin", True, False), ("bossman", True, True), ("al", False, False)]
)
def test_names_are_reserved_whatever_their_case(name: str, reserved: bool, admin: bool) -> None:
    names = profile.UsernamePolicy(["BossMan"])
    for spelt in (name, name.upper(), name.title()):
        assert (names.is_reserved(spelt), names.is_admin(spelt)) == (reserved, admin)


@pytest.mark.parametrize("typed", ["ada", " ada ", "@ada", "\tada\n", " @ada"])
def test_login_username_drops_what_surrounds_a_name(typed: str) -> None:
    assert profile.login_username(typed) == "ada"
