"""The SQLite adapter of identity's store."""
