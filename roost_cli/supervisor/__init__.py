"""Starts the processes of a mesh of several groups, and restarts processes that end."""
