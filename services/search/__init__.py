"""Search: finds tweets and users, completes hashtags and usernames, and ranks trends.

The service owns a search index, which is derived data and can be dropped and rebuilt at any time, and trend counts,
which live in process memory. It reads the tweets and users that it indexes from the tweet and identity services. Every
search result is checked at read time against identity and graph (through `services/shared/hydration`), so deleted,
hidden and blocked content is not returned even if the index still contains it. The service publishes no events; it
consumes `tweet.*` and `user.*`.
"""
