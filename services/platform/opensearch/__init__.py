"""A client of OpenSearch."""
