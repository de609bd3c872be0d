"""What people type, as what an index can answer: a closed grammar. Only what is too long, or only leaves out, is an error.

`word` · `"a phrase"` · `#tag` · `@mention` · `$CASH` · `from:username`. Everything must hold, and nothing that a `-` stands directly
before (`-word`, `-"a phrase"`, `-#tag`, `-from:username`). There are no wildcards and no patterns; signs that mean nothing here
separate words, and so does a `-` within a word, before a space, or doubled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from services.platform.rpc import errors
from services.search.tokenizer import MARKS, tag_key, words

# More is no question of a person; each costs a list to walk.
MAX_TERMS = 16
# Of all terms together: no tweet has more words, so nothing that could match is refused.
MAX_WORDS = 280

# A minus counts at the beginning or after a space only. An opening quote that is never closed holds up to the end.
_CHUNK = re.compile(r'(?:(?<!\S)(-))?(?:["“”„]([^"“”„]*)(?:["“”„]|$)|([^\s"“”„]+))')
_FROM = re.compile(r"from:@?([A-Za-z0-9_]{1,20})", re.IGNORECASE)
# Joiners and the middle dot are part of tags in one script or another.
_TAG = re.compile(rf"[#＃]([\w{MARKS}\u200c\u200d\u00b7]+)")
_MENTION = re.compile(r"[@＠]([A-Za-z0-9_]{1,20})")
_CASHTAG = re.compile(r"\$([A-Za-z]{1,6}(?:[._][A-Za-z]{1,2})?)")
# Ends of sentences and closing brackets behind a sign's name.
_TRAILING = ".,;:!?)]}'"


class LeaseTiming(NamedTuple):
    """Index terms, phrases (one word is a phrase too), and folded names of authors."""

    exact: tuple[str, ...] = ()
    phrases: tuple[tuple[str, ...], ...] = ()
    authors: tuple[str, ...] = ()


class ParsedQuery(NamedTuple):
    """A question: the terms that must all hold, and those of which none may."""

    exact: tuple[str, ...] = ()
    phrases: tuple[tuple[str, ...], ...] = ()
    authors: tuple[str, ...] = ()
    excluded: LeaseTiming = LeaseTiming()

    def __bool__(self) -> bool:
        """False where nothing is asked that a tweet could have."""
        return bool(self.exact or self.phrases or self.authors)


class Names(NamedTuple):
    """A question for people: words that must all begin a word of a name, and those that must begin none."""

    words: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


class _Collected:
    """Terms in the order in which they were met, each once."""

    def __init__(self) -> None:
        self._exact: dict[str, None] = {}
        self._phrases: dict[tuple[str, ...], None] = {}
        self._authors: dict[str, None] = {}

    def add(self, quoted: str, plain: str) -> None:
        """Takes in one chunk: the text between quotes, or else what stands between spaces."""
        if author := _FROM.fullmatch(plain):
            self._authors[tag_key(author.group(1))] = None
        elif term := _term(plain.rstrip(_TRAILING)):
            self._exact[term] = None
        elif phrase := words(quoted or plain):
            self._phrases[phrase] = None

    def add_tag(self, tag: str) -> None:
        """Takes in a tag, with or without its sign."""
        if term := _tag_term(tag):
            self._exact[term] = None

    def terms(self) -> LeaseTiming:
        """What was taken in."""
        return LeaseTiming(tuple(self._exact), tuple(self._phrases), tuple(self._authors))


def parse(query: str, keywords: Iterable[str] = (), tags: Iterable[str] = ()) -> ParsedQuery:
    """The question in the query, the keywords and the tags together. Only in the query does a `-` leave out.

    INVALID_ARGUMENT above MAX_TERMS or MAX_WORDS, and if everything is left out and nothing asked for.
    """
    wanted, unwanted = _Collected(), _Collected()
    for is_excluded, quoted, plain in _chunks(query):
        (unwanted if is_excluded else wanted).add(quoted, plain)
    for keyword in keywords:
        wanted.add("", keyword)
    for tag in tags:
        wanted.add_tag(tag)
    asked = ParsedQuery(*wanted.terms(), excluded=unwanted.terms())
    if sum(map(len, (*asked.phrases, *asked.excluded.phrases))) > MAX_WORDS:
        raise errors.invalid_argument(f"more than {MAX_WORDS} words", field="query")
    if any(asked.excluded) and not asked:
        raise only_excludes()
    return asked


def parse_names(query: str) -> Names:
    """The question for people in the query, of at most MAX_TERMS words of either kind; more are passed over."""
    wanted: list[str] = []
    unwanted: list[str] = []
    for minus, quoted, plain in _CHUNK.findall(query):
        (unwanted if _excludes(minus, plain) else wanted).extend(words(quoted or plain))
    return Names(tuple(wanted[:MAX_TERMS]), tuple(unwanted[:MAX_TERMS]))


def only_excludes() -> errors.RoostError:
    """The refusal of a question that asks for nothing and only leaves out."""
    return errors.invalid_argument(
        "this search only leaves out: add a word to look for, without a minus before it", field="query"
    )


def _chunks(query: str) -> list[tuple[bool, str, str]]:
    """Whether each chunk is to be left out, what is between its quotes, or else the chunk. INVALID_ARGUMENT above MAX_TERMS."""
    found = [
        (_excludes(minus, plain), quoted, plain) for minus, quoted, plain in _CHUNK.findall(query) if quoted or plain
    ]
    if len(found) > MAX_TERMS:
        raise errors.invalid_argument(f"{len(found)} terms; at most {MAX_TERMS}", field="query")
    return found


def _excludes(minus: str, plain: str) -> bool:
    # A doubled minus is a dash.
    return bool(minus) and not plain.startswith("-")


def hashtag_term(tag: str) -> str:
    """The index term of a hashtag, given without its sign."""
    return "#" + tag_key(tag)


def cashtag_term(tag: str) -> str:
    """The index term of a cashtag, given without its sign."""
    return "$" + tag_key(tag)


def mention_term(username: str) -> str:
    """The index term of a mention, given without its sign."""
    return "@" + tag_key(username)


def author_term(user_id: int) -> str:
    """The index term of everything that one author wrote."""
    return f"from:{user_id}"


def _term(chunk: str) -> str:
    """The index term of a chunk that is one sign and a name; empty for all others."""
    if found := _TAG.fullmatch(chunk):
        return hashtag_term(found.group(1))
    if found := _MENTION.fullmatch(chunk):
        return mention_term(found.group(1))
    if found := _CASHTAG.fullmatch(chunk):
        return cashtag_term(found.group(1))
    return ""


def _tag_term(tag: str) -> str:
    name = tag.strip().lstrip("#＃")
    if found := _CASHTAG.fullmatch(name):
        return cashtag_term(found.group(1))
    return hashtag_term(name) if name else ""
