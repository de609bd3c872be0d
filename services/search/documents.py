"""What the index holds of a tweet and of a person."""

from __future__ import annotations

import unicodedata

from roost.identity.v1 import user_pb2
from roost.tweet.v1 import tweet_pb2

from services.search.query import author_term, cashtag_term, hashtag_term, mention_term
from services.search.store import Document
from services.search.tokenizer import MAX_TAG_CHARS, MAX_WORD_CHARS, fold, tag_key, words

# Beginnings of names by which people are found while somebody types; longer ones are found by this much.
MAX_PREFIX_CHARS = 15


def tweet_document(core: tweet_pb2.TweetCore) -> Document | None:
    """The document of a tweet; None where it is not to be found: deleted, or a retweet, whose original is found."""
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
    # Grows with every edit, over all replicas: it is the owner's time.
    version = tweet.edited_at.ToMilliseconds() if tweet.edited else 0
    return Document(head.id, version, head.author_id, tuple(exact), words(tweet.text))


def user_document(
    user: user_pb2.UserRef | user_pb2.User, state: user_pb2.UserState.ValueType, version: int, followers: int
) -> Document | None:
    """The document of a person whom so many follow; None where the account does not take part."""
    if state != user_pb2.USER_STATE_ACTIVE:
        return None
    username = tag_key(user.username)
    exact = {username_term(username): None}
    exact |= dict.fromkeys(handle_prefix_term(username[:length]) for length in range(1, len(username) + 1))
    # Under scores join words in usernames.
    for word in {*words(user.display_name), *words(user.username), *words(user.username.replace("_", " "))}:
        exact |= dict.fromkeys(
            name_prefix_term(word[:length]) for length in range(1, min(len(word), MAX_PREFIX_CHARS) + 1)
        )
    return Document(user.id, version, user.id, tuple(exact), (), followers)


def completion_term(tag: str) -> str:
    """The index term by which a hashtag, given without its sign, is completed: `tag_of_term` gives its key back."""
    return completion_prefix(tag) + " " + tag_key(tag)


def completion_prefix(beginning: str) -> str:
    """What the completion terms of all hashtags begin with that begin so, whatever their accents."""
    return "~" + fold(tag_key(beginning))[:MAX_TAG_CHARS]


def spelling_term(tag: str) -> str:
    """The index term of a hashtag in just this spelling, given without its sign: `tag_of_term` gives it back."""
    return spelling_prefix(tag_key(tag)) + unicodedata.normalize("NFC", tag)[:MAX_TAG_CHARS]


def spelling_prefix(key: str) -> str:
    """What the spelling terms of all spellings of one hashtag begin with."""
    return f"={key} "


def tag_of_term(term: str) -> str:
    """The hashtag's key in a completion term, and its spelling in a spelling term. No tag holds a space."""
    return term.partition(" ")[2]


def username_term(username: str) -> str:
    """The index term of the one account of this name, whatever its case."""
    return "u:" + tag_key(username)


def handle_prefix_term(prefix: str) -> str:
    """The index term of accounts whose username begins so."""
    return "h:" + tag_key(prefix)[:MAX_PREFIX_CHARS]


def name_prefix_term(word: str) -> str:
    """The index term of accounts with a word that begins so in their names; `word` is folded."""
    return "n:" + word[: min(MAX_PREFIX_CHARS, MAX_WORD_CHARS)]
