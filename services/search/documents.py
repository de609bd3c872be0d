"""Builds the documents of tweets and users, and the exact terms that documents and queries have in common."""

from __future__ import annotations

import unicodedata

from roost.identity.v1 import user_pb2
from roost.tweet.v1 import tweet_pb2

from services.search.query import author_term, cashtag_term, hashtag_term, mention_term
from services.search.store import Document
from services.search.tokenizer import MAX_TAG_CHARS, MAX_WORD_CHARS, fold, tag_key, words

# Maximum length in characters of the prefixes of names that are indexed for completion. Queries with longer words are
# cut to this length.
MAX_PREFIX_CHARS = 15


def tweet_document(core: tweet_pb2.TweetCore) -> Document | None:
    """Returns the document of a tweet. Returns None for a hidden tweet, and for a retweet, because searches find the
    original.

    The exact terms of the document are the author, the hashtags (each also as a completion term and as a spelling
    term), the cashtags and the mentions.
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
    # The version is the time of the last edit in Unix milliseconds, 0 for a tweet that was never edited.
    version = tweet.edited_at.ToMilliseconds() if tweet.edited else 0
    return Document(head.id, version, head.author_id, tuple(exact), words(tweet.text))


def user_document(
    user: user_pb2.UserRef | user_pb2.User, state: user_pb2.UserState.ValueType, version: int, followers: int
) -> Document | None:
    """Returns the document of a user; None if the user is absent. `version` is the version of the user in identity;
    `followers`, the number of followers, becomes the document's rank."""
    if state != user_pb2.USER_STATE_ACTIVE:
        return None
    username = tag_key(user.username)
    exact = {username_term(username): None}
    exact |= dict.fromkeys(handle_prefix_term(username[:length]) for length in range(1, len(username) + 1))
    # `words` does not split a text at underscores, but underscores often separate the words of a username.
    for word in {*words(user.display_name), *words(user.username), *words(user.username.replace("_", " "))}:
        exact |= dict.fromkeys(
            name_prefix_term(word[:length]) for length in range(1, min(len(word), MAX_PREFIX_CHARS) + 1)
        )
    return Document(user.id, version, user.id, tuple(exact), (), followers)


def completion_term(tag: str) -> str:
    """Returns the exact term of a hashtag that is found by the beginning of the hashtag (see `completion_prefix`).
    `tag` has no `#`. `tag_of_term` returns the hashtag's key from this term."""
    return completion_prefix(tag) + " " + tag_key(tag)


def completion_prefix(beginning: str) -> str:
    """Returns the prefix that the completion terms of all hashtags beginning with `beginning` have in common. Accents
    are ignored."""
    return "~" + fold(tag_key(beginning))[:MAX_TAG_CHARS]


def spelling_term(tag: str) -> str:
    """Returns the exact term of one spelling of a hashtag. `tag` has no `#`. `tag_of_term` returns the spelling from
    this term."""
    return spelling_prefix(tag_key(tag)) + unicodedata.normalize("NFC", tag)[:MAX_TAG_CHARS]


def spelling_prefix(key: str) -> str:
    """Returns the prefix that the spelling terms of all spellings of a hashtag have in common. `key` is the hashtag's
    `tag_key`."""
    return f"={key} "


def tag_of_term(term: str) -> str:
    """Returns the key of the hashtag if `term` is a completion term, or the spelling of the hashtag if `term` is a
    spelling term.

    The term is split at its first space: no hashtag contains a space.
    """
    return term.partition(" ")[2]


def username_term(username: str) -> str:
    """Returns the exact term that only the user with this username has. Case is ignored."""
    return "u:" + tag_key(username)


def handle_prefix_term(prefix: str) -> str:
    """Returns the exact term of all users whose username begins with `prefix`, cut to MAX_PREFIX_CHARS."""
    return "h:" + tag_key(prefix)[:MAX_PREFIX_CHARS]


def name_prefix_term(word: str) -> str:
    """Returns the exact term of all users with a word in username or display name that begins with `word` (folded), cut
    to MAX_PREFIX_CHARS."""
    return "n:" + word[: min(MAX_PREFIX_CHARS, MAX_WORD_CHARS)]
