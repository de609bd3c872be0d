"""The OpenSearch adapter of the search index."""
