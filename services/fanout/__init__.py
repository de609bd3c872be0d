"""Fan-out service: appends new tweets to the home timelines of followers (fan-out on write).

Owns only the offsets of its consumer groups. Calls graph (followers, tiers) and timeline (AppendHomeEntries). Consumes
`tweet.created` and `tweet.restored`. If an author has more followers than the quota of a batch, it appends the author's
events to the topic `fanout.large`, which only this service uses, and consumes them from there, so that they do not
delay the tweets of other authors.
"""
