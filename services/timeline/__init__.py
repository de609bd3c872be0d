"""Timeline: home timelines, their builds, and what is pulled at read.

Owns nothing that is true: a home is a cache of ids that may be dropped at any moment and rebuilds itself from tweet and graph.
Calls graph (followees, tiers, visibility), tweet (ids of authors) and, through hydrate, whoever owns a fragment of a tweet. Gets its
entries from fan-out by AppendHomeEntries; publishes and consumes nothing.
"""
