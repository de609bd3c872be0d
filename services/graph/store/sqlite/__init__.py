"""The SQLite adapter of graph's store."""
