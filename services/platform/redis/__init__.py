"""A Redis client that bounds every wait, and the versions that processes share through it."""
