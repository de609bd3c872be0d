"""Which characters show: one rule for everything that people write and others are to see."""

from __future__ import annotations

import unicodedata

# Separators, controls, and format characters such as zero-width ones. Private and unassigned characters show as a box.
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
# Unicode's Default_Ignorable_Code_Point outside those categories: the grapheme joiner, fillers of Hangul and Khmer, and
# variation selectors, which only change what stands before them. The module `unicodedata` does not know the property.
_IGNORABLE = (
    frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2065\u3164\uffa0")
    | frozenset(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xFFF0, 0xFFF9))))
    | frozenset(map(chr, range(0xE0000, 0xE1000)))
)
# Blank by their very shape: the empty Braille pattern, and the note head that is none.
_BLANK = frozenset("\u2800\U0001d159")
_INVISIBLE = _IGNORABLE | _BLANK


def is_visible(text: str) -> bool:
    """Returns whether any character of the text shows: False for spaces, zero-width characters and fillers alone."""
    return any(c > " " and c not in _INVISIBLE and unicodedata.category(c) not in _INVISIBLE_CATEGORIES for c in text)
