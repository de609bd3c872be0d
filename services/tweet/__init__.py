"""The tweet service: owns tweets, replies, retweets and quotes, and the list of each author's tweets.

Calls identity (UserRefs of authors) and graph (visibility) to hydrate its responses. Publishes `tweet.created`,
`tweet.edited`, `tweet.deleted` and `tweet.restored`. In the cluster backend it consumes the last three to repeat side
effects that failed after the commit.
"""
