"""Builds the search documents of tweets and users, and the exact terms that both documents and queries use."""

from __future__ import annotations

import unicodedata

from roost.identity.v1 import user_pb2
from roost.tweet.v1 import tweet_pb2

from services.search.query import author_term, cashtag_term, hashtag_term, mention_term
from services.search.store import Document
from services.search.tokenizer import MAX_TAG_CHARS, MAX_WORD_CHARS, fold, tag_key, words

# The longest prefix of a name that is indexed for completion. A longer input is cut to this length.
MAX_PREFIX_CHARS = 15


def tweet_document(core: tweet_pb2.TweetCore) -> Document | None:
    """Returns the search document of a tweet; None for a deleted tweet and for a retweet (searches find the original
    instead).

    The exact terms of the document are its author, its hashtags (with their completion and spelling terms), its
    cashtags and its mentions.
    """
    head = core.head
    if head.deleted or head.retweet_of_id:
        return None
    tweet = tweet_pb2.Tweet.FromString(core.core)
    named = tweet.entities
    exact = {author_term(head.author_id): None}
    for entity in named.hashtags:
        exact |= dict.fromkeys((hashtag_term(entity.tag), completion_term(entity.tag), spelling_term(entity.tag)))
    exact |= dict.fromkeys(cashtag_term(entity.tag) for entity in named.cashtags)
    exact |= dict.fromkeys(mention_term(entity.username) for entity in named.mentions)
    # The version is the time of the last edit in Unix milliseconds (0: never edited). The tweet service sets it, so it
    # grows with every edit.
    version = tweet.edited_at.ToMilliseconds() if tweet.edited else 0
    return Document(head.id, version, head.author_id, tuple(exact), words(tweet.text))


def user_document(
    user: user_pb2.UserRef | user_pb2.User, state: user_pb2.UserState.ValueType, version: int, followers: int
) -> Document | None:
    """Returns the search document of a user, or None unless the account's state is ACTIVE.

    `version` is the identity service's version of the user; `followers` becomes the document's rank.
    """
    if state != user_pb2.USER_STATE_ACTIVE:
        return None
    username = tag_key(user.username)
    exact = {username_term(username): None}
    exact |= dict.fromkeys(handle_prefix_term(username[:length]) for length in range(1, len(username) + 1))
    # Underscores join words in usernames.
    for word in {*words(user.display_name), *words(user.username), *words(user.username.replace("_", " "))}:
        exact |= dict.fromkeys(
            name_prefix_term(word[:length]) for length in range(1, min(len(word), MAX_PREFIX_CHARS) + 1)
        )
    return Document(user.id, version, user.id, tuple(exact), (), followers)


def completion_term(tag: str) -> str:
    """Returns the exact term by which searches complete the beginning of a hashtag; `tag` is given without `#`.
    `tag_of_term` returns the hashtag's key from this term.
    """
    return completion_prefix(tag) + " " + tag_key(tag)


def completion_prefix(beginning: str) -> str:
    """Returns the common prefix of the completion terms of all hashtags that begin with `beginning`, ignoring
    accents.
    """
    return "~" + fold(tag_key(beginning))[:MAX_TAG_CHARS]


def spelling_term(tag: str) -> str:
    """Returns the term of one spelling of a hashtag (without `#`). `tag_of_term` returns the spelling from it."""
    return spelling_prefix(tag_key(tag)) + unicodedata.normalize("NFC", tag)[:MAX_TAG_CHARS]


def spelling_prefix(key: str) -> str:
    """Returns the common prefix of the spelling terms of one hashtag; `key` is its `tag_key`."""
    return f"={key} "


def tag_of_term(term: str) -> str:
    """Returns the hashtag's key from a completion term, or its spelling from a spelling term.

    The term is split at its first space: no hashtag contains a space.
    """
    return term.partition(" ")[2]


def username_term(username: str) -> str:
    """Returns the term that only the account with this username has, whatever the case."""
    return "u:" + tag_key(username)


def handle_prefix_term(prefix: str) -> str:
    """Returns the term of all accounts whose username begins with `prefix`, cut to MAX_PREFIX_CHARS."""
    return "h:" + tag_key(prefix)[:MAX_PREFIX_CHARS]


def name_prefix_term(word: str) -> str:
    """Returns the term of all accounts with a name word that begins with `word` (folded), cut to MAX_PREFIX_CHARS."""
    return "n:" + word[: min(MAX_PREFIX_CHARS, MAX_WORD_CHARS)]
