"""Fan-out: carries tweets to the homes of followers.

Owns nothing but its offsets in the event log. Calls graph (followers, tiers) and timeline.AppendHomeEntries; consumes `tweet.created`
and `tweet.restored`. Authors too big for a round go on by its own topic `fanout.large`, so that they delay nobody else.
"""
