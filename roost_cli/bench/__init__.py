"""`scripts/bench`: measures home reads and fan-out against a baseline in the same run."""
