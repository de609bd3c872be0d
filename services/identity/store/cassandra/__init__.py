"""The Cassandra adapter of identity's store."""
