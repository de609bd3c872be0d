"""Accounts in Cassandra: rows, claims of names, and the store."""
