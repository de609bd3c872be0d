"""Verifies access tokens, and stores which sessions and users are revoked."""
