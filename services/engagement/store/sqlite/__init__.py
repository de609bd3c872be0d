"""The SQLite adapter of the engagement store."""
