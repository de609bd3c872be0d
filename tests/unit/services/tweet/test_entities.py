"""Entity extraction: the conformance cases of twitter-text, and properties that hold for every text."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from roost.tweet.v1 import tweet_pb2

from services.tweet import entities
from services.tweet.entities import extract
from services.tweet.text import MAX_BYTES, MAX_WEIGHT, weight
from services.tweet.weight import URL_WEIGHT
from tests.growth import assert_linear


def names(found: list[entities.EntitySpan]) -> list[str]:
    return [one.name for one in found]


def located(key: str, found: list[entities.EntitySpan]) -> list[dict[str, Any]]:
    return [{key: one.name, "indices": [one.start, one.end]} for one in found]


def lists(text: str) -> list[dict[str, Any]]:
    found = entities.extract_mentions_or_lists(text)
    return [{"screen_name": one.name, "list_slug": one.list_slug, "indices": [one.start, one.end]} for one in found]


# Section of the conformance file → the function under test.
SECTIONS: dict[str, Any] = {
    "mentions": lambda text: names(entities.extract_mentions(text)),
    "mentions_with_indices": lambda text: located("screen_name", entities.extract_mentions(text)),
    "mentions_or_lists_with_indices": lists,
    "replies": lambda text: entities.extract_reply_username(text) or None,
    "urls": lambda text: names(entities.extract_urls(text)),
    "urls_with_indices": lambda text: located("url", entities.extract_urls(text)),
    "urls_with_directional_markers": lambda text: located("url", entities.extract_urls(text)),
    "tco_urls_with_params": lambda text: names(entities.extract_urls(text)),
    "hashtags": lambda text: names(entities.extract_hashtags(text)),
    "hashtags_from_astral": lambda text: names(entities.extract_hashtags(text)),
    "hashtags_with_indices": lambda text: located("hashtag", entities.extract_hashtags(text)),
    "cashtags": lambda text: names(entities.extract_cashtags(text)),
    "cashtags_with_indices": lambda text: located("cashtag", entities.extract_cashtags(text)),
}


def conformance(shared: Path) -> dict[str, list[dict[str, Any]]]:
    file = shared / "data" / "twitter-text" / "extract.yml"
    if not file.is_file():
        pytest.skip("no conformance cases beside the checkout")
    sections: dict[str, list[dict[str, Any]]] = yaml.safe_load(file.read_text("utf-8"))["tests"]
    return sections


def test_extract_conformance_cases_match(shared: Path) -> None:
    sections = conformance(shared)
    assert set(sections) == set(SECTIONS)
    failed = [
        (section, case["description"], found)
        for section, cases in sections.items()
        for case in cases
        if (found := SECTIONS[section](case["text"])) != case["expected"]
    ]
    assert failed == []
    assert sum(map(len, sections.values())) > 200


def test_weight_conformance_urls_weigh_23(shared: Path) -> None:
    for case in itertools.chain.from_iterable(conformance(shared).values()):
        text = case["text"]
        found = entities.extract_urls(text)
        rest = text
        for one in reversed(found):
            # A control character separates the neighbours without creating new URLs.
            rest = f"{rest[: one.start]}\x01{rest[one.end :]}"
        expected = weight(rest) + len(found) * (URL_WEIGHT - 1)
        assert weight(text) == expected or (weight(text) > MAX_WEIGHT and expected > MAX_WEIGHT), text


def all_of(text: str) -> list[tuple[int, int, str]]:
    """Returns all entities of the text in order, each name with its sign."""
    found = extract(text)
    return sorted(
        [
            *((one.start, one.end, "#" + one.tag) for one in found.hashtags),
            *((one.start, one.end, "$" + one.tag) for one in found.cashtags),
            *((one.start, one.end, "@" + one.username) for one in found.mentions),
            *((one.start, one.end, one.url) for one in found.urls),
        ]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words, nothing else", []),
        ("\U0001f600 @ada #engine $ENGN https://example.com/a", ["@ada", "#engine", "$ENGN", "https://example.com/a"]),
        # The entity that begins first wins, so a URL absorbs the signs inside it.
        ("https://example.social/@ada/1#top", ["https://example.social/@ada/1#top"]),
        ("#\u65e5\u672cexample.com", ["#\u65e5\u672cexample"]),
        ("see example.com/#a #b", ["example.com/#a", "#b"]),
        # The mention of a list is not the mention of a user.
        ("@ada/engines and @bob", ["@bob"]),
        ("mail ada@example.com", []),
        ("(@ada) \u201c@bob\u201d -@carol", ["@ada", "@bob", "@carol"]),
        ("\uff20ada \uff03engine", ["@ada", "#engine"]),
        ("#one#two", []),
        ("##one", ["#one"]),
        ("a&#b &#39;", []),
        ("#\ufe0f\u20e3 1\ufe0f\u20e3 #1st", ["#1st"]),
        ("@" + "a" * 25, ["@" + "a" * 20]),
        ("$A,$B $C. $abcdefg $\u017fa", ["$A", "$C"]),
        ("RT@ada smart@bob", ["@ada"]),
        ("#caf\u00e9_1 #\u0660\u0661 #e\u0301", ["#caf\u00e9_1", "#e\u0301"]),
        ("a.b.c ... 3.5 #", []),
        ("http://xn--\u306f.com http://a-.b.com http://\u65e5\u672c.com", ["http://\u65e5\u672c.com"]),
        ("http://" + "\u65e5\u6f22" * 31 + ".com", []),
    ],
)
def test_extract_returns_expected_entities(text: str, expected: list[str]) -> None:
    assert [name for _, _, name in all_of(text)] == expected


def test_extract_indices_count_code_points() -> None:
    text = "\U0001f468\u200d\U0001f469 @ada"
    assert extract(text) == tweet_pb2.Entities(mentions=[tweet_pb2.MentionEntity(start=4, end=8, username="ada")])


def test_extract_each_kind_is_in_order() -> None:
    found = extract("#b @d $F a.com #a @c $E b.com")
    assert [one.tag for one in found.hashtags] == ["b", "a"]
    assert [one.username for one in found.mentions] == ["d", "c"]
    assert [one.tag for one in found.cashtags] == ["F", "E"]
    assert [one.url for one in found.urls] == ["a.com", "b.com"]


# Fragments separated by spaces.
WORDS = (
    "@ \uff20 # \uff03 $ . / : :// http:// a bob com example.com _ - 1 \u65e5\u672c \u00e9 e\u0301 \u200d "
    "\ufe0f \U0001f600 \u202a rt & t.co/x"
)
REPEATED = (
    "@ # $ . @a #a @a/ rt@ a@b. #\u65e5 \u65e5. a.com http:// http://a.com/( a- a._ #_ #1 \uff03\uff20 "
    "xn--\u306f. :// \u0301e \u065f# #\u00e9 \u00e9.com a.\u65e5 http://\u65e5. a.\u307f\u3093\u306a"
)
PIECES = st.sampled_from([*WORDS.split(), " ", "\n", "\u3000"])
TEXTS = st.lists(PIECES, max_size=24).map("".join) | st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXTS)
def test_extract_indices_match_names(text: str) -> None:
    for start, end, name in all_of(text):
        # Full-width signs are equal to ASCII signs.
        written = text[start:end].replace("\uff20", "@").replace("\uff03", "#")
        assert written == name.replace("\uff20", "@").replace("\uff03", "#")


@given(TEXTS)
def test_extract_entities_never_overlap(text: str) -> None:
    found = all_of(text)
    assert all(0 <= start < end <= len(text) for start, end, _ in found)
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(found))


@given(TEXTS, st.sampled_from(["", "so ", "\u65e5 ", "\n"]))
def test_extract_prefix_shifts_indices_only(text: str, before: str) -> None:
    moved = [(start + len(before), end + len(before), name) for start, end, name in all_of(" " + text)]
    assert all_of(before + " " + text) == moved


@pytest.mark.parametrize("unit", [*REPEATED.split(), "#a ", "$a ", "@a/b ", "a.com ", "t.co/a "])
def test_extract_worst_case_text_is_linear(unit: str) -> None:
    assert_linear(extract, unit * (MAX_BYTES // len(unit.encode())))
