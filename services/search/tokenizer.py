"""Splits texts and queries into words by the same rules, so that a query that was copied from a text matches the text.

Words are folded: differences of case, width, accents, strokes through letters and vowel points are removed. Each
character of a script without spaces (Thai, Han, kana, …) and each emoji is a word, so a query in such a script is a
phrase. No character is an operator.
"""

from __future__ import annotations

import re
import sys
import unicodedata

# Maximum length of a word in characters. Longer words are cut to it, in texts and in queries. Words that users search
# for are shorter.
MAX_WORD_CHARS = 64
# Maximum length of a hashtag in characters, as in the protos. Longer ones are cut to it.
MAX_TAG_CHARS = 100

# Characters of scripts without spaces: Thai, Lao, Burmese, Khmer, kana, Han. Each is a word.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_EMOJI = "\u2190-\u21ff\u2300-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
# Combining marks, such as vowel signs. They belong to words, but Python's \w does not match them.
COMBINING_MARKS = re.escape("".join(c for c in map(chr, range(0x300, 0xFFFF)) if unicodedata.category(c)[0] == "M"))
_WORD = re.compile(rf"[{_ALONE}{_EMOJI}]|[^\W{_ALONE}]+(?:[{COMBINING_MARKS}]+[^\W{_ALONE}]*)*")

# Ranges of marks that folding removes, because few users type them in a search: accents of Latin, Greek and Cyrillic,
# points of Hebrew, vowel signs of Arabic. Marks of other scripts (Indic vowels, kana voicing) make a different word, so
# they are not removed.
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
# Letters that Unicode does not decompose and whose Unicode name does not contain their base letter, with their
# replacements.
_OTHER_FORMS = {
    "æ": "ae",
    "œ": "oe",
    "þ": "th",
    "ð": "d",
    "ŋ": "n",
    "ı": "i",
    "ȷ": "j",
    # Spelling variants of Arabic: final forms, Persian letters, alef wasla. The tatweel (a line that stretches a word)
    # is removed.
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
    """Returns the translation table for `fold`: the code point of a decomposed, lower-case character → its replacement,
    which is empty if folding removes the character."""
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
    """Returns the folded words of the text in order, each cut to MAX_WORD_CHARS. The strings are interned, because most
    words occur in many tweets."""
    return tuple(sys.intern(word[:MAX_WORD_CHARS]) for word in _WORD.findall(fold(text)))


def tag_key(tag: str) -> str:
    """Returns the key that all spellings of one tag, mention or username share: case and width are folded, accents
    are kept.
    """
    return unicodedata.normalize("NFKC", tag.casefold())[:MAX_TAG_CHARS]
