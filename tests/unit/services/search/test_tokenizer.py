"""The tokenizer: texts and queries that should match have the same words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.search.tokenizer import MAX_TAG_CHARS, MAX_WORD_CHARS, tag_key, words
from tests.growth import assert_linear


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hello, WORLD!", ("hello", "world")),
        ("Crème brûlée", ("creme", "brulee")),
        ("Straße STRASSE", ("strasse", "strasse")),
        ("ｗｉｄｅ", ("wide",)),
        ("don't", ("don", "t")),
        ("C++ & R*", ("c", "r")),
        ("snake_case", ("snake_case",)),
        ("東京tower", ("東", "京", "tower")),
        ("हिन्दी शब्द", ("हिन्दी", "शब्द")),
        ("καλημέρα", ("καλημερα",)),
        ("Łódź Ørsted Đà Nẵng", ("lodz", "orsted", "da", "nang")),
        ("Ægir, Þór, Œuvre, Eiður", ("aegir", "thor", "oeuvre", "eidur")),
        ("İstanbul Iğdır ħobż ẞ", ("istanbul", "igdir", "hobz", "ss")),
        ("مُحَمَّد مـحـمـد", ("محمد", "محمد")),
        ("أحمد إحمد آحمد", ("احمد", "احمد", "احمد")),
        ("مدرسة على کی", ("مدرسه", "علي", "كي")),
        ("שָׁלוֹם", ("שלום",)),
        # Marks that make a different word are kept: vowels of Devanagari, voiced kana.
        ("कि का が か", ("कि", "का", "が", "か")),
        ("so 🔥🔥", ("so", "🔥", "🔥")),
        ("", ()),
        (" \t\n\x00…—", ()),
    ],
)
def test_words_text_returns_folded_words(text: str, found: tuple[str, ...]) -> None:
    assert words(text) == found


def test_words_long_word_is_cut() -> None:
    assert words("x" * 300) == ("x" * MAX_WORD_CHARS,)
    assert len(tag_key("x" * 300)) == MAX_TAG_CHARS


def test_tag_key_folds_case_and_keeps_accents() -> None:
    assert tag_key("Café") == tag_key("CAFE\u0301") == "café" != tag_key("cafe")


@given(st.text(max_size=300))
def test_words_random_text_has_no_space_and_is_bounded(text: str) -> None:
    """The index separates words by spaces."""
    found = words(text)
    assert all(word and not any(map(str.isspace, word)) and len(word) <= MAX_WORD_CHARS for word in found)
    assert words(" ".join(found)) == found or not text.isascii()


def test_words_long_text_is_linear() -> None:
    for text in ("\u0301a" * 5_000, "a\u0301" * 5_000, "東" * 10_000, "\ufdfa" * 4_096):
        assert_linear(words, text)
