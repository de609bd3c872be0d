"""Graph service: follows, blocks, mutes and celebrity tiers.

Owns the edges, the follower and followee counts, and the tiers. Calls identity: `BatchGetUserRefs` to check that a user
exists and is active, `BatchGetUsers` to fill lists of users. Publishes `user.followed`, `user.unfollowed`,
`user.blocked`, `user.unblocked`, `user.muted`, `user.unmuted` and `user.tier_changed`. Consumes identity's events about
users who are deactivated, suspended or reinstated, so that the counts stay exact.
"""
