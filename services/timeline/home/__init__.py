"""Builds a reader's home timeline, filters it by the rules of visibility, and reads its pages."""
