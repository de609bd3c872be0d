"""Further HTTP protocols in front of the same services, one module each."""
