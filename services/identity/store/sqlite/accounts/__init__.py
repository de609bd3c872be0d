"""Accounts in SQLite: rows, cache, and the store."""
