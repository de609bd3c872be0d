"""Tests cursors: they open only for the list and owner that they were sealed for, and unaltered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.platform.pagination.cursors import MAX_CURSOR_CHARS, Cursors
from services.platform.rpc import errors

CURSORS = Cursors(b"k" * 32)
TOKEN = CURSORS.seal("home", 7, 123, "slate")


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8"), max_size=20), max_size=5))
def test_open_sealed_cursor_returns_values(values: list[int | str]) -> None:
    assert CURSORS.open(CURSORS.seal("home", 7, *values), "home", 7) == tuple(values)


def refused(token: str, list_name: str = "home", owner_id: int = 7, cursors: Cursors = CURSORS) -> bool:
    with pytest.raises(errors.RoostError) as caught:
        cursors.open(token, list_name, owner_id)
    return caught.value.code.name == "INVALID_ARGUMENT" and caught.value.violations[0].field == "cursor"


def test_open_cursor_of_another_list_owner_or_key_is_refused() -> None:
    assert refused(TOKEN, list_name="user")
    assert refused(TOKEN, owner_id=8)
    assert refused(TOKEN, cursors=Cursors(b"x" * 32))


def test_open_list_and_owner_are_delimited() -> None:
    assert refused(CURSORS.seal("home", 17), list_name="home1", owner_id=7)


@pytest.mark.parametrize(
    "token", ["", "=", "a", "!!!!", "é", "\udc00", "0" * 22, "A" * 10_000, TOKEN + "=", TOKEN + "\n", TOKEN * 2]
)
def test_open_malformed_cursor_is_refused(token: str) -> None:
    assert refused(token)


def test_open_altered_or_truncated_cursor_is_refused() -> None:
    for i in range(len(TOKEN)):
        assert refused(TOKEN[:i])
        for other in "A_!=":
            if TOKEN[i] != other:
                assert refused(TOKEN[:i] + other + TOKEN[i + 1 :])


def test_seal_cursor_is_url_safe_and_bounded() -> None:
    assert TOKEN.replace("-", "").replace("_", "").isalnum()
    with pytest.raises(ValueError, match="characters"):
        CURSORS.seal("home", 7, "x" * MAX_CURSOR_CHARS)


def test_cursors_short_key_raises_value_error() -> None:
    with pytest.raises(ValueError, match="key"):
        Cursors(b"short")
