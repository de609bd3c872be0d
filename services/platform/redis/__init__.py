"""Provides a Redis client whose calls all have a time limit, and the user references and versions that processes share
through Redis."""
