"""People, their credentials and sessions, and the tokens that prove who calls.

Owns accounts (name, e-mail address, profile, state), password hashes, sessions (families of refresh tokens) and the
keys that sign access tokens; all of it in one store. Calls graph (followers, following, how reader and user stand) and
tweet (how many tweets) to join profiles; without them a profile answers without these. Publishes `user.created`,
`user.updated`, `user.suspended`, `user.reinstated`, `user.deleted` and `session.revoked`; consumes nothing.
"""
