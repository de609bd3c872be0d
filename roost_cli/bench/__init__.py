"""`roost bench`: measures a running mesh, or the writes of fan-out, and a baseline in the same run."""
