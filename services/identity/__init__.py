"""The identity service: user accounts, credentials, sessions and access tokens.

It owns accounts (username, e-mail address, profile, state), password hashes, sessions with their refresh tokens, and
the keys that sign access tokens, all in one store. To hydrate profiles, it calls graph (follow counts, relationships
with the reader) and tweet (tweet counts). If the counts cannot be read, it returns profiles without metrics; if the
relationships cannot be read, it raises UNAVAILABLE. It publishes `user.created`,
`user.updated`, `user.suspended`, `user.reinstated`, `user.deleted`, `user.purged` and `session.revoked`. On the cluster backend it
also consumes its own user events, to write the user references in Redis again.
"""
