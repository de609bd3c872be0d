"""Rules for profile texts and usernames."""

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
def test_normalize_field_with_forbidden_text_is_invalid(field: str, value: str) -> None:
    with pytest.raises(errors.RoostError) as caught:
        profile.normalize_field(field, value, f"profile.{field}")
    assert caught.value.violations[0].field == f"profile.{field}"


@pytest.mark.parametrize(
    ("field", "value"),
    [("display_name", "x" * 50), ("display_name", "أليس"), ("bio", "two\nlines"), ("bio", ""), ("location", "  ")]
    + [(field, "a\tb") for field in ("display_name", "bio", "location")],
)
def test_normalize_field_with_allowed_text_is_unchanged(field: str, value: str) -> None:
    assert profile.normalize_field(field, value) == value


@pytest.mark.parametrize(("written", "kept"), [("a\r\nb", "a\nb"), ("a\rb", "a\nb"), ("x\r\n" * 80, "x\n" * 80)])
def test_normalize_field_bio_line_breaks_become_line_feeds(written: str, kept: str) -> None:
    assert profile.normalize_field("bio", written) == kept


def test_normalize_field_decomposed_text_becomes_nfc() -> None:
    assert profile.normalize_field("display_name", "A\u030a") == "Å"


def test_new_core_without_display_name_uses_username() -> None:
    user_id = snowflake.first_id_at(snowflake.EPOCH_MS + 5_000) + 3
    user = user_pb2.User.FromString(profile.new_core(user_id, "Alice", user_pb2.Profile(bio="hi")))
    assert (user.id, user.username, user.display_name, user.bio) == (user_id, "Alice", "Alice", "hi")
    assert user.created_at.ToMilliseconds() == snowflake.EPOCH_MS + 5_000


def test_ref_of_core_has_its_first_five_fields() -> None:
    core = profile.new_core(7, "Alice", user_pb2.Profile(display_name="A.", bio="hi", avatar_url="https://a.b/c"))
    ref = user_pb2.UserRef.FromString(profile.ref_of(core))
    assert ref == user_pb2.UserRef(id=7, username="Alice", display_name="A.", avatar_url="https://a.b/c")
    # Concatenating serialised messages merges them, so a reference followed by its core equals the core.
    assert user_pb2.User.FromString(profile.ref_of(core) + core) == user_pb2.User.FromString(core)


@pytest.mark.parametrize(
    ("name", "reserved", "admin"), [("Admin", True, False), ("bossman", True, True), ("al", False, False)]
)
def test_is_reserved_in_any_case_is_true(name: str, reserved: bool, admin: bool) -> None:
    names = profile.UsernamePolicy(["BossMan"])
    for spelt in (name, name.upper(), name.title()):
        assert (names.is_reserved(spelt), names.is_admin(spelt)) == (reserved, admin)


@pytest.mark.parametrize("typed", ["ada", " ada ", "@ada", "\tada\n", " @ada"])
def test_login_username_with_spaces_and_at_sign_is_stripped(typed: str) -> None:
    assert profile.login_username(typed) == "ada"
