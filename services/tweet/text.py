"""Normalizes tweet texts to NFC and checks that their weighted length is 1 to 280 and that they have no control
characters except line feed and tab. Nothing is trimmed, and bidirectional marks are allowed."""

from __future__ import annotations

import re
import unicodedata

from services.platform.rpc import errors
from services.shared.text.line_breaks import with_line_feeds
from services.shared.text.visible import is_visible
from services.tweet.weight import weighted_length

MAX_WEIGHT = 280
# The proto's bound, checked again after NFC, which may lengthen a text.
MAX_BYTES = 4_096

# C0 controls except line feed and tab, two non-characters that some clients cannot read, and lone surrogates, which
# UTF-8 cannot encode.
_REFUSED = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff\ud800-\udfff]")
# ASCII contains an emoji only as a keycap with a non-ASCII sign, and a URL only around a full stop. Without a URL each
# character weighs 1.
_ASCII_URL = re.compile(r"[^\s.]\.[A-Za-z]")


def normalize_text(text: str) -> str:
    """Returns the text as it is stored: in NFC, with LF for CR LF and CR. Raises INVALID_ARGUMENT on field `text` if it
    is empty, too long or contains a refused character."""
    text = with_line_feeds(text)
    if _REFUSED.search(text) is not None:
        raise errors.invalid_argument(
            "the text contains a control character: only line feeds and tabs are allowed", field="text"
        )
    text = unicodedata.normalize("NFC", text)
    if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
        raise errors.invalid_argument(f"the text is longer than {MAX_BYTES} bytes: shorten it", field="text")
    if not is_visible(text):
        raise errors.invalid_argument("the text has no visible character: write at least one", field="text")
    if weight(text) > MAX_WEIGHT:
        raise errors.invalid_argument(f"the text is longer than {MAX_WEIGHT} characters: shorten it", field="text")
    return text


def weight(text: str) -> int:
    """Returns the weighted length of an NFC text: exact up to MAX_WEIGHT, and some larger number above it."""
    if text.isascii() and _ASCII_URL.search(text) is None:
        return len(text)
    return weighted_length(text, MAX_WEIGHT)
