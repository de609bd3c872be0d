"""Fan-out service: adds new tweets to the home timelines of followers (fan-out on write).

Owns only its offsets in the event log. Calls graph (followers, tiers) and timeline (AppendHomeEntries). Consumes
`tweet.created` and `tweet.restored`. Authors with too many followers for one batch continue on its private topic
`fanout.large`, so that they do not delay others.
"""
