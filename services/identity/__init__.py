"""The identity service: user accounts, credentials, sessions and access tokens.

It owns accounts (username, e-mail address, profile, state), password hashes, sessions with their refresh tokens, and the keys that
sign access tokens, all in one store. It calls graph (follow counts, relationships with the reader) and tweet (tweet counts) to hydrate
profiles. Without counts it returns profiles without metrics; without relationships it raises UNAVAILABLE. It publishes `user.created`,
`user.updated`, `user.suspended`, `user.reinstated`, `user.deleted` and `session.revoked`. On the cluster backend it also consumes its
own user events.
"""
