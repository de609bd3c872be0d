"""Fan-out service: adds new tweets to the home timelines of followers (fan-out on write).

Owns only its offsets in the event log. Calls graph (followers, tiers) and timeline (AppendHomeEntries). Consumes
`tweet.created` and `tweet.restored`. The events of authors with too many followers for one batch are published again on
the topic `fanout.large`, which only this service uses, so that they do not delay the tweets of other authors.
"""
