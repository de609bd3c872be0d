"""What people type, as what an index can answer: a closed grammar, in which no input is an error but one too long.

`word` · `"a phrase"` · `#tag` · `@mention` · `$CASH` · `from:username`. Everything must hold. There are no wildcards and no patterns;
signs that mean nothing here separate words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from services.common import errors
from services.search.words import MARKS, tag_key, words

# More is no question of a person; each costs a list to walk.
MAX_TERMS = 16
# Of all terms together: no tweet has more words, so nothing that could match is refused.
MAX_WORDS = 280

# An opening quote that is never closed holds up to the end.
_CHUNK = re.compile(r'["“”„]([^"“”„]*)(?:["“”„]|$)|([^\s"“”„]+)')
_FROM = re.compile(r"from:@?([A-Za-z0-9_]{1,20})", re.IGNORECASE)
# Joiners and the middle dot are part of tags in one script or another.
_TAG = re.compile(rf"[#＃]([\w{MARKS}\u200c\u200d\u00b7]+)")
_MENTION = re.compile(r"[@＠]([A-Za-z0-9_]{1,20})")
_CASHTAG = re.compile(r"\$([A-Za-z]{1,6}(?:[._][A-Za-z]{1,2})?)")
# Ends of sentences and closing brackets behind a sign's name.
_TRAILING = ".,;:!?)]}'"


class Asked(NamedTuple):
    """A question: index terms and phrases (one word is a phrase too) that must all be there, and folded names of authors."""

    exact: tuple[str, ...] = ()
    phrases: tuple[tuple[str, ...], ...] = ()
    authors: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """False where nothing is asked that a tweet could have."""
        return bool(self.exact or self.phrases or self.authors)


def parse(query: str, keywords: Iterable[str] = (), tags: Iterable[str] = ()) -> Asked:
    """The question in the query, the keywords and the tags together. INVALID_ARGUMENT above MAX_TERMS or MAX_WORDS."""
    exact: dict[str, None] = {}
    phrases: dict[tuple[str, ...], None] = {}
    authors: dict[str, None] = {}
    chunks = [(quoted, plain) for quoted, plain in _CHUNK.findall(query) if quoted or plain]
    if len(chunks) > MAX_TERMS:
        raise errors.invalid_argument(f"{len(chunks)} terms; at most {MAX_TERMS}", field="query")
    for quoted, plain in [*chunks, *(("", keyword) for keyword in keywords)]:
        if author := _FROM.fullmatch(plain):
            authors[tag_key(author.group(1))] = None
        elif term := _term(plain.rstrip(_TRAILING)):
            exact[term] = None
        elif phrase := words(quoted or plain):
            phrases[phrase] = None
    for tag in tags:
        if term := _tag_term(tag):
            exact[term] = None
    if sum(map(len, phrases)) > MAX_WORDS:
        raise errors.invalid_argument(f"more than {MAX_WORDS} words", field="query")
    return Asked(tuple(exact), tuple(phrases), tuple(authors))


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
