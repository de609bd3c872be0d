"""Splits texts and queries into words. Both use the same rules, so that a query matches the text that it was copied
from.

Words are folded: case, width, accents, strokes through letters and vowel points are removed. Each character of a
script without spaces (Thai, Han, kana, …) and each emoji is a word of its own, so a word of such a script is searched
as a phrase. No character is an operator: every input yields words only.
"""

from __future__ import annotations

import re
import sys
import unicodedata

# Longer words are cut to this length, in texts and in queries alike. No word that users search for is longer.
MAX_WORD_CHARS = 64
# The maximum length of a hashtag in the protos.
MAX_TAG_CHARS = 100

# Characters of scripts written without spaces: Thai, Lao, Burmese, Khmer, kana, Han. Each is a word of its own.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_EMOJI = "\u2190-\u21ff\u2300-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
# Combining marks (vowel signs and the like) belong to a word, but Python's \w does not match them.
COMBINING_MARKS = re.escape("".join(c for c in map(chr, range(0x300, 0xFFFF)) if unicodedata.category(c)[0] == "M"))
_WORD = re.compile(rf"[{_ALONE}{_EMOJI}]|[^\W{_ALONE}]+(?:[{COMBINING_MARKS}]+[^\W{_ALONE}]*)*")

# Marks that few users type in a search, so folding removes them: accents of Latin, Greek and Cyrillic, points of
# Hebrew, vowel signs of Arabic. Marks of other scripts (Indic vowels, kana voicing) make a different word and are
# kept.
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
# Letters that Unicode does not decompose, and whose Unicode name does not contain their base letter.
_OTHER_FORMS = {
    "æ": "ae",
    "œ": "oe",
    "þ": "th",
    "ð": "d",
    "ŋ": "n",
    "ı": "i",
    "ȷ": "j",
    # Arabic spelling variants: final forms, Persian letters, alef wasla, and the tatweel (stretching line), which is
    # dropped.
    "ى": "ي",
    "ی": "ي",
    "ک": "ك",
    "ة": "ه",
    "ٱ": "ا",
    "ـ": "",
}
# Blocks with letters such as ł, ø, đ and ħ, whose Unicode name contains their base letter.
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
    """Returns the translation table of `fold`: code point of a decomposed, lower-case character → its replacement,
    which is empty if folding drops the character.
    """
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
    """Returns the text without case, width, accents and the other differences listed in _OPTIONAL_MARKS and
    _OTHER_FORMS.
    """
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", decomposed).translate(_FOLDED))


def words(text: str) -> tuple[str, ...]:
    """Returns the folded words of the text in order, each cut to MAX_WORD_CHARS.

    The strings are interned, because most words recur in many tweets.
    """
    return tuple(sys.intern(word[:MAX_WORD_CHARS]) for word in _WORD.findall(fold(text)))


def tag_key(tag: str) -> str:
    """Returns the key that all spellings of one tag, mention or username share: case and width are folded, accents
    are kept.
    """
    return unicodedata.normalize("NFKC", tag.casefold())[:MAX_TAG_CHARS]
