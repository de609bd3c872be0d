"""Parses search queries. The only errors are: too many terms, too many words, and a query with exclusions only.

Syntax: `word` · `"a phrase"` · `#tag` · `@mention` · `$CASH` · `from:username`. A match must have all of these and
none of those with a `-` directly before them (`-word`, `-"a phrase"`, `-#tag`, `-from:username`). There are no
wildcards and no patterns. Other punctuation separates words, and so does a `-` inside a word, before a space, or
doubled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from services.platform.rpc import errors
from services.search.tokenizer import COMBINING_MARKS, tag_key, words

# Maximum number of terms per query. A query with more is rejected with INVALID_ARGUMENT. The index reads a posting list
# per term, and users do not type so many.
MAX_TERMS = 16
# Maximum number of words per query, summed over its phrases. A query with more is rejected with INVALID_ARGUMENT. No
# tweet has more words, so such a query could not match.
MAX_WORDS = 280

# One chunk of a query: text between quotes, or text without spaces. A minus before it counts only at the start of the
# query or after a space. If the closing quote is missing, the text ends with the query.
_CHUNK = re.compile(r'(?:(?<!\S)(-))?(?:["“”„]([^"“”„]*)(?:["“”„]|$)|([^\s"“”„]+))')
_FROM = re.compile(r"from:@?([A-Za-z0-9_]{1,20})", re.IGNORECASE)
# Hashtags of some scripts contain zero-width joiners or the middle dot.
_TAG = re.compile(rf"[#＃]([\w{COMBINING_MARKS}\u200c\u200d\u00b7]+)")
_MENTION = re.compile(r"[@＠]([A-Za-z0-9_]{1,20})")
_CASHTAG = re.compile(r"\$([A-Za-z]{1,6}(?:[._][A-Za-z]{1,2})?)")
# Punctuation that is removed after a hashtag, mention or cashtag.
_TRAILING = ".,;:!?)]}'"


class QueryTerms(NamedTuple):
    """Terms of a query: exact terms, phrases (each a sequence of folded words; a word is a phrase of length 1), and the
    usernames of authors as `tag_key`."""

    exact: tuple[str, ...] = ()
    phrases: tuple[tuple[str, ...], ...] = ()
    authors: tuple[str, ...] = ()


class ParsedQuery(NamedTuple):
    """A parsed query. A match must have all of `exact`, `phrases` and `authors` (see QueryTerms), and none of
    `excluded`."""

    exact: tuple[str, ...] = ()
    phrases: tuple[tuple[str, ...], ...] = ()
    authors: tuple[str, ...] = ()
    excluded: QueryTerms = QueryTerms()

    def __bool__(self) -> bool:
        """Returns whether the query has a word, phrase or author that a matching tweet must have. A query of excluded
        words alone has none."""
        return bool(self.exact or self.phrases or self.authors)


class NameQuery(NamedTuple):
    """A parsed query for users. Each of `words` must be the beginning of a word in the username or display name of a
    match, and none of `excluded` may be."""

    words: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


class _Collected:
    """Collects terms without duplicates, in the order in which they are added."""

    def __init__(self) -> None:
        self._exact: dict[str, None] = {}
        self._phrases: dict[tuple[str, ...], None] = {}
        self._authors: dict[str, None] = {}

    def add(self, quoted: str, plain: str) -> None:
        """Adds the term of one chunk of the query. A chunk between quotes is passed as `quoted`, any other as `plain`;
        the other argument is empty."""
        if author := _FROM.fullmatch(plain):
            self._authors[tag_key(author.group(1))] = None
        elif term := _term(plain.rstrip(_TRAILING)):
            self._exact[term] = None
        elif phrase := words(quoted or plain):
            self._phrases[phrase] = None

    def add_tag(self, tag: str) -> None:
        """Adds the exact term of a hashtag or cashtag; `tag` may begin with `#` or `$`."""
        if term := _tag_term(tag):
            self._exact[term] = None

    def terms(self) -> QueryTerms:
        """Returns the collected terms."""
        return QueryTerms(tuple(self._exact), tuple(self._phrases), tuple(self._authors))


def parse(query: str, keywords: Iterable[str] = (), tags: Iterable[str] = ()) -> ParsedQuery:
    """Returns the parsed form of a query that a user typed, in the syntax that the module's docstring describes.

    A match must also have all of `keywords` and `tags`, two other fields of the request. A keyword is one term; a `-`
    before it does not exclude it. A tag is a hashtag or cashtag, and may begin with `#` or `$`.

    Raises INVALID_ARGUMENT if there are more than MAX_TERMS terms in `query`, more than MAX_WORDS words in all, or only
    exclusions.
    """
    wanted, unwanted = _Collected(), _Collected()
    for is_excluded, quoted, plain in _chunks(query):
        (unwanted if is_excluded else wanted).add(quoted, plain)
    for keyword in keywords:
        wanted.add("", keyword)
    for tag in tags:
        wanted.add_tag(tag)
    parsed = ParsedQuery(*wanted.terms(), excluded=unwanted.terms())
    if sum(map(len, (*parsed.phrases, *parsed.excluded.phrases))) > MAX_WORDS:
        raise errors.invalid_argument(f"the query has more than {MAX_WORDS} words: shorten it", field="query")
    if any(parsed.excluded) and not parsed:
        raise only_excludes()
    return parsed


def parse_names(query: str) -> NameQuery:
    """Returns the parsed form of a query for users. Uses the first MAX_TERMS words and the first MAX_TERMS excluded
    words, and ignores the others."""
    wanted: list[str] = []
    unwanted: list[str] = []
    for minus, quoted, plain in _CHUNK.findall(query):
        (unwanted if _excludes(minus, plain) else wanted).extend(words(quoted or plain))
    return NameQuery(tuple(wanted[:MAX_TERMS]), tuple(unwanted[:MAX_TERMS]))


def only_excludes() -> errors.RoostError:
    """Returns the INVALID_ARGUMENT error for a query with exclusions only."""
    return errors.invalid_argument(
        "the query has exclusions only: add a word to look for, without a minus before it", field="query"
    )


def _chunks(query: str) -> list[tuple[bool, str, str]]:
    """Returns (is excluded, text between quotes, other text) for each chunk; one of the texts is empty. Raises
    INVALID_ARGUMENT if there are more than MAX_TERMS chunks."""
    found = [
        (_excludes(minus, plain), quoted, plain) for minus, quoted, plain in _CHUNK.findall(query) if quoted or plain
    ]
    if len(found) > MAX_TERMS:
        raise errors.invalid_argument(f"the query has {len(found)} terms: use at most {MAX_TERMS}", field="query")
    return found


def _excludes(minus: str, plain: str) -> bool:
    # Two minus signs are a dash between words, so they exclude nothing.
    return bool(minus) and not plain.startswith("-")


def hashtag_term(tag: str) -> str:
    """Returns the exact term of all tweets with a hashtag; `tag` has no `#`."""
    return "#" + tag_key(tag)


def cashtag_term(tag: str) -> str:
    """Returns the exact term of all tweets with a cashtag; `tag` has no `$`."""
    return "$" + tag_key(tag)


def mention_term(username: str) -> str:
    """Returns the exact term of all tweets that mention a user; `username` has no `@`."""
    return "@" + tag_key(username)


def author_term(user_id: int) -> str:
    """Returns the exact term of all tweets of one author."""
    return f"from:{user_id}"


def _term(chunk: str) -> str:
    """Returns the exact term if the chunk is one hashtag, mention or cashtag, otherwise ""."""
    if found := _TAG.fullmatch(chunk):
        return hashtag_term(found.group(1))
    if found := _MENTION.fullmatch(chunk):
        return mention_term(found.group(1))
    if found := _CASHTAG.fullmatch(chunk):
        return cashtag_term(found.group(1))
    return ""


def _tag_term(tag: str) -> str:
    """Returns the exact term of a hashtag or cashtag, which may begin with `#` or `$`; "" if the tag has no other
    characters."""
    name = tag.strip().lstrip("#＃")
    if found := _CASHTAG.fullmatch(name):
        return cashtag_term(found.group(1))
    return hashtag_term(name) if name else ""
