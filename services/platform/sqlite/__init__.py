"""The embedded backend in one data directory: a group-committing SQLite database, the event log, the outbox and the
worker id."""
