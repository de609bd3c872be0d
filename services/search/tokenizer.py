"""Texts and questions as words: the same for both, so that what was written is found.

Words are folded: case, width, accents, strokes through letters, vowel points. Scripts without spaces, and emoji, are taken character
by character; a word of theirs is then a phrase. Nothing here is an operator: no input can become more than words.
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

# Few people type these when they look for something: accents of Latin, Greek and Cyrillic, points of Hebrew, vowel signs of Arabic.
# Marks of other scripts (Indic vowels, kana voicing) make another word.
_OPTIONAL_MARKS = (
    (0x300, 0x36F),
    (0x483, 0x487),
    (0x591, 0x5C7),
    (0x610, 0x61A),
    (0x64B, 0x65F),
    (0x670, 0x670),
    (0x6D6, 0x6ED),
    (0x8CA, 0x8FF),
    (0x1AB0, 0x1AFF),
    (0x1DC0, 0x1DFF),
    (0xFB1E, 0xFB1E),
    (0xFE20, 0xFE2F),
)
# Letters that Unicode does not decompose, and whose names do not tell what they are a form of.
_OTHER_FORMS = {
    "æ": "ae",
    "œ": "oe",
    "þ": "th",
    "ð": "d",
    "ŋ": "n",
    "ı": "i",
    "ȷ": "j",
    # Arabic as it is typed: final forms for one another, Persian letters, alef with a sign of its own, and the stretching line.
    "ى": "ي",
    "ی": "ي",
    "ک": "ك",
    "ة": "ه",
    "ٱ": "ا",
    "ـ": "",
}
# Blocks with letters such as ł, ø, đ and ħ, which Unicode names by the letter that they are a form of.
_LATIN_BLOCKS = (
    (0x80, 0x2AF),
    (0x1D00, 0x1DBF),
    (0x1E00, 0x1EFF),
    (0x2C60, 0x2C7F),
    (0xA720, 0xA7FF),
    (0xAB30, 0xAB6F),
)
_NAMED_FORM = re.compile(r"LATIN SMALL LETTER ([A-Z]{1,2}) WITH .+")


def _folded_characters() -> dict[int, str]:
    """What stands for each decomposed, lower-case character that folding changes; empty for marks that are dropped."""
    made = {ord(letter): plain for letter, plain in _OTHER_FORMS.items()}
    for first, last in _OPTIONAL_MARKS:
        made |= {code: "" for code in range(first, last + 1) if unicodedata.category(chr(code)) == "Mn"}
    for first, last in _LATIN_BLOCKS:
        for code in range(first, last + 1):
            if named := _NAMED_FORM.fullmatch(unicodedata.name(chr(code), "")):
                made[code] = named.group(1).lower()
    return made


_FOLDED = _folded_characters()


def fold(text: str) -> str:
    """The text without what people do not mind when they look for something: case, width, accents and the like (see _FOLDED)."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", decomposed).translate(_FOLDED))


def words(text: str) -> tuple[str, ...]:
    """The folded words of the text in order, each of at most MAX_WORD_CHARS, interned: most recur in every tenth tweet."""
    return tuple(sys.intern(word[:MAX_WORD_CHARS]) for word in _WORD.findall(fold(text)))


def tag_key(tag: str) -> str:
    """What two spellings of one tag, mention or username have in common. Accents count: they make another tag."""
    return unicodedata.normalize("NFKC", tag.casefold())[:MAX_TAG_CHARS]
