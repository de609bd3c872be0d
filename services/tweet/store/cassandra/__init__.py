"""The Cassandra adapter of the tweet store."""
