"""Drivers: they open a connection and keep it well, nothing else."""
