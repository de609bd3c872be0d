"""The Redis adapter of home timelines."""
