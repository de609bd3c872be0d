"""The tweet service: owns tweets, replies, retweets and quotes, and who posted them when.

Calls identity (UserRef of authors) and graph (who hides from whom), both only to join what it answers.
Publishes `tweet.created`, `tweet.edited`, `tweet.deleted` and `tweet.restored`; in the cluster backend consumes the
last three, to do again what follows them where it could not be done at once.
"""
