"""The rules for usernames and profile texts, and the encoding of profiles as serialized messages."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

from roost.identity.v1 import user_pb2

from services.platform.ids import snowflake
from services.platform.rpc import errors
from services.shared.text.line_breaks import with_line_feeds
from services.shared.text.visible import is_visible

# Maximum number of code points of each profile field; a longer text is rejected with INVALID_ARGUMENT. The numbers
# equal the limits in the proto. They are checked again here, because NFC normalization may lengthen a text.
MAX_CODE_POINTS: Mapping[str, int] = {
    "display_name": 50,
    "bio": 160,
    "location": 30,
    "website": 100,
    "avatar_url": 500,
}

# Usernames that no sign-up may use, because their users could impersonate the service, or because they collide with
# URLs of the web client.
RESERVED_NAMES = frozenset(
    (  # noqa: SIM905 (a list of words, not of quotation marks)
        "about abuse account accounts admin administrator api auth blog bookmarks compose contact everyone explore "
        "followers following help home info login logout mail media mentions messages mod moderation moderator "
        "news nobody notifications null official operator owner password postmaster privacy profile register reply "
        "roost root search security settings signin signout signup staff status suggestions support system tags "
        "team terms timeline timelines trending trust tweet tweets undefined user users verified webmaster"
    ).split()
)

# Characters that can reverse the direction of all following text on the reader's page, even outside the profile.
_BIDI_CONTROLS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
# The control characters that each text field may contain. The other fields are URLs, which may contain none.
_CONTROLS_ALLOWED: Mapping[str, str] = {"display_name": "\t", "location": "\t", "bio": "\t\n"}
_NONCHARACTERS = frozenset("\ufffe\uffff")


def fold_username(username: str) -> str:
    """Returns the key under which a username is unique: the name in lower case."""
    return username.lower()


def fold_email(email: str) -> str:
    """Returns the key under which an e-mail address is unique: the address in lower case.

    RFC 5321 allows case-sensitive local parts, but no mail provider in use distinguishes them by case.
    """
    return email.lower()


class UsernamePolicy:
    """Decides which usernames are reserved and which users are administrators. `admins` are the usernames of the
    setting `admins`."""

    def __init__(self, admins: Iterable[str]) -> None:
        self._admins = frozenset(map(fold_username, admins))

    def is_reserved(self, username: str) -> bool:
        """Returns whether the name is reserved, in upper or lower case. No sign-up may use a reserved name, but an
        import may."""
        key = fold_username(username)
        # Names in the setting `admins` are reserved, because a user who signed up with one would be an administrator.
        return key in RESERVED_NAMES or key in self._admins

    def is_admin(self, username: str) -> bool:
        """Returns whether the setting `admins` contains this username, in upper or lower case."""
        return fold_username(username) in self._admins


def login_username(username: str) -> str:
    """Returns the username without surrounding spaces and without a leading `@`, as users may type it at log-in."""
    return username.strip().removeprefix("@")


def normalize_field(field: str, value: str, path: str = "") -> str:
    """Returns the value of a profile field in NFC, with line breaks as LF.

    Raises INVALID_ARGUMENT if the value has control characters (allowed are tabs in `display_name`, `location` and
    `bio`, and line breaks in `bio`) or bidirectional control characters, if a display name has no visible character, or
    if the normalized value is longer than MAX_CODE_POINTS. The error names the request field `path`, by default
    `field`. Removes no characters.
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
    """Returns a new user's core: a serialized User with the fields 1 to 9 (id to created_at). Raises INVALID_ARGUMENT
    if `normalize_field` rejects a text; the error names the field below `path`."""
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
    """Returns a serialized UserRef with the fields 1 to 5 of the core (id, username, display name, avatar,
    verified)."""
    user = user_pb2.User.FromString(core)
    return user_pb2.UserRef(
        id=user.id,
        username=user.username,
        display_name=user.display_name,
        avatar_url=user.avatar_url,
        verified=user.verified,
    ).SerializeToString()
