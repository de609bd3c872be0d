"""Reads the contract from descriptors, and defines errors, the current call, deadlines, rate limits and the
interceptors."""
