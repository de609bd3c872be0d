"""Verification of access tokens, and the list of revoked sessions."""
