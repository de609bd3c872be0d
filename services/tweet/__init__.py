"""The tweet service: owns tweets, replies, retweets and quotes, and the list of each author's tweets.

Calls identity (authors), graph (visibility) and engagement (counts) to hydrate its responses. Publishes
`tweet.created`, `tweet.edited`, `tweet.deleted` and `tweet.restored`. Consumes `user.purged`, to delete the tweets of
purged users. On the cluster backend it consumes the last three of its own events, to repeat follow-up writes that
failed after the commit.
"""
