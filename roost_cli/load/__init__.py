"""`roost load` and the demo: create users, follows and tweets in a running mesh."""
