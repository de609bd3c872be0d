"""Normalizes tweet texts to NFC, and rejects texts whose weighted length is not 1 to 280 or that have control
characters other than line feed and tab. Does not trim white space; allows bidirectional marks."""

from __future__ import annotations

import re
import unicodedata

from services.platform.rpc import errors
from services.shared.text.line_breaks import with_line_feeds
from services.shared.text.visible import is_visible
from services.tweet.weight import weighted_length

MAX_WEIGHT = 280
# Maximum length in bytes of UTF-8. The proto has the same limit, but NFC may make a text longer, so it is checked
# again.
MAX_BYTES = 4_096

# C0 controls except line feed and tab, two non-characters that some clients cannot read, and lone surrogates, which
# UTF-8 cannot encode.
_REFUSED = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff\ud800-\udfff]")
# Finds a full stop that may be part of a URL. An ASCII text without one contains no URL, and no emoji either, because
# each emoji has a character that is not ASCII. So each of its characters weighs 1.
_ASCII_URL = re.compile(r"[^\s.]\.[A-Za-z]")


def normalize_text(text: str) -> str:
    """Returns the text as it is stored: in NFC, with line feeds in place of CR LF and CR. Raises INVALID_ARGUMENT for
    the field `text` if the text has no visible character, is too long or has a control character."""
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
    """Returns the weighted length of a text in NFC. A result above MAX_WEIGHT is only a lower bound."""
    if text.isascii() and _ASCII_URL.search(text) is None:
        return len(text)
    return weighted_length(text, MAX_WEIGHT)
