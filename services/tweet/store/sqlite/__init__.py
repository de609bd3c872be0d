"""The SQLite adapter of the tweet store."""
