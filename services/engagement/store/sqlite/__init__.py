"""The SQLite adapter of engagement's store."""
