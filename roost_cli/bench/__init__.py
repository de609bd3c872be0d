"""`roost bench`: measures reads of home timelines, or the writes of fan-out, and a baseline in the same run."""
