"""`roost bench growth`: how costs grow with followers, timeline length, celebrities followed, users and tweets."""
