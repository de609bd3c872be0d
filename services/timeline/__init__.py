"""Timeline service: builds home timelines, stores them, and serves their pages.

Owns no authoritative data: a home timeline is a list of tweet ids that may be lost at any moment and is then rebuilt
from the tweet and graph services. At each read it pulls the tweets that are not in the list, such as those of
celebrities. Calls graph (followees, tiers, visibility), tweet (ids by author) and, to hydrate, the owner of each tweet
fragment. Fan-out appends ids by AppendHomeEntries. Publishes and consumes no events.
"""
