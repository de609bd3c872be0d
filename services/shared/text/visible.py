"""Decides which characters are visible: one rule for all texts that users write."""

from __future__ import annotations

import unicodedata

# Separators, controls, and format characters such as the zero-width space. Private-use and unassigned characters count
# as visible, because clients show a box for them.
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
# The characters with Unicode's property Default_Ignorable_Code_Point outside _INVISIBLE_CATEGORIES: the grapheme
# joiner, fillers of Hangul and Khmer, and variation selectors, which only change the character before them. The module
# `unicodedata` does not have this property.
_IGNORABLE = (
    frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2065\u3164\uffa0")
    | frozenset(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xFFF0, 0xFFF9))))
    | frozenset(map(chr, range(0xE0000, 0xE1000)))
)
# Characters with a blank glyph: the empty Braille pattern and the null note head.
_BLANK = frozenset("\u2800\U0001d159")
_INVISIBLE = _IGNORABLE | _BLANK


def is_visible(text: str) -> bool:
    """Returns whether the text has a visible character: False if it consists of spaces, zero-width characters and
    fillers."""
    return any(c > " " and c not in _INVISIBLE and unicodedata.category(c) not in _INVISIBLE_CATEGORIES for c in text)
