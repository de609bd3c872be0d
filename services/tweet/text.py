"""What may stand in a tweet: NFC, 1 to 280 by weighted length, no control characters but line feed and tab. Nothing is
stripped, and bidi marks stay."""

from __future__ import annotations

import re
import unicodedata

from services.platform.rpc import errors
from services.shared.text.line_breaks import with_line_feeds
from services.shared.text.visible import is_visible
from services.tweet.weight import weighted_length

MAX_WEIGHT = 280
# The bound of the contract, once more after NFC, which may lengthen a text.
MAX_BYTES = 4_096

# C0 controls but line feed and tab, the two non-characters that readers choke on, and surrogates, which are no
# characters at all.
_REFUSED = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff\ud800-\udfff]")
# ASCII holds emoji only with a keycap sign and a URL only around a full stop: without that each character weighs 1.
_ASCII_URL = re.compile(r"[^\s.]\.[A-Za-z]")


def normalize_text(text: str) -> str:
    """Returns the text as it is stored: in NFC, with LF for CR LF and CR. INVALID_ARGUMENT on `text` if it may not stand in a
    tweet."""
    text = with_line_feeds(text)
    if _REFUSED.search(text) is not None:
        raise errors.invalid_argument("text holds a control character", field="text")
    text = unicodedata.normalize("NFC", text)
    if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
        raise errors.invalid_argument(f"text is longer than {MAX_BYTES} bytes", field="text")
    if not is_visible(text):
        raise errors.invalid_argument("text is empty", field="text")
    if weight(text) > MAX_WEIGHT:
        raise errors.invalid_argument(f"text is longer than {MAX_WEIGHT} characters", field="text")
    return text


def weight(text: str) -> int:
    """The weighted length of an NFC text, exact up to MAX_WEIGHT; above it only that it is above."""
    if text.isascii() and _ASCII_URL.search(text) is None:
        return len(text)
    return weighted_length(text, MAX_WEIGHT)
