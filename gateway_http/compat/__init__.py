"""Other dialects of HTTP over the same services, each in its own file."""
