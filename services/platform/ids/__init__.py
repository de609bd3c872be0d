"""Snowflake ids: time-ordered 64-bit numbers that every process makes on its own."""
