"""The Cassandra adapter of engagement's store."""
