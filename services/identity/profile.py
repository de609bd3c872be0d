"""What people may call themselves and write about themselves, and the fragments made of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

from roost.identity.v1 import user_pb2

from services.platform.ids import snowflake
from services.platform.rpc import errors
from services.shared.text.line_breaks import with_line_feeds
from services.shared.text.visible import is_visible

# As in the contract; checked again because normalising may lengthen a text.
MAX_CODE_POINTS: Mapping[str, int] = {
    "display_name": 50,
    "bio": 160,
    "location": 30,
    "website": 100,
    "avatar_url": 500,
}

# Names that would pass for the service itself, or that addresses of the web client need.
RESERVED_NAMES = frozenset(
    (  # noqa: SIM905 (a list of words, not of quotation marks)
        "about abuse account accounts admin administrator api auth blog bookmarks compose contact everyone explore "
        "followers following help home info login logout mail media mentions messages mod moderation moderator "
        "news nobody notifications null official operator owner password postmaster privacy profile register reply "
        "roost root search security settings signin signout signup staff status suggestions support system tags "
        "team terms timeline timelines trending trust tweet tweets undefined user users verified webmaster"
    ).split()
)

# They turn the text behind them around, and with it whatever the reader's page shows next.
_BIDI_CONTROLS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
# Fields that are not here are addresses.
_CONTROLS_ALLOWED: Mapping[str, str] = {"display_name": "\t", "location": "\t", "bio": "\t\n"}
_NONCHARACTERS = frozenset("\ufffe\uffff")


def fold_username(username: str) -> str:
    """The key under which a name is unique: its case does not count."""
    return username.lower()


def fold_email(email: str) -> str:
    """The key under which an address is unique. Local parts differ by case in theory only: one person, one account."""
    return email.lower()


class Names:
    """Says which usernames are kept from sign-ups, and whose bearers are administrators; `admins` are the operator's."""

    def __init__(self, admins: Iterable[str]) -> None:
        self._admins = frozenset(map(fold_username, admins))

    def is_reserved(self, username: str) -> bool:
        """Returns whether nobody may sign up under this name, in whatever case. Imports may use it."""
        key = fold_username(username)
        # Whoever came first under an administrator's name would be one.
        return key in RESERVED_NAMES or key in self._admins

    def is_admin(self, username: str) -> bool:
        """Returns whether the operator made the bearer of this name an administrator."""
        return fold_username(username) in self._admins


def login_username(username: str) -> str:
    """Returns the name that somebody means who typed it with spaces around it, or with the `@` that others write."""
    return username.strip().removeprefix("@")


def clean(field: str, value: str, path: str = "") -> str:
    """The value of a profile field in NFC. INVALID_ARGUMENT on `path` (the field itself if empty) where it breaks a
    text rule.

    CR LF and CR become LF. Refused: control characters but tabs (none in addresses) and, in `bio`, line breaks; bidirectional overrides, a
    display name of nothing visible, and what is too long once normalised. Nothing is stripped silently.
    """
    path = path or field
    text = unicodedata.normalize("NFC", with_line_feeds(value))
    allowed = _CONTROLS_ALLOWED.get(field, "")
    for character in text:
        if character in allowed:
            continue
        if unicodedata.category(character) == "Cc" or character in _NONCHARACTERS:
            raise errors.invalid_argument(f"{path}: control characters are not allowed", field=path)
        if character in _BIDI_CONTROLS:
            raise errors.invalid_argument(f"{path}: bidirectional overrides are not allowed", field=path)
    if field == "display_name" and not is_visible(text):
        raise errors.invalid_argument(f"{path}: a name has at least one visible character", field=path)
    if len(text) > MAX_CODE_POINTS[field]:
        raise errors.invalid_argument(f"{path}: at most {MAX_CODE_POINTS[field]} code points", field=path)
    return text


def new_core(user_id: int, username: str, profile: user_pb2.Profile, path: str = "profile") -> bytes:
    """A new user's core: serialised User, fields 1 to 9. Errors as in `clean`, on fields below `path`."""
    user = user_pb2.User(id=user_id, username=username)
    user.created_at.FromMilliseconds(snowflake.timestamp_ms(user_id))
    for name in MAX_CODE_POINTS:
        value = getattr(profile, name) or (username if name == "display_name" else "")
        setattr(user, name, clean(name, value, f"{path}.{name}"))
    return user.SerializeToString()


def changed_core(core: bytes, changes: Mapping[str, str]) -> bytes:
    """The core with the given profile fields replaced. Errors as in `clean`."""
    user = user_pb2.User.FromString(core)
    for name, value in changes.items():
        setattr(user, name, clean(name, value))
    return user.SerializeToString()


def ref_of(core: bytes) -> bytes:
    """The serialised UserRef within a core: its fields 1 to 5."""
    user = user_pb2.User.FromString(core)
    return user_pb2.UserRef(
        id=user.id,
        username=user.username,
        display_name=user.display_name,
        avatar_url=user.avatar_url,
        verified=user.verified,
    ).SerializeToString()
