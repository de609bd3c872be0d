"""Search service: finds tweets and users, completes hashtags and usernames, and ranks trends.

Owns a search index and the counts of trends. Both are derived data: the index can be dropped at any time and is rebuilt
from the tweet and identity services; the counts are in process memory and are made again at each start from the event
log. Hydrates each result (`services/shared/hydration`), which checks its visibility with identity and graph, so
deleted, hidden and blocked content is not returned even if the index still contains it. Publishes no events. Consumes
`tweet.*` and `user.*`.
"""
