"""Signed cursors of list methods."""
