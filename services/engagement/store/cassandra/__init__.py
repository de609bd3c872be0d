"""The Cassandra adapter of the engagement store."""
