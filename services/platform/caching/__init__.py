"""Provides caches in process memory, each with a maximum number of entries."""
