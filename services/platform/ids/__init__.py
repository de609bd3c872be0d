"""Mints Snowflake ids: 64-bit numbers that are ordered by time and that each process mints without coordination."""
