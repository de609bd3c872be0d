"""Search: finds tweets and people, and knows what is talked about now.

Owns an index that can be dropped and rebuilt at any moment, and trends, which live in memory. Calls tweet and identity for what it
indexes, and identity and graph, through hydrate and the lists of people, for what a reader may see: what is deleted, hidden or
blocked stays out at the read, whatever the index still holds. Publishes nothing; consumes `tweet.…` and `user.…`.
"""
