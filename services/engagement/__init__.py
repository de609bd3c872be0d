"""Engagement: who likes which tweet, and who keeps it.

Owns likes, bookmarks and the counts of both. Calls tweet, identity and graph, through hydrate and for whether a tweet
may be liked, and identity for lists of people. Publishes `tweet.liked` and `tweet.unliked`; consumes nothing: rows of
deleted tweets stay, and lists leave them out when they are read.
"""
