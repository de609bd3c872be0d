"""The search syntax: only too long queries and queries with exclusions only are errors."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.platform.rpc import errors
from services.search.query import MAX_TERMS, MAX_WORDS, NameQuery, ParsedQuery, QueryTerms, parse, parse_names


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("hello World", ParsedQuery(phrases=(("hello",), ("world",)))),
        ('"Hello world" again', ParsedQuery(phrases=(("hello", "world"), ("again",)))),
        ("“curly quotes”", ParsedQuery(phrases=(("curly", "quotes"),))),
        ('never "closed at all', ParsedQuery(phrases=(("never",), ("closed", "at", "all")))),
        ('"#quoted"', ParsedQuery(phrases=(("quoted",),))),
        ("#Python #Café", ParsedQuery(exact=("#python", "#café"))),
        ("＃wide ＠ann", ParsedQuery(exact=("#wide", "@ann"))),
        ("@Ann, $TSLA!", ParsedQuery(exact=("@ann", "$tsla"))),
        ("$brk.b", ParsedQuery(exact=("$brk.b",))),
        ("FROM:Ann from:@bob", ParsedQuery(authors=("ann", "bob"))),
        ("from: from:a-b", ParsedQuery(phrases=(("from",), ("from", "a", "b")))),
        ("don't", ParsedQuery(phrases=(("don", "t"),))),
        ("same same #a #A", ParsedQuery(exact=("#a",), phrases=(("same",),))),
        # Wildcards, patterns and operators do not exist: punctuation separates words.
        ("*ing py* a?b /x.*/ a~2 [a TO b]", parse("ing py a-b x a-2 a to b")),
        ("exact:#x {} \\ ^", ParsedQuery(phrases=(("exact", "x"),))),
        ("a AND NOT b", ParsedQuery(phrases=(("a",), ("and",), ("not",), ("b",)))),
        ("boats -sail", ParsedQuery(phrases=(("boats",),), excluded=QueryTerms(phrases=(("sail",),)))),
        ('a -"b c" -“d', ParsedQuery(phrases=(("a",),), excluded=QueryTerms(phrases=(("b", "c"), ("d",))))),
        ("a -#Tag -@Ann -$TSLA", ParsedQuery(phrases=(("a",),), excluded=QueryTerms(exact=("#tag", "@ann", "$tsla")))),
        ("a -from:@Bob", ParsedQuery(phrases=(("a",),), excluded=QueryTerms(authors=("bob",)))),
        ("-a from:bob", ParsedQuery(authors=("bob",), excluded=QueryTerms(phrases=(("a",),)))),
        # A minus inside a word, alone, doubled, as a dash, or after a quote excludes nothing.
        ("well-known - a --b –c", parse("well-known a b c")),
        ('"a"-"b" c-"d"', parse("a b c d")),
        ("a -!?", ParsedQuery(phrases=(("a",),))),
        ("-!?", ParsedQuery()),
        ("", ParsedQuery()),
        ('"" # @ $ !?', ParsedQuery()),
    ],
)
def test_parse_query_returns_terms(query: str, asked: ParsedQuery) -> None:
    assert parse(query) == asked


def test_parsed_query_without_terms_is_false() -> None:
    assert not parse("!?")
    assert parse("x")


def test_parse_keywords_and_tags_are_added_to_query() -> None:
    asked = parse("a", ["New York", "#b"], ["#C", "d", "$e", "#", " "])
    assert asked == ParsedQuery(("#b", "#c", "#d", "$e"), (("a",), ("new", "york")))


def test_parse_too_many_terms_raises_invalid_argument() -> None:
    parse(" ".join(f"t{n}" for n in range(MAX_TERMS)))
    with pytest.raises(errors.RoostError) as refused:
        parse(" ".join(f"t{n}" for n in range(MAX_TERMS + 1)))
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.violations[0].field == "query"


@pytest.mark.parametrize("query", ["-sail", '-"a b" -c', "-#tag", "-from:ann", "!? -x"])
def test_parse_exclusions_only_raises_invalid_argument(query: str) -> None:
    with pytest.raises(errors.RoostError, match="add a word to look for") as refused:
        parse(query)
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.violations[0].field == "query"


def test_parse_minus_in_keywords_excludes_nothing() -> None:
    assert parse("", ["-a"]) == ParsedQuery(phrases=(("a",),))
    assert parse("-a", ["b"]).excluded == QueryTerms(phrases=(("a",),))


def test_parse_excluded_terms_count_towards_bounds() -> None:
    with pytest.raises(errors.RoostError):
        parse("a " + " ".join(f"-t{n}" for n in range(MAX_TERMS)))


def test_parse_names_returns_prefixes_and_exclusions() -> None:
    assert parse_names("@Ann -Łee jean-luc") == NameQuery(("ann", "jean", "luc"), ("lee",))
    assert parse_names("-ann") == NameQuery((), ("ann",))
    assert parse_names(" ".join(f"t{n} -u{n}" for n in range(99))) == NameQuery(
        tuple(f"t{n}" for n in range(MAX_TERMS)), tuple(f"u{n}" for n in range(MAX_TERMS))
    )


def test_parse_too_many_words_raises_invalid_argument() -> None:
    parse("", ["一" * 100, "二" * 100, "三" * (MAX_WORDS - 200)])
    with pytest.raises(errors.RoostError) as refused:
        parse("", ["一" * 100, "二" * 100, "三" * (MAX_WORDS - 199)])
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


TRICKY = st.text(st.sampled_from('"“” #＃@＠$from:*?~^()[]{}\\/-+.a東\u0301\u200d\x00🔥é'), max_size=256)


@given(st.one_of(st.text(max_size=256), TRICKY), st.lists(TRICKY, max_size=20), st.lists(TRICKY, max_size=20))
def test_parse_random_input_raises_only_documented_errors(query: str, keywords: list[str], tags: list[str]) -> None:
    try:
        asked = parse(query, keywords, tags)
    except errors.RoostError as error:
        refused = error.code
    else:
        refused = None
    if refused is not None:
        assert refused is grpc.StatusCode.INVALID_ARGUMENT
        return
    # The index gets whole terms with a sign, words without signs, and usernames.
    assert all(term[0] in "#@$" and len(term) > 1 for term in asked.exact)
    assert all(phrase and all(word and not word.isspace() for word in phrase) for phrase in asked.phrases)
    assert sum(map(len, asked.phrases)) <= MAX_WORDS
