"""A brute-force model of the API's rules about users and tweets, without lists, caches and events. Tests compare the
services' answers with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from roost.tweet.v1 import tweet_pb2

from services.tweet.writer import MAX_EDITS

STANDS, DELETED, REMOVED = "stands", "deleted", "removed"
OK, MISSING, REFUSED, LATE = "OK", "NOT_FOUND", "PERMISSION_DENIED", "FAILED_PRECONDITION"


@dataclass
class Tweet:
    """A tweet, reply, quote or retweet; ids of 0 mean none."""

    id: int
    author: int
    text: str = ""
    reply_to: int = 0
    quote_of: int = 0
    retweet_of: int = 0
    state: str = STANDS
    action: int = 0
    edits: int = 0
    original_text: str = ""


@dataclass
class World:
    """Users are 0, 1, 2 …; edges are pairs of users, and marks are pairs of a user and a tweet id."""

    names: list[str]
    tweets: dict[int, Tweet] = field(default_factory=dict)
    suspended: set[int] = field(default_factory=set)
    follows: set[tuple[int, int]] = field(default_factory=set)
    blocks: set[tuple[int, int]] = field(default_factory=set)
    mutes: set[tuple[int, int]] = field(default_factory=set)
    likes: set[tuple[int, int]] = field(default_factory=set)
    bookmarks: set[tuple[int, int]] = field(default_factory=set)

    def apart(self, one: int, other: int) -> bool:
        """Returns whether either blocks the other."""
        return bool({(one, other), (other, one)} & self.blocks)

    def stands(self, tweet_id: int) -> bool:
        """Returns whether the tweet is neither deleted nor removed."""
        return self.tweets[tweet_id].state == STANDS

    def original(self, tweet_id: int) -> int:
        """Returns the id of the retweeted tweet, or the id itself if it is no retweet."""
        return self.tweets[tweet_id].retweet_of or tweet_id

    def visible(self, reader: int, tweet_id: int) -> bool:
        """Returns whether the reader may see the tweet."""
        tweet = self.tweets[tweet_id]
        return (
            self.stands(tweet_id)
            and tweet.author not in self.suspended
            and not self.apart(reader, tweet.author)
            and (not tweet.retweet_of or self.visible(reader, tweet.retweet_of))
        )

    def at_home(self, reader: int, tweet_id: int) -> bool:
        """Returns whether the tweet is in the reader's home timeline, however deep."""
        tweet = self.tweets[tweet_id]
        if not self.visible(reader, tweet_id) or not self.knows(reader, tweet.author):
            return False
        if {(reader, tweet.author), (reader, self.tweets[self.original(tweet_id)].author)} & self.mutes:
            return False
        if not tweet.reply_to or tweet.author == reader:
            return True
        parent = self.tweets[tweet.reply_to]
        return self.knows(reader, parent.author) and self.visible(reader, parent.id)

    def knows(self, reader: int, author: int) -> bool:
        """Returns whether the reader is the author or follows them."""
        return author == reader or (reader, author) in self.follows

    def home(self, reader: int) -> list[int]:
        """Returns the ids of the reader's home timeline, newest first."""
        return sorted((tweet_id for tweet_id in self.tweets if self.at_home(reader, tweet_id)), reverse=True)

    def seen(self, reader: int, tweets: Iterable[Tweet]) -> list[int]:
        """Returns the ids of those tweets that the reader may see, newest first."""
        return sorted((tweet.id for tweet in tweets if self.visible(reader, tweet.id)), reverse=True)

    def of_author(self, author: int) -> list[Tweet]:
        return [tweet for tweet in self.tweets.values() if tweet.author == author]

    def linked(self, link: str, tweet_id: int) -> list[Tweet]:
        """Returns the tweets, not deleted or removed, that reply to, quote or retweet this one, as `link` says."""
        return [t for t in self.tweets.values() if getattr(t, link) == tweet_id and self.stands(t.id)]

    # The status code that a call must return.

    def act_on(self, user: int, tweet_id: int) -> str:
        """Returns the code of a reply, quote, retweet or like."""
        authors = {self.tweets[tweet_id].author, self.tweets[self.original(tweet_id)].author}
        if not self.stands(tweet_id) or not self.stands(self.original(tweet_id)) or authors & self.suspended:
            return MISSING
        return REFUSED if any(self.apart(user, author) for author in authors) else OK

    def retweet(self, user: int, tweet_id: int) -> str:
        """Returns the code of a retweet. One that a moderator removed cannot be repeated."""
        wanted, original = self.act_on(user, tweet_id), self.original(tweet_id)
        removed = (t for t in self.tweets.values() if t.state == REMOVED)
        return REFUSED if wanted == OK and (user, original) in {(t.author, t.retweet_of) for t in removed} else wanted

    def own(self, user: int, tweet_id: int) -> str:
        """Returns the code of a delete, and of an edit as far as it depends on the user."""
        if self.tweets[tweet_id].author == user:
            return OK
        return REFUSED if self.visible(user, tweet_id) else MISSING

    def edit(self, user: int, tweet_id: int, text: str) -> str:
        """Returns the code of an edit."""
        tweet = self.tweets[tweet_id]
        if not self.stands(tweet_id):
            return MISSING
        late = tweet.retweet_of or (tweet.edits == MAX_EDITS and tweet.text != text)
        return LATE if self.own(user, tweet_id) == OK and late else self.own(user, tweet_id)

    def follow(self, user: int, other: int) -> str:
        """Returns the code of a follow."""
        return MISSING if other in self.suspended else REFUSED if self.apart(user, other) else OK

    def tweet_as(self, reader: int, tweet_id: int) -> dict[str, Any]:
        """Returns the tweet as the reader gets it, in the form of `told`."""
        tweet = self.tweets[tweet_id]
        found = self._alone(reader, tweet)
        if tweet.retweet_of:
            found["retweeted"] = self._alone(reader, self.tweets[tweet.retweet_of])
        elif tweet.quote_of:
            quoted = self.tweets[tweet.quote_of]
            gone = {"id": quoted.id, "deleted": True}
            found["quoted"] = self._alone(reader, quoted) if self.visible(reader, quoted.id) else gone
        return found

    def _alone(self, reader: int, tweet: Tweet) -> dict[str, Any]:
        # Counts exclude suspended users, as lists do.
        likes = sum(tweet_id == tweet.id and user not in self.suspended for user, tweet_id in self.likes)
        bookmarks = sum(tweet_id == tweet.id for _, tweet_id in self.bookmarks)
        links = [
            sum(linked.author not in self.suspended for linked in self.linked(link, tweet.id))
            for link in ("retweet_of", "reply_to", "quote_of")
        ]
        return {
            "id": tweet.id,
            "author": self.names[tweet.author],
            "text": tweet.text,
            "original_text": tweet.original_text,
            "reply_to": tweet.reply_to,
            "metrics": (likes, *links, bookmarks),
            "viewer": (
                (reader, tweet.id) in self.likes,
                any(t.author == reader for t in self.linked("retweet_of", tweet.id)),
                (reader, tweet.id) in self.bookmarks,
            ),
        }


def told(tweet: tweet_pb2.Tweet) -> dict[str, Any]:
    """Returns a tweet of the API in the model's form."""
    if tweet.deleted:
        assert tweet == tweet_pb2.Tweet(id=tweet.id, deleted=True), "a deleted tweet has no other field"
        return {"id": tweet.id, "deleted": True}
    metrics, viewer = tweet.metrics, tweet.viewer
    found: dict[str, Any] = {
        "id": tweet.id,
        "author": tweet.author.display_name,
        "text": tweet.text,
        "original_text": tweet.original_text,
        "reply_to": tweet.reply_to_id,
        "metrics": (metrics.likes, metrics.retweets, metrics.replies, metrics.quotes, metrics.bookmarks),
        "viewer": (viewer.liked, viewer.retweeted, viewer.bookmarked),
    }
    assert tweet.edited == bool(tweet.original_text)
    if tweet.HasField("retweeted_tweet"):
        found["retweeted"] = told(tweet.retweeted_tweet)
    if tweet.HasField("quoted_tweet"):
        found["quoted"] = told(tweet.quoted_tweet)
    return found
