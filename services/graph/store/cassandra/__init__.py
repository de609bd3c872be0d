"""The Cassandra adapter of graph's store."""
