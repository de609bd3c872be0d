"""Texts and questions as words: the same for both, so that what was written is found.

Words are folded (case, width, accents). Scripts without spaces, and emoji, are taken character by character; a word of theirs is then a
phrase. Nothing here is an operator: no input can become more than words.
"""

from __future__ import annotations

import re
import sys
import unicodedata

# No word that people look for is longer; what is longer is found by its beginning.
MAX_WORD_CHARS = 64
# The contract's bound of a tag.
MAX_TAG_CHARS = 100

# Thai, Lao, Burmese, Khmer, kana, Han: written without spaces.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_EMOJI = "\u2190-\u21ff\u2300-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
# Vowel signs and the like stand within words, though Python's \w leaves them out.
MARKS = re.escape("".join(c for c in map(chr, range(0x300, 0xFFFF)) if unicodedata.category(c)[0] == "M"))
_WORD = re.compile(rf"[{_ALONE}{_EMOJI}]|[^\W{_ALONE}]+(?:[{MARKS}]+[^\W{_ALONE}]*)*")
# Accents of Latin, Greek and Cyrillic: few people type them when they look for something.
_ACCENTS = dict.fromkeys(range(0x300, 0x370))


def fold(text: str) -> str:
    """The text without what people do not mind when they look for something: case, width, accents."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", decomposed).translate(_ACCENTS))


def words(text: str) -> tuple[str, ...]:
    """The folded words of the text in order, each of at most MAX_WORD_CHARS, interned: most recur in every tenth tweet."""
    return tuple(sys.intern(word[:MAX_WORD_CHARS]) for word in _WORD.findall(fold(text)))


def tag_key(tag: str) -> str:
    """What two spellings of one tag, mention or username have in common. Accents count: they make another tag."""
    return unicodedata.normalize("NFKC", tag.casefold())[:MAX_TAG_CHARS]
