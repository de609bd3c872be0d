"""Validation and weighted length of tweet texts."""

from __future__ import annotations

import itertools
import unicodedata

import grpc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.platform.rpc.errors import RoostError
from services.shared.text.visible import is_visible
from services.tweet.text import MAX_BYTES, MAX_WEIGHT, normalize_text, weight
from services.tweet.weight import find_urls
from tests.growth import assert_linear

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"


@pytest.mark.parametrize(
    ("text", "weighs"),
    [
        ("a", 1),
        ("caf\u00e9", 4),
        ("\u0645\u0631\u062d\u0628\u0627", 5),
        ("\u65e5\u672c\u8a9e", 6),
        ("\uac00\ub098", 4),
        ("\u2018x\u2019", 3),
        ("\u2026", 2),
        ("\U0001f600", 2),
        ("\u2764\ufe0f", 2),
        ("\u00a9", 2),
        (FAMILY, 2),
        ("\U0001f44d\U0001f3fd", 2),
        ("1\ufe0f\u20e3", 2),
        ("1", 1),
        ("\U0001f1e9\U0001f1ea", 2),
        # A mending heart (Emoji 13.1) in all its encodings.
        ("\u2764\ufe0f\u200d\U0001fa79", 2),
        ("\u2764\u200d\U0001fa79", 2),
        # Emoji 13 to 17: the transgender flag, a handshake with two skin tones, a harp, the flag of Sark, a face.
        ("\U0001f3f3\ufe0f\u200d\u26a7\ufe0f", 2),
        ("\U0001faf1\U0001f3fb\u200d\U0001faf2\U0001f3ff", 2),
        ("\U0001fa89", 2),
        ("\U0001f1e8\U0001f1f6", 2),
        ("\U0001fac8", 2),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", 2),
        # Four elements in sequence are one emoji, five are more.
        ("\u200d".join(["\U0001f468"] * 5), 5),
        # Tag characters after another base are counted one by one, so that long text cannot hide in an emoji.
        ("\U0001f3f4" + "\U000e0067" * 7 + "\U000e007f", 18),
        ("\U0001f1e9", 2),
        (FAMILY + "\U0001f600 a", 6),
        ("\u200d", 1),
        ("https://example.com/" + "a" * 200, 23),
        ("see example.com.", 28),
        ("see example.com/a?b=c&d, ok", 31),
        ("http://\u65e5\u672c\u8a9e.jp/x", 23),
        ("\u3053\u3093example.com", 27),
        ("https://t.co/abc", 23),
        ("word.another", 12),
        ("wing.pro-freedom", 16),
        ("name@example.com", 16),
        ("a.b.c", 5),
        ("...", 3),
        ("end.https://t.co/abc then", 32),
        ("https://en.wikipedia.org/wiki/A_(b)_c", 23),
        ("(example.com)", 25),
    ],
)
def test_weight_returns_weighted_length(text: str, weighs: int) -> None:
    assert weight(unicodedata.normalize("NFC", text)) == weighs


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("example.com and http://b.org/x.", ["example.com", "http://b.org/x"]),
        ("(see https://a.com/(b))", ["https://a.com/(b)"]),
        ("https://t.co/abc/def", ["https://t.co/abc"]),
        ("https://t.co/" + "a" * 41, []),
        ("-example.com", []),
        ("@example.com", []),
        ("a.com:8080/x?y=1!", ["a.com:8080/x?y=1"]),
        ("https://localhost/x", []),
        ("foo.notatld", []),
        ("EXAMPLE.COM", ["EXAMPLE.COM"]),
    ],
)
def test_find_urls_returns_exact_spans(text: str, urls: list[str]) -> None:
    assert [text[start:end] for start, end in find_urls(text)] == urls


@pytest.mark.parametrize(
    "text",
    [
        "a" * MAX_WEIGHT,
        "\u65e5" * 140,
        FAMILY * 140,
        "https://example.com/" + "a" * 3_000 + " " + "b" * 256,
        "https://example.com/" + "a" * (MAX_BYTES - 20),
        "two\nlines\tand a tab",
        "\u202eright to left\u202c",
        " padded ",
        "\u200bx\ufeff",
        "\x7f and \x85 are no C0 controls",
    ],
)
def test_normalize_text_valid_text_is_unchanged(text: str) -> None:
    if len(text.encode()) <= MAX_BYTES:
        assert normalize_text(text) == text
    else:
        assert weight(text) <= MAX_WEIGHT


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\t \u3000\u00a0",
        "\u200b\u200c\u200d\u2060\ufeff",
        "\u200e\u202e\u2066",
        "\u3164\u2800\u115f\ufe0f",
        "a\x00b",
        "a\x0bb",
        "\x1b[2J",
        "\ufffe",
        "x\uffff",
        "\ud800",
        "x\udfffy",
        "a" * (MAX_WEIGHT + 1),
        "\u65e5" * 140 + "a",
        "\U0001f600" * 140 + "a",
        "https://example.com/" + "a" * (MAX_BYTES - 19),
        FAMILY * 164,
        "e\u0301" * 281,
    ],
)
def test_normalize_text_invalid_text_is_refused(text: str) -> None:
    with pytest.raises(RoostError) as caught:
        normalize_text(text)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == ["text"]


def test_normalize_text_weighs_after_nfc() -> None:
    assert normalize_text("e\u0301" * 280) == "\u00e9" * 280


@pytest.mark.parametrize(
    "text",
    [
        "x.y" * 1_365,
        "a-" * 2_000 + ".x",
        "http://a.com/" + "(" * 4_000,
        "http://a.com/" + "(a" * 2_000,
        "http://a.com/" + "(a(a)" * 800,
        "\u00e9.\u00e9" * 800,
        "a.com" * 800,
        "a.com " * 680,
        "http://" * 580,
        "\u263a" * 1_365,
        FAMILY * 160,
        "a.com/?" + "?" * 4_000,
        "a._" * 1_300,
    ],
)
def test_weight_worst_case_text_is_linear(text: str) -> None:
    assert_linear(weight, text)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example("a\rb")
def test_normalize_text_result_is_nfc_visible_and_within_bounds(text: str) -> None:
    try:
        normalized = normalize_text(text)
    except RoostError:
        return
    assert normalized == unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    assert is_visible(normalized)
    assert weight(normalized) <= MAX_WEIGHT
    assert normalize_text(normalized) == normalized


@given(st.text("ab.: /\u65e5\u00e9\U0001f600\u200d@-_(", max_size=40))
def test_weight_fast_path_matches_parser(text: str) -> None:
    spans = find_urls(text)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(left.end <= right.start for left, right in itertools.pairwise(spans))
    if text.isascii() and not spans:
        assert weight(text) == len(text)


@pytest.mark.parametrize("emoji", ["\u2764\ufe0f\u200d\U0001fa79", FAMILY, "1\ufe0f\u20e3"])
def test_normalize_text_140_emoji_is_the_limit(emoji: str) -> None:
    assert normalize_text(emoji * 140) == emoji * 140
    with pytest.raises(RoostError):
        normalize_text(emoji * 140 + "x")


@pytest.mark.parametrize(
    ("written", "normalized"),
    [("a\r\nb", "a\nb"), ("a\rb", "a\nb"), ("a\r\r\nb\n\r", "a\n\nb\n\n"), ("a\tb\nc", "a\tb\nc")],
)
def test_normalize_text_line_breaks_become_line_feeds(written: str, normalized: str) -> None:
    assert normalize_text(written) == normalized
