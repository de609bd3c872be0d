"""The Tantivy adapter of the search index."""
