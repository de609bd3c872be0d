"""The rules for usernames and profile texts, and the encoding of profiles as serialised messages."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

from roost.identity.v1 import user_pb2

from services.platform.ids import snowflake
from services.platform.rpc import errors
from services.shared.text.line_breaks import with_line_feeds
from services.shared.text.visible import is_visible

# Equal to the limits in the proto. Checked again here, because normalisation may lengthen a text.
MAX_CODE_POINTS: Mapping[str, int] = {
    "display_name": 50,
    "bio": 160,
    "location": 30,
    "website": 100,
    "avatar_url": 500,
}

# Usernames that could impersonate the service, or that collide with URLs of the web client.
RESERVED_NAMES = frozenset(
    (  # noqa: SIM905 (a list of words, not of quotation marks)
        "about abuse account accounts admin administrator api auth blog bookmarks compose contact everyone explore "
        "followers following help home info login logout mail media mentions messages mod moderation moderator "
        "news nobody notifications null official operator owner password postmaster privacy profile register reply "
        "roost root search security settings signin signout signup staff status suggestions support system tags "
        "team terms timeline timelines trending trust tweet tweets undefined user users verified webmaster"
    ).split()
)

# These characters reverse the direction of all following text, even outside the profile, on the reader's page.
_BIDI_CONTROLS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
# The fields that are missing here are URLs, which may contain no control characters.
_CONTROLS_ALLOWED: Mapping[str, str] = {"display_name": "\t", "location": "\t", "bio": "\t\n"}
_NONCHARACTERS = frozenset("\ufffe\uffff")


def fold_username(username: str) -> str:
    """Returns the key under which a username is unique: the name in lower case."""
    return username.lower()


def fold_email(email: str) -> str:
    """Returns the key under which an e-mail address is unique: the address in lower case.

    By the standard, local parts are case-sensitive; no mail provider in use treats them so.
    """
    return email.lower()


class UsernamePolicy:
    """Decides which usernames are reserved and which users are administrators. `admins` are the usernames of the setting `admins`."""

    def __init__(self, admins: Iterable[str]) -> None:
        self._admins = frozenset(map(fold_username, admins))

    def is_reserved(self, username: str) -> bool:
        """Returns whether sign-ups may not use this name, in any case. Imports may."""
        key = fold_username(username)
        # The first user to sign up with an administrator's name would be an administrator.
        return key in RESERVED_NAMES or key in self._admins

    def is_admin(self, username: str) -> bool:
        """Returns whether the setting `admins` contains this username, in any case."""
        return fold_username(username) in self._admins


def login_username(username: str) -> str:
    """Returns the username without surrounding spaces and without a leading `@`, as users may type it at log-in."""
    return username.strip().removeprefix("@")


def normalize_field(field: str, value: str, path: str = "") -> str:
    """Returns the value of a profile field in NFC, with line breaks as LF.

    Raises INVALID_ARGUMENT on the field `path` (default `field`) for control characters, except tabs in texts and line breaks in `bio`;
    for bidirectional overrides; for a display name without a visible character; and above MAX_CODE_POINTS after normalisation. It removes
    no characters.
    """
    path = path or field
    text = unicodedata.normalize("NFC", with_line_feeds(value))
    allowed = _CONTROLS_ALLOWED.get(field, "")
    for character in text:
        if character in allowed:
            continue
        if unicodedata.category(character) == "Cc" or character in _NONCHARACTERS:
            raise errors.invalid_argument(f"{path}: control characters are not allowed: remove them", field=path)
        if character in _BIDI_CONTROLS:
            raise errors.invalid_argument(
                f"{path}: bidirectional control characters are not allowed: remove them", field=path
            )
    if field == "display_name" and not is_visible(text):
        raise errors.invalid_argument(f"{path}: a name must have at least one visible character", field=path)
    if len(text) > MAX_CODE_POINTS[field]:
        raise errors.invalid_argument(f"{path}: must have at most {MAX_CODE_POINTS[field]} code points", field=path)
    return text


def new_core(user_id: int, username: str, profile: user_pb2.Profile, path: str = "profile") -> bytes:
    """Returns a new user's core: a serialised User with fields 1 to 9. Raises INVALID_ARGUMENT, on fields below `path`,
    for texts that `normalize_field` rejects."""
    user = user_pb2.User(id=user_id, username=username)
    user.created_at.FromMilliseconds(snowflake.timestamp_ms(user_id))
    for name in MAX_CODE_POINTS:
        value = getattr(profile, name) or (username if name == "display_name" else "")
        setattr(user, name, normalize_field(name, value, f"{path}.{name}"))
    return user.SerializeToString()


def changed_core(core: bytes, changes: Mapping[str, str]) -> bytes:
    """Returns the core with the given profile fields replaced. Raises INVALID_ARGUMENT for texts that `normalize_field`
    rejects."""
    user = user_pb2.User.FromString(core)
    for name, value in changes.items():
        setattr(user, name, normalize_field(name, value))
    return user.SerializeToString()


def ref_of(core: bytes) -> bytes:
    """Returns the serialised UserRef of a core: its fields 1 to 5 (id, username, display name, avatar, verified)."""
    user = user_pb2.User.FromString(core)
    return user_pb2.UserRef(
        id=user.id,
        username=user.username,
        display_name=user.display_name,
        avatar_url=user.avatar_url,
        verified=user.verified,
    ).SerializeToString()
