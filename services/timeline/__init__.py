"""Timeline service: stores home timelines, builds them, and pulls the tweets of celebrities when they are read.

Owns no authoritative data: a home timeline is a cache of tweet ids that may be dropped at any moment and is rebuilt
from tweet and graph. Calls graph (followees, tiers, visibility), tweet (ids by author) and, through hydration, the
owner of each tweet fragment. Fan-out adds entries by AppendHomeEntries. Publishes and consumes no events.
"""
