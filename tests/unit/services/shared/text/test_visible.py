"""Which characters are visible."""

from __future__ import annotations

import unicodedata

import pytest

from services.shared.text.visible import is_visible

INVISIBLE = (
    *("", " ", "\u00a0\u2003", "\t\n", "\u200b\u200d\u2060\ufeff", "\u3164", "\u115f\u1160\uffa0", "\u2800", "\u034f"),
    *("\ufe0f", "\u180b", "\U000e0100", "\U000e0041", "\u2065", "\ufff0", "\U0001d159", "\u3164 \u200b\u2800"),
)


@pytest.mark.parametrize("text", INVISIBLE, ids=ascii)
def test_is_visible_invisible_characters_is_false(text: str) -> None:
    assert not is_visible(text)
    assert is_visible(text + "x")


@pytest.mark.parametrize("text", ["a", "é", "\u0301", "日", "أ", "\u2764\ufe0f", "👩‍🚀", "·", "\ue000"], ids=ascii)
def test_is_visible_visible_character_is_true(text: str) -> None:
    assert is_visible(text)


def test_is_visible_all_letters_and_digits_except_fillers() -> None:
    fillers = {"\u115f", "\u1160", "\u3164", "\uffa0"}
    characters = {chr(point) for point in range(0x110000) if unicodedata.category(chr(point))[0] in "LN"}
    assert {c for c in characters if not is_visible(c)} == fillers
