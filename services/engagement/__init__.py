"""The engagement service: owns likes and bookmarks, and the counts of both.

Calls tweet, identity and graph to hydrate tweets and to check whether a tweet may be liked, and identity for lists of
users. Publishes `tweet.liked` and `tweet.unliked`. Reactions to deleted tweets stay stored; lists leave out deleted
tweets when they are read.
"""
