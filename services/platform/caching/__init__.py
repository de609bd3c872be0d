"""Caches in process memory, each with a bound."""
