"""Graph: who follows, blocks and mutes whom, and who is a celebrity.

Owns the edges, the counts of followers and followees, and the tiers. Calls identity (`BatchGetUserRefs` for whether
somebody takes part, `BatchGetUsers` for lists of people). Publishes `user.followed`, `user.unfollowed`, `user.blocked`,
`user.unblocked`, `user.muted`, `user.unmuted` and `user.tier_changed`; consumes nothing.
"""
